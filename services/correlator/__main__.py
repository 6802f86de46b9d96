"""`python -m services.correlator`."""

from farandole.correlator.main import main

if __name__ == "__main__":
    main()
