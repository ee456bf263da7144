"""The command line: ``python cli.py COMMAND [OPTIONS]``."""

import sys

from fge.commands import main

if __name__ == "__main__":
    sys.exit(main())
