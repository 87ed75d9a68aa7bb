"""`python -m batchrouter`: the command line, where its script is not on the path."""

from batchrouter.cli import main

if __name__ == "__main__":
    main()
