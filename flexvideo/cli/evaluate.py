"""Commands that measure models: `retrieve`, `probe` and `evaluate`."""

import argparse
import re
import warnings
from pathlib import Path
from typing import get_args

from torch import nn

from flexvideo.active import flex_within
from flexvideo.cli.shared import (
    Commands,
    Options,
    command,
    device_argument,
    device_of,
    load_model,
    name,
    progress,
    rule_argument,
    source_arguments,
)
from flexvideo.data.datasets import DATASETS, ON_DISK, held_out_split
from flexvideo.data.opened import open_source
from flexvideo.data.source import ClipSource, require_learnable
from flexvideo.errors import ConfigError, DatasetError
from flexvideo.evaluate import (
    Features,
    NativeSize,
    Probe,
    Result,
    accuracy,
    cells,
    extract,
    knn,
    linear_probe,
    require_classes,
    retrieval,
    save_result,
)
from flexvideo.evaluate.extraction import TOKENS
from flexvideo.evaluate.grid import Cell
from flexvideo.evaluate.probe import Method
from flexvideo.evaluate.render import markdown
from flexvideo.evaluate.runner import Output
from flexvideo.evaluate.tables import geometry_tables
from flexvideo.models import VideoMamba
from flexvideo.output import require_folder
from flexvideo.policy import POLICIES
from flexvideo.swap import make_flexible, restore

RETRIEVE = """\
Retrieve videos of the same class over a grid of geometries: top-1, R@5/10/20 and mAP, with intervals.
Queries are the test split, the gallery is the train split, similarity is the cosine of class tokens. Every
video is decoded once for the whole grid; features are kept in OUT/features, so that a killed run goes on and
a larger grid only adds to them. The result is a JSON file with the protocol written out; `flexvideo table`
shows it beside others.

Baselines of a model that was trained at one size: `--policy static-patch --rule paper` resizes its tables, as
the paper does; `--policy native` resizes the clip to the model's own size and frame count; `--policy
static-tokens --rule auto` makes it flexible without training."""
PROBE = """\
Train a linear classifier of frozen features: accuracy on the test split, at 16 x 224 px or over a grid.
Its settings are chosen on a fifth of the train split that is held out, never on the test split; then it is
trained on all of the train split."""
EVALUATE = """\
Measure a classifier by its own head over a grid of geometries: top-1 and top-5 of the test split.
With several clips and crops of a video the class probabilities are averaged."""


def add(commands: Commands) -> None:
    """Register the commands."""
    example = (
        "flexvideo retrieve model.safetensors --data ucf101:/data/ucf101 --frames 8 16 32 64 "
        "--sizes 96 128 224 --out results/"
    )
    retrieve = command(commands, "retrieve", _retrieve, RETRIEVE, example=example)
    _shared_arguments(retrieve, features=True)
    retrieve.add_argument(
        "--gallery", metavar="TxR", help="one geometry for the gallery (default: the queries')"
    )
    retrieve.add_argument(
        "--knn", type=int, metavar="K", help="classify by the K nearest neighbours too; DINO's K is 20"
    )
    example = "flexvideo probe model.safetensors --data hmdb51:/data/hmdb51 --out results/"
    probe = command(commands, "probe", _probe, PROBE, example=example)
    _shared_arguments(probe, features=True)
    probe.add_argument(
        "--method",
        choices=get_args(Method),
        default="adamw",
        help="adamw: a grid of learning rates and weight decays; lbfgs: logistic regression solved exactly",
    )
    example = "flexvideo evaluate model.safetensors --data k400:/data/k400 --clips 4 --crops 3 --out results/"
    evaluate = command(commands, "evaluate", _evaluate, EVALUATE, example=example)
    _shared_arguments(evaluate, features=False)
    evaluate.add_argument(
        "--finetuned", action="store_true", help="tables are to say that it was fine-tuned on this data set"
    )


def _shared_arguments(parser: argparse.ArgumentParser, *, features: bool) -> None:
    source_arguments(parser)
    kinds = f"motion:short, motion:long, mocap:FILE, or one on disk: {ON_DISK}"
    parser.add_argument("--data", required=True, metavar="KIND:PATH", help=f"a data set: {kinds}")
    parser.add_argument("--fold", metavar="N", help="division into splits (default: the usual one)")
    usual = "train and test; val where there is no test, and of k400 and ssv2"
    parser.add_argument("--splits", nargs=2, metavar=("TRAIN", "TEST"), help=f"default: {usual}")
    parser.add_argument("--annotations", metavar="DIR", help="where the split files are, if elsewhere")
    for option, letter, first in (("frames", "T", 16), ("sizes", "R", 224)):
        what = "frame counts" if option == "frames" else "frame sizes in pixels"
        parser.add_argument(
            f"--{option}",
            type=int,
            nargs="+",
            default=[first],
            metavar=letter,
            help=f"{what} (default: {first})",
        )
    parser.add_argument(
        "--patches", type=int, nargs="+", default=[None], metavar="P", help="patches (default: the policy's)"
    )
    parser.add_argument(
        "--policy", choices=[*POLICIES, "native"], help="default: the checkpoint's, or static-tokens"
    )
    rule_argument(parser)
    _reading_arguments(parser)
    if features:
        parser.add_argument(
            "--pool", choices=("cls", "mean"), default="cls", help="class token, or mean of the patch tokens"
        )
    parser.add_argument(
        "--name",
        default="",
        help="what tables call the model (default: file or run, and policy); results of one name and other "
        "weights are averaged, as seeds of one recipe are",
    )
    parser.add_argument("--out", required=True, type=name, metavar="DIR", help="where the result goes")


