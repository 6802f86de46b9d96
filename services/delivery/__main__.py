"""`python -m services.delivery`."""

from services.delivery.service import main

if __name__ == "__main__":
    main()
