"""`python -m pagemerge`."""

import sys

from pagemerge.commands import main

if __name__ == "__main__":
    sys.exit(main())
