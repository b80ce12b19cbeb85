"""`python -m mlimages`."""

from mlimages.cli.main import main

if __name__ == "__main__":
    main()
