"""`python -m services.parcels`."""

from services.parcels.service import main

if __name__ == "__main__":
    main()
