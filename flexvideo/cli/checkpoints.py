"""Commands about checkpoints: `info`, `convert`."""

from flexvideo.checkpoints import describe
from flexvideo.cli.shared import Commands, Options, command, source_arguments
from flexvideo.folder import convert

INFO = "Say what a checkpoint is: model, sizes, classes, and what of it can flex."
CONVERT = "Rewrite a checkpoint: an official .pth as a folder of ours, or back."


def add(commands: Commands) -> None:
    """Register the commands."""
    info = command(
        commands,
        "info",
        _info,
        INFO,
        example="flexvideo info videomamba_m16_k400_mask_ft_f16_res224.pth",
    )
    source_arguments(info)
    convert_ = command(
        commands, "convert", _convert, CONVERT, example="flexvideo convert official.pth my-model/"
    )
    source_arguments(convert_)
    convert_.add_argument("target", metavar="DST", help="a folder, or a file ending in .safetensors or .pth")


def _info(options: Options) -> None:
    print(describe(options.checkpoint, filename=options.filename, revision=options.revision))


def _convert(options: Options) -> None:
    convert(options.checkpoint, options.target, filename=options.filename, revision=options.revision)
    print(f"wrote {options.target}")
