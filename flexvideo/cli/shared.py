"""What commands share: how one is registered, the arguments of several, the device, the progress bar."""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from flexvideo.checkpoints import load
from flexvideo.devices import usable_device
from flexvideo.models import VideoMamba
from flexvideo.policy import POLICIES
from flexvideo.resample import RULES

Options = argparse.Namespace
Commands = argparse._SubParsersAction
Parser = argparse._ActionsContainer  # a parser, or a group of its arguments
Progress = Callable[[int, int], None]

CHECKPOINT = "a file, a folder, or OWNER/NAME on the Hub (HF_TOKEN for private ones)"


RECIPE = ("epochs", "steps", "tokens", "clips", "accumulate", "lr", "seed")
"""Fields of a training's recipe that have options of their own."""


def in_options(message: str) -> str:
    """A message of the library in the words of the command line.

    Example:
        >>> in_options("m holds 2 weight files, a.pth, b.pth: pass filename=.")
        'm holds 2 weight files, a.pth, b.pth: pass --filename.'
        >>> in_options("TrainConfig: `clips` must be at least 1, or None, got 0.")
        '--clips must be at least 1, got 0.'
        >>> in_options("config.epochs was 2 and is 3; config.ema was None and is 0.9")
        '--epochs was 2 and is 3; --set ema was None and is 0.9'
        >>> in_options("if it lies elsewhere, name its folder as `annotations`.")
        'if it lies elsewhere, name its folder by --annotations.'
    """
    message = message.replace(", set HF_TOKEN or pass token=", " or set HF_TOKEN")
    message = message.replace("overwrite=True", "--force")
    message = re.sub(r"(folder( of .*?)?) as `annotations`", r"\1 by --annotations", message)
    message = message.replace(", and listed in `.omitted`", "")
    own = rf"^TrainConfig: `({'|'.join(RECIPE)})` must be (.+?)(?:,? or None)?, got"
    message = re.sub(own, r"--\1 must be \2, got", message)
    message = re.sub(r"^TrainConfig: `(\w+)`", r"--set \1", message)
    message = message.replace("`shard`", "--shard")
    message = re.sub(rf"\bconfig\.({'|'.join(RECIPE)}) was", r"--\1 was", message)
    message = re.sub(r"\bconfig\.([\w.]+) was", r"--set \1 was", message)
    message = re.sub(r"\btraining policy\.(frames|sizes) was", r"--\1 was", message)
    message = re.sub(r"\b(filename|revision)=(?=')", r"--\1 ", message)
    return re.sub(r"\b(filename|revision)=", r"--\1", message)


def name(text: str) -> str:
    """The type of an argument that names something: a shell gives an empty one for a variable not set.

    Example:
        >>> name("model.pth")
        'model.pth'
    """
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def command(
    commands: Commands, called: str, run: Callable[[Options], int | None], text: str, *, example: str
) -> argparse.ArgumentParser:
    """Register a command, to whose parser arguments are then added.

    Args:
        commands: what `add` of a module of commands is given.
        called: its name, as typed.
        run: does the work; returns an exit code, None for 0.
        text: shown by `flexvideo NAME --help`; what comes before its first colon, by `flexvideo --help`.
        example: a whole line that can be typed.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        called,
        help=text.partition(":")[0].replace("\n", " ").rstrip("."),
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def checkpoint_arguments(parser: Parser, *, required: bool = True) -> None:
    """Add `--checkpoint`, `--filename` and `--revision`, which `load_model` reads."""
    parser.add_argument("--checkpoint", required=required, type=name, metavar="CHECKPOINT", help=CHECKPOINT)
    _place_arguments(parser)


def source_arguments(parser: Parser) -> None:
    """Add the checkpoint as the first argument, for commands that are about it: `options.checkpoint`."""
    parser.add_argument("checkpoint", type=name, metavar="CHECKPOINT", help=CHECKPOINT)
    _place_arguments(parser)


def _place_arguments(parser: Parser) -> None:
    parser.add_argument("--filename", metavar="F", help="which file of a folder or repository")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a repository")


def policy_argument(parser: Parser) -> None:
    """Add `--policy`."""
    parser.add_argument(
        "--policy", choices=list(POLICIES), help="default: the checkpoint's, or static-tokens"
    )


def rule_argument(parser: Parser) -> None:
    """Add `--rule`."""
    parser.add_argument(
        "--rule", choices=list(RULES), help="how to resample (default: the checkpoint's, or auto)"
    )


def clip_arguments(parser: Parser, *, frames: int = 16, size: int = 224) -> None:
    """Add `--frames` and `--size` of a clip."""
    parser.add_argument(
        "--frames", type=int, default=frames, metavar="T", help="frames a clip (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=int, default=size, metavar="R", help="frame side in pixels (default: %(default)s)"
    )


def device_argument(parser: Parser) -> None:
    """Add `--device`, which `device_of` reads."""
    parser.add_argument("--device", metavar="D", help="cpu, cuda, ... (default: cuda where there is one)")


def device_of(options: Options) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        ConfigError: it cannot be used here.
    """
    if options.device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return usable_device(options.device)


def load_model(
    options: Options, *, policy: str | None = None, device: torch.device | str | None = None
) -> VideoMamba:
    """Load `--checkpoint`, under `--rule`: flexible where it, a policy or a rule says so.

    Of a checkpoint from the Hub the commit is printed, for it may be another one tomorrow.
    """
    model = load(
        options.checkpoint,
        filename=options.filename,
        revision=options.revision,
        policy=policy,
        rule=options.rule,
        device=device,
    )
    if not Path(options.checkpoint).expanduser().exists():
        print(f"checkpoint: {model.source}", file=sys.stderr)
    return model


@contextmanager
def progress(unit: str, total: int | None = None) -> Iterator[Progress]:
    """A bar on a terminal, nothing elsewhere; gives the function `(done, total)` that moves it."""
    with tqdm(total=total, unit=f" {unit}", file=sys.stderr, disable=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
