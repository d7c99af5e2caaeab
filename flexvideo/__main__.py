"""`python -m flexvideo` is the command line, for `torchrun -m flexvideo train ...`."""

import sys

from flexvideo.cli import main

if __name__ == "__main__":
    sys.exit(main())
