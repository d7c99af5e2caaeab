"""Commands about checkpoints: `info`, `convert`."""

from flexvideo.checkpoints import describe
from flexvideo.cli.shared import Commands, Options, command, name, source_arguments
from flexvideo.data.records import plural
from flexvideo.featurefile import feature_settings, holds_features, load_features
from flexvideo.folder import convert

INFO = """\
Say what a checkpoint is: model, sizes, classes, and what of it can flex.
Of a file that `flexvideo features` wrote it says how the features came about."""
CONVERT = "Rewrite a checkpoint: an official .pth as a folder of ours, or back."


def add(commands: Commands) -> None:
    """Register the commands."""
    example = "flexvideo info videomamba_m16_k400_mask_ft_f16_res224.pth"
    source_arguments(command(commands, "info", _info, INFO, example=example))
    example = "flexvideo convert official.pth my-model/"
    parser = command(commands, "convert", _convert, CONVERT, example=example)
    source_arguments(parser)
    parser.add_argument(
        "target", type=name, metavar="DST", help="a folder, or a file ending in .safetensors or .pth"
    )
    parser.add_argument("--force", action="store_true", help="write over a DST that is there")


def _info(options: Options) -> None:
    if holds_features(options.checkpoint):
        print(_features_in_words(options.checkpoint))
    else:
        print(describe(options.checkpoint, filename=options.filename, revision=options.revision))


def _features_in_words(path: str) -> str:
    names, features = load_features(path)
    rows = {
        "features": f"{plural(len(names), 'video')}, {features.shape[1]} numbers each"
    } | feature_settings(path)
    if len(rows) == 1:
        rows["settings"] = "none recorded"
    return "\n".join([path, *(f"  {title:<11}{_in_words(value)}" for title, value in rows.items())])


def _in_words(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _convert(options: Options) -> None:
    source = convert(
        options.checkpoint,
        options.target,
        filename=options.filename,
        revision=options.revision,
        overwrite=options.force,
    )
    print(f"wrote {options.target} from {source}")
