"""``python -m refkd``: the command line."""

import sys

from refkd.cli import main

if __name__ == "__main__":
    sys.exit(main())
