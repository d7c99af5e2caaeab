"""Features of a source over a grid of geometries, in one pass over the data, kept for the next time."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import flexvideo
from flexvideo.data.clips import Sampling
from flexvideo.data.records import Problem
from flexvideo.data.room import lacks_memory, require_room
from flexvideo.data.source import ClipSource
from flexvideo.discover import plan_for
from flexvideo.errors import ConfigError, GeometryError, VideoError
from flexvideo.evaluate.facts import ModelFacts, SourceFacts, facts_of_model, facts_of_source
from flexvideo.evaluate.grid import Cell, Cost, costs_of
from flexvideo.evaluate.native import NativeSize
from flexvideo.evaluate.runner import Output, Runner
from flexvideo.evaluate.store import Part, Store, joined
from flexvideo.evaluate.views import Views, read_views
from flexvideo.features import evaluating

TOKENS = 32768
_KEPT = 256  # videos of which outputs are written to disk together: what a killed pass loses at most

Read = dict[Cell, list[Tensor]]


@dataclass(frozen=True)
class Features:
    """Outputs of a model for the clips of a source at every cell of a grid.

    Args:
        values: a row for each clip, the average over its views, float32.
        labels: classes of the rows.
        names: what the clips are called.
        classes: names of the classes.
        costs: of every cell.
        skipped: clips that could not be read and have no row.
        model: whose outputs these are.
        source: whose clips.
        views: clips and crops that were averaged.
        output: what of the model.
    """

    values: dict[Cell, Float[Tensor, "n d"]]
    labels: Int[Tensor, " n"]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    costs: dict[Cell, Cost]
    skipped: tuple[Problem, ...]
    model: ModelFacts
    source: SourceFacts
    views: Views
    output: Output

    def __len__(self) -> int:
        return len(self.labels)


def extract(
    model: nn.Module,
    source: ClipSource,
    *,
    grid: Sequence[Cell],
    clips: int = 1,
    crops: int = 1,
    sampling: Sampling = "uniform",
    output: Output = "cls",
    tokens: int = TOKENS,
    workers: int = 2,
    cache: str | Path | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Features:
    """Run a model over all clips of a source at every cell of a grid, decoding each video once.

    Every cell gets exactly the frames that reading it alone gives, resized once from the video's own size.
    Features are averaged over views as they are, class probabilities after the softmax. Every clip has a row;
    one that cannot be read is dealt with as the source says: raise, or skip and report.

    Args:
        model: flexible, `NativeSize`, or plain where the grid is the model's own size; runs on its device.
        source: the clips.
        grid: such as `cells((8, 16), (96, 224))` gives.
        clips: of each video, spread over it.
        crops: of each clip: 1 is the square in the centre, several are spread along the longer side.
        sampling: as for `sample_frames`.
        output: "cls", what `forward_features` gives; "mean", the average of its patch tokens; "scores", class
            probabilities.
        tokens: in one forward pass, where more than one clip is in it.
        workers: threads that read ahead of the model.
        cache: folder in which values are kept, by weights, source and protocol, and found again.
        progress: called with the number of videos done and their total.

    Raises:
        VideoError: a video that cannot be read, or not one that can.
        GeometryError: a cell that the policy cannot run, or that does not fit into memory.
        UnsupportedModelError: the model has no such output.
        ConfigError: an impossible number, or an empty grid.

    Example:
        >>> from flexvideo import VideoMamba, make_flexible
        >>> from flexvideo.data.motion import MotionSet
        >>> from flexvideo.data.source import RenderedSource
        >>> from flexvideo.evaluate import cells
        >>> model = make_flexible(VideoMamba(img_size=32, patch_size=8, depth=1, embed_dim=16, num_frames=4))
        >>> clips = RenderedSource(MotionSet("test", actions=("bow", "jump"), per_class=2))
        >>> found = extract(model, clips, grid=cells((2, 4), (16,)))
        >>> {str(cell): tuple(values.shape) for cell, values in found.values.items()}
        {'2x16': (4, 16), '4x16': (4, 16)}
    """
    if not grid or workers < 1:
        raise ConfigError(f"Features need a cell and a worker, got {len(grid)} and {workers}.")
    views = Views(clips, crops, sampling)
    for cell in grid:
        require_room(cell.frames, cell.size, cell.size)
    facts = facts_of_model(model), facts_of_source(source)
    with evaluating(model), torch.no_grad():
        runner = Runner(model, grid, output=output, tokens=tokens)
        costs = costs_of(model, grid)
        key = {
            "format": [flexvideo.__version__, _KEPT],
            "model": asdict(facts[0]) | {"source": ""},  # the same weights from elsewhere
            "code": [str(model), str(plan_for(model.model if isinstance(model, NativeSize) else model))],
            "dtype": str(next(model.parameters()).dtype),
            "clips": asdict(facts[1]),
            "views": asdict(views),
            "output": output,
            "normalisation": [runner.mean, runner.std],
        }
        store = None if cache is None else Store(Path(cache), key)
        parts = _collect(runner, source, grid, views, store=store, workers=workers, progress=progress)
    kept, rows = _common(parts, source)
    return Features(
        values=kept,
        labels=torch.tensor(source.labels)[rows],
        names=tuple(source.identify(row) for row in rows.tolist()),
        classes=source.classes,
        costs=costs,
        skipped=tuple(source.skipped[index] for index in sorted(source.skipped)),
        model=facts[0],
        source=facts[1],
        views=views,
        output=output,
    )


def _collect(
    runner: Runner,
    source: ClipSource,
    grid: Sequence[Cell],
    views: Views,
    *,
    store: Store | None,
    workers: int,
    progress: Callable[[int, int], object] | None,
) -> dict[Cell, Part]:
    """Outputs for every cell: those that are kept, and the others in one pass."""
    parts: dict[Cell, list[Part]] = {cell: [] for cell in grid}
    step = _KEPT if store else max(1, len(source))
    for start in range(0, len(source), step):
        chunk = range(start, min(start + step, len(source)))
        found = {cell: store.get(cell, start) for cell in grid} if store else {}
        known = {cell: part for cell, part in found.items() if part and _usable(part, source)}
        missing = [cell for cell in grid if cell not in known]
        if missing:
            done = progress or (lambda done, total: None)
            fresh = _pass(runner, source, chunk, missing, views, workers=workers, progress=done)
            if store:
                for cell, part in fresh.items():
                    store.put(cell, start, part)
            known |= fresh
        elif progress:
            progress(chunk.stop, len(source))
        for cell in grid:
            parts[cell].append(known[cell])
    if not len(source):
        raise VideoError(f"{source.name} holds no videos.")
    return {cell: joined(listed) for cell, listed in parts.items()}


def _usable(part: Part, source: ClipSource) -> bool:
    """Whether what is kept is what reading would give; clips that were skipped are reported again."""
    if part.skipped and source.on_error == "raise":
        return False
    for index, reason in part.skipped.items():
        source.skip(index, VideoError(f"{source.identify(index)} {reason}"))
    return True


def _pass(
    runner: Runner,
    source: ClipSource,
    chunk: range,
    grid: Sequence[Cell],
    views: Views,
    *,
    workers: int,
    progress: Callable[[int, int], object],
) -> dict[Cell, Part]:
    """Read some videos once, and run all their views at every cell."""
    sums: dict[Cell, dict[int, Tensor]] = {cell: {} for cell in grid}
    waiting: dict[Cell, list[tuple[int, Tensor]]] = {cell: [] for cell in grid}

    def run(cell: Cell, most: int) -> None:
        batch, waiting[cell] = waiting[cell][:most], waiting[cell][most:]
        for (index, _), row in zip(batch, runner(cell, [clip for _, clip in batch]), strict=True):
            sums[cell][index] = sums[cell][index] + row if index in sums[cell] else row

    for index, read in _read_ahead(source, chunk, grid, views, workers):
        for cell in grid:
            waiting[cell] += [(index, clip) for clip in read[cell]]
            while len(waiting[cell]) >= runner.capacity[cell]:
                run(cell, runner.capacity[cell])
        progress(index + 1, len(source))
    for cell in grid:
        if waiting[cell]:
            run(cell, len(waiting[cell]))
    progress(chunk.stop, len(source))
    reasons = {index: source.skipped[index].reason for index in chunk if index in source.skipped}
    return {cell: _part(sums[cell], views.count, reasons) for cell in grid}


def _part(sums: dict[int, Tensor], views: int, skipped: dict[int, str]) -> Part:
    rows = sorted(sums)
    values = torch.stack([sums[row] for row in rows]) / views if rows else torch.zeros(0, 0)
    return Part(torch.tensor(rows, dtype=torch.long), values, skipped)


def _read_ahead(
    source: ClipSource, chunk: range, grid: Sequence[Cell], views: Views, workers: int
) -> Iterator[tuple[int, Read]]:
    """Read videos in threads, a few ahead of need; decoding does not hold the interpreter's lock."""
    waiting: deque[Future[Read]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            upcoming = iter(chunk)
            for index in chunk:
                while len(waiting) <= workers and (following := next(upcoming, None)) is not None:
                    waiting.append(pool.submit(read_views, source, following, grid, views))
                try:
                    yield index, waiting.popleft().result()
                except VideoError as error:
                    source.skip(index, error)
                except (RuntimeError, OSError) as error:
                    if not lacks_memory(error):
                        raise
                    raise GeometryError(_too_large(source.identify(index), grid, workers)) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _too_large(name: str, grid: Sequence[Cell], workers: int) -> str:
    largest = max(grid, key=lambda cell: cell.frames * cell.size**2)
    return (
        f"The clips of {name} at {len(grid)} cells do not fit into memory while {workers} videos are read at "
        f"a time: set `workers` lower, or leave out the largest cell, {largest}."
    )


def _common(
    parts: dict[Cell, Part], source: ClipSource
) -> tuple[dict[Cell, Float[Tensor, "n d"]], Int[Tensor, " n"]]:
    """Rows of the clips that every cell has."""
    lost = {index for part in parts.values() for index in part.skipped}
    rows = torch.tensor([row for row in range(len(source)) if row not in lost], dtype=torch.long)
    if not len(rows):
        reason = source.skipped[min(lost)]
        raise VideoError(
            f"Not one of the {len(source):,} videos of {source.name} can be read; the first is {reason}"
        )
    return {cell: part.values[torch.isin(part.rows, rows)] for cell, part in parts.items()}, rows
