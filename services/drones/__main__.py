"""`python -m services.drones`."""

from services.drones.service import main

if __name__ == "__main__":
    main()
