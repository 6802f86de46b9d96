"""`python -m services.packaging`."""

from services.packaging.service import main

if __name__ == "__main__":
    main()
