"""What the command `flexvideo` runs; outside the package, for Ctrl-C may fall into the seconds of its import."""

import sys


def main() -> int:
    """Run `flexvideo.cli.main`; return its exit code, or 130 when interrupted before it began."""
    try:
        from flexvideo.cli import main
    except KeyboardInterrupt:
        print("\nflexvideo: interrupted.", file=sys.stderr)
        return 130
    return main()
