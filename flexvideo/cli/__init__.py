"""The command line: every command is a thin call of one public function.

Mistakes end in one sentence on standard error and exit code 2; a command that ran and found something wrong
ends in exit code 1.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from tqdm import tqdm

from flexvideo import __version__
from flexvideo.cli import checkpoints, demo, evaluate, table, train, videos
from flexvideo.cli.shared import Options, in_options
from flexvideo.errors import ConfigError, FlexVideoError, VideoError

FAMILIES = (demo, checkpoints, videos, train, evaluate, table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code, or 2 after a mistake that a sentence explains."""
    options = _parser().parse_args(arguments)
    try:
        _require_one_process(options.command)
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _show_warning
            code = options.run(options) or 0
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # whoever read the output, such as `head`, has had enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return 141
    except (FlexVideoError, OSError) as error:
        print(
            f"flexvideo {options.command}: {in_options(str(error))}{_remedy(error, options)}", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print(f"\nflexvideo {options.command}: interrupted.", file=sys.stderr)
        return 130


def _require_one_process(command: str) -> None:
    """Refuse to do the same work several times, and to write it to the same files."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if command not in ("train", "finetune") and processes != "1":
        raise ConfigError(
            f"it was started in {processes} processes (WORLD_SIZE), each of which would do all of the work: "
            "start it without torchrun, for only train and finetune share their work."
        )


def _remedy(error: Exception, options: Options) -> str:
    """What may be done about a video that cannot be read, by commands that can do without it."""
    if not isinstance(error, VideoError) or getattr(options, "skip_unreadable", True):
        return ""
    beforehand = " `flexvideo check-videos` finds them beforehand." if "data" in options else ""
    return f" With --skip-unreadable such videos are left out and reported.{beforehand}"


def _show_warning(message: Warning | str, *_: object) -> None:
    tqdm.write(f"note: {in_options(str(message))}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flexvideo",
        description="Run and train any video state-space model at any frame count, frame and patch size.",
        epilog="`flexvideo COMMAND --help` says more, with an example.",
    )
    parser.add_argument("--version", action="version", version=f"flexvideo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for family in FAMILIES:
        family.add(commands)
    return parser
