"""`python main.py`: the command line of diffing; see `python main.py --help`."""

import sys

from diffing.cli import main

if __name__ == "__main__":
    sys.exit(main())
