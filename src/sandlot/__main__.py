"""`python -m sandlot`: the command line, for launchers that start modules."""

from sandlot.cli.main import main

if __name__ == "__main__":
    main()
