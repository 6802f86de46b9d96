"""`python -m services.orders`."""

from services.orders.service import main

if __name__ == "__main__":
    main()
