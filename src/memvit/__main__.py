"""`python -m memvit` is the command `memvit`."""

import sys

from memvit.cli import main

if __name__ == "__main__":
    sys.exit(main())
