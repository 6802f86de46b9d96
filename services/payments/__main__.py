"""`python -m services.payments`."""

from services.payments.service import main

if __name__ == "__main__":
    main()
