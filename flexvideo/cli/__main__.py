"""`python -m flexvideo.cli` is the command `flexvideo`."""

import sys

from flexvideo.cli import main

if __name__ == "__main__":
    sys.exit(main())
