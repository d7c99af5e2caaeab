"""What the command `flexvideo` runs; outside the package, since Ctrl-C may fall into the import of that."""

import os
import signal
import sys


def main() -> int:
    """Run `flexvideo.cli.main`; return its exit code, or end with 130 when interrupted before it began."""
    # No KeyboardInterrupt: in the middle of its import, a library may take one for a missing module.
    usual = signal.signal(signal.SIGINT, _end)
    from flexvideo.cli import main

    signal.signal(signal.SIGINT, usual)
    return main()


def _end(*_: object) -> None:
    print("\nflexvideo: interrupted.", file=sys.stderr, flush=True)
    os._exit(130)
