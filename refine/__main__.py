"""`python -m refine`, which is the command `refine` of this Python."""

import sys

from refine.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
