"""`python -m mlimages`."""

from mlimages.cli import main

if __name__ == "__main__":
    main()
