"""`python -m services.shipping`."""

from services.shipping.service import main

if __name__ == "__main__":
    main()
