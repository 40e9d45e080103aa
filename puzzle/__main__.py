"""`python -m puzzle` is the command line."""

from puzzle.cli import main

if __name__ == "__main__":
    main()
