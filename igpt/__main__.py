"""`python -m igpt` is the same as `igpt`."""

from igpt.cli.main import main

if __name__ == "__main__":
    main()
