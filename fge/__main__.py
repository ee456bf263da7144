"""The command line: ``python -m fge COMMAND [OPTIONS]``."""

import sys

from fge.commands import main

sys.exit(main())
