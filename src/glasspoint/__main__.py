"""`python -m glasspoint`: the command `glasspoint`, for an environment whose scripts are not on the PATH."""

from glasspoint.cli.main import main

if __name__ == "__main__":
    main()