def _reading_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clips", type=int, default=1, metavar="N", help="of a video, spread over it (default: 1)"
    )
    parser.add_argument(
        "--crops", type=int, default=1, metavar="N", help="of a clip, along its longer side (default: 1)"
    )
    parser.add_argument(
        "--sampling",
        choices=("uniform", "linspace", "videomamba"),
        default="uniform",
        help="which frames make a clip (default: %(default)s)",
    )
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out, and report, videos that cannot be read"
    )
    parser.add_argument(
        "--tokens", type=int, default=TOKENS, metavar="N", help="in a forward pass (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="threads that read videos (default: %(default)s)"
    )
    device_argument(parser)


def _retrieve(options: Options) -> None:
    at = None if options.gallery is None else _cell(options.gallery)
    test, train = _pair(options, at)
    results = [retrieval(test, train, name=options.name, at=at)]
    if options.knn is not None:
        results.append(knn(test, train, name=options.name, k=options.knn, at=at))
    _report(options, results)


def _probe(options: Options) -> None:
    test, train = _pair(options, None)
    _report(options, [linear_probe(train, test, name=options.name, probe=Probe(method=options.method))])


def _evaluate(options: Options) -> None:
    require_folder(options.out)
    source = _source(options, _splits(options)[1])
    model = _model(options)
    inner = model.model if isinstance(model, NativeSize) else model
    data = source.listed().name
    require_classes(inner.num_classes, data, source.classes, labels=inner.labels)
    if inner.labels is None:
        warnings.warn(
            f"the checkpoint records no classes; its outputs are taken for those of {data} in their order, "
            f"from {source.classes[0]!r} to {source.classes[-1]!r}",
            stacklevel=1,
        )
    scores = _extract(options, model, source, grid=_grid(options), output="scores")
    result = accuracy(scores, name=options.name, labels=inner.labels, finetuned=options.finetuned)
    _report(options, [result])


def _pair(options: Options, at: Cell | None) -> tuple[Features, Features]:
    """Features of the test split over the grid, and of the train split there, or at a cell of its own."""
    require_folder(options.out)
    learnt, tried = (_source(options, split) for split in _splits(options))
    require_learnable(learnt, tried)
    model = _model(options)
    grid = _grid(options)
    test = _extract(options, model, tried, grid=grid, output=options.pool)
    return test, _extract(options, model, learnt, grid=(at,) if at else grid, output=options.pool)


def _grid(options: Options) -> tuple[Cell, ...]:
    return cells(options.frames, options.sizes, options.patches)


def _splits(options: Options) -> tuple[str, str]:
    """Names of the split to learn from and of the one to try on: where there are three, the second.

    What is called "test" beside "val" has no public labels, or is what nobody reports; but in folders and
    lists of one's own it is what was kept for the end.
    """
    kind, _, place = options.data.partition(":")
    names = DATASETS[kind].splits.names if kind in DATASETS else ("train", "test")
    if not names:
        folder = Path(options.annotations or place).expanduser()
        kept = folder.is_dir() and any(path.stem == "test" for path in folder.iterdir())
        held_out = None if kept else held_out_split(options.data, annotations=options.annotations)
        names = ("train", held_out or "test")
    train, test = options.splits or names[:2]
    return train, test


def _source(options: Options, split: str) -> ClipSource:
    try:
        return open_source(
            options.data,
            split=split,
            fold=options.fold,
            annotations=options.annotations,
            on_error="skip" if options.skip_unreadable else "raise",
        )
    except (ConfigError, DatasetError) as error:
        raise type(error)(_of_splits(str(error))) from error


def _of_splits(message: str) -> str:
    """A message about splits in the words of commands that need two."""
    if re.search(r"has no (split|list) .*[Ii]t has", message):
        return f"{message} --splits TRAIN TEST names the two to take."
    return message.replace(
        "name no split (--split none)", "divide their videos into train/<class>/ and test/<class>/"
    )


def _model(options: Options) -> VideoMamba | NativeSize:
    native = options.policy == "native"
    model = load_model(options, policy=None if native else options.policy, device=device_of(options))
    if not native:
        return make_flexible(model)
    return NativeSize(model if flex_within(model) is None else restore(model))


def _extract(
    options: Options, model: nn.Module, source: ClipSource, *, grid: tuple[Cell, ...], output: Output
) -> Features:
    with progress(f"videos of {source.name}", len(source)) as bar:
        return extract(
            model,
            source,
            grid=grid,
            clips=options.clips,
            crops=options.crops,
            sampling=options.sampling,
            output=output,
            tokens=options.tokens,
            workers=options.workers,
            cache=Path(options.out) / "features",
            progress=bar,
        )


def _report(options: Options, results: list[Result]) -> None:
    for result in results:
        path = save_result(result, options.out)
        for table in geometry_tables([result]):
            print(markdown(table))
        if len(result.cells) == 1:
            print("\n" + ", ".join(f"{metric} {found}" for metric, found in result.cells[0].metrics.items()))
        counts = f"{len(result.labels):,} videos of {result.data} {result.queries.split}"
        if result.gallery:
            counts += f", {result.searched:,} of {result.gallery.split}"
        omitted = result.queries.omitted + (result.gallery.omitted if result.gallery else 0)
        lost = ((len(result.skipped), "could not be read"), (omitted, "listed, but not there"))
        counts += "".join(f"; {count:,} {what}" for count, what in lost if count)
        print(f"\n{counts}\nresult: {path}\n")


def _cell(text: str) -> Cell:
    frames, _, size = text.partition("x")
    if not (frames.isdigit() and size.isdigit()):
        raise ConfigError(f"--gallery takes frames x pixels, such as 16x224, and got {text!r}.")
    return Cell(int(frames), int(size))
