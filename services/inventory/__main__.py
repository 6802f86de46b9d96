"""`python -m services.inventory`."""

from services.inventory.service import main

if __name__ == "__main__":
    main()
