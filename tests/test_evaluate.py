"""Features over a grid: the same as cell by cell, each video read once, nothing dropped, nothing confused."""

import copy
import functools
from pathlib import Path

import pytest
import torch
import videos
from small import build
from torch import Tensor, nn

import flexvideo as fv
from flexvideo.data.clips import Size, read_clip, sample_frames
from flexvideo.data.motion import MotionSet
from flexvideo.data.records import VideoRecord, VideoSet
from flexvideo.data.source import ClipSource, RenderedSource, VideoSource
from flexvideo.errors import (
    CheckpointError,
    ConfigError,
    GeometryError,
    UnsupportedModelError,
    VideoError,
    VideoWarning,
)
from flexvideo.evaluate import Cell, Features, NativeSize, Views, cells, costs_of, extract
from flexvideo.evaluate.runner import Runner
from flexvideo.evaluate.views import read_views

GRID = cells((2, 3, 5), (24, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven videos of three classes and two shapes."""
    folder = tmp_path_factory.mktemp("evaluate")
    for n in range(7):
        fv.write_video(folder / f"{n}.mp4", videos.pictures(6 + 3 * n, 40, 56 if n < 5 else 48))
    return folder


def source_of(folder: Path, *, on_error="raise", **settings) -> VideoSource:
    records = [
        VideoRecord(str(path), n % 3, path.name) for n, path in enumerate(sorted(folder.glob("*.mp4")))
    ]
    return VideoSource(
        VideoSet("toys", "test", tuple(records), ("a", "b", "c")), on_error=on_error, **settings
    )


def tiny(**settings) -> fv.VideoMamba:
    return build(depth=1, embed_dim=16, **settings)


@functools.cache
def _found(**settings) -> nn.Module:
    return fv.make_flexible(tiny(), **settings)


def flexible(**settings) -> nn.Module:
    return copy.deepcopy(_found(**settings))


def one_by_one(model: nn.Module, source: VideoSource, cell: Cell, **settings) -> Tensor:
    rows = []
    for index in range(len(source)):
        clip = read_clip(source.identify(index), frames=cell.frames, size=cell.size, **settings)
        with torch.no_grad():
            rows.append(model.forward_features(clip, patch=cell.patch))
    return torch.cat(rows)


@pytest.mark.parametrize("tokens", [1, 300, 10**6])
def test_a_grid_is_its_cells_one_by_one(folder: Path, tokens: int) -> None:
    model, calls = flexible().train(), []
    found = extract(
        model, source_of(folder), grid=GRID, tokens=tokens, progress=lambda *call: calls.append(call)
    )
    assert model.training
    assert tuple(found.values) == GRID
    model.eval()
    for cell in GRID:
        torch.testing.assert_close(found.values[cell], one_by_one(model, source_of(folder), cell))
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert found.names == tuple(str(path) for path in sorted(folder.glob("*.mp4")))
    assert len(found) == 7
    assert calls[-1] == (7, 7)
    assert calls == sorted(calls)


@pytest.mark.parametrize(
    "views",
    [Views(), Views(clips=3), Views(clips=2, sampling="videomamba"), Views(sampling="random", seed=4)],
)
@pytest.mark.parametrize("kind", ["files", "drawn", "drawn at their own size"])
def test_views_are_those_that_read_gives(folder: Path, views: Views, kind: str) -> None:
    source, grid = source_of(folder), GRID
    if kind != "files":
        native = None if kind == "drawn" else (30, 44)
        source, grid = RenderedSource(MotionSet("test", per_class=1), native=native), cells((2, 3), (16, 24))
    for cell, clips in read_views(source, 2, grid, views).items():
        assert len(clips) == views.clips
        for clip, frames in enumerate(clips):
            read = source.read(
                2,
                frames=cell.frames,
                size=cell.size,
                sampling=views.sampling,
                clip=clip,
                clips=views.clips,
                seed=views.seed,
            )
            assert torch.equal(frames, read)


def test_a_video_is_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    whole = VideoSource.take

    def take(self: VideoSource, index: int, choose, size: Size) -> Tensor:
        frames = whole(self, index, choose, size)
        read.append((index, len(frames)))
        return frames

    monkeypatch.setattr(VideoSource, "take", take)
    extract(flexible(), source_of(folder), grid=GRID, clips=2, workers=1)
    assert [index for index, _ in read] == list(range(7))
    union = {n for t in (2, 3, 5) for clip in (0, 1) for n in sample_frames(24, t, clip=clip, clips=2)}
    assert read[6][1] == len(union) < 2 * (2 + 3 + 5)


def test_a_video_shorter_than_it_says_gives_what_it_has(tmp_path: Path) -> None:
    videos.scratched(tmp_path)
    source, cell = source_of(tmp_path), Cell(7, 24)
    with pytest.warns(VideoWarning, match="frames that can be decoded are used"):
        found = read_views(source, 0, [cell, Cell(3, 24)], Views(clips=2))
    with pytest.warns(VideoWarning, match="frames that can be decoded are used"):
        read = source.read(0, frames=7, size=24, clip=1, clips=2)
    assert torch.equal(found[cell][1], read)


def test_outputs_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = flexible()
    with torch.no_grad():
        model.norm_f.weight[3] = float("nan")
    for output in ("cls", "scores"):
        with pytest.raises(
            UnsupportedModelError, match=r"no numbers, or infinite, at 2x24: its weights have"
        ):
            extract(model, Counting(), grid=cells((2,), (24,)), output=output, cache=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_several_crops_are_spread_along_the_longer_side(folder: Path) -> None:
    source = source_of(folder)
    left, middle, right = read_views(source, 0, [Cell(2, 40)], Views(crops=3))[Cell(2, 40)]
    native = source.read(0, frames=2, size=None)
    assert torch.equal(left, native[:, :, :40])
    assert torch.equal(middle, native[:, :, 8:48])
    assert torch.equal(right, native[:, :, 16:])
    smaller = read_views(source, 0, [Cell(2, 24)], Views(crops=3))[Cell(2, 24)]
    assert torch.equal(smaller[1], source.read(0, frames=2, size=24))
    with pytest.raises(ConfigError, match="motion is drawn as squares, of which 3 crops are all the same"):
        read_views(RenderedSource(MotionSet("test")), 0, [Cell(2, 24)], Views(crops=3))


def test_views_are_averaged(folder: Path) -> None:
    model, source, cell = flexible(), source_of(folder), Cell(3, 24)
    found = extract(model, source, grid=[cell], clips=2, crops=3, tokens=200)
    runner = Runner(model, [cell], output="cls", tokens=10**6)
    with torch.no_grad():
        for index in range(len(source)):
            clips = read_views(source, index, [cell], Views(clips=2, crops=3))[cell]
            assert len(clips) == 6
            torch.testing.assert_close(found.values[cell][index], runner(cell, clips).mean(0))
        scores = extract(model, source, grid=[cell], clips=2, output="scores")
        expected = [
            model(read_clip(source.identify(1), frames=3, size=24, clip=clip, clips=2)).softmax(1)
            for clip in (0, 1)
        ]
    torch.testing.assert_close(scores.values[cell][1], torch.cat(expected).mean(0))
    torch.testing.assert_close(scores.values[cell].sum(1), torch.ones(7))


def test_the_mean_of_the_patch_tokens(folder: Path) -> None:
    model, source, cell = flexible(), source_of(folder), Cell(2, 24)
    found = extract(model, source, grid=[cell], output="mean")
    with torch.no_grad():
        tokens = model.forward_features(read_clip(source.identify(3), frames=2, size=24), all_tokens=True)
    torch.testing.assert_close(found.values[cell][3], tokens[0, 1:].mean(0))


def test_patches_of_the_grid(folder: Path) -> None:
    grid = cells((2,), (32,), (4, 8))
    model = flexible(policy="flex-all")
    found = extract(model, source_of(folder), grid=grid)
    for cell in grid:
        torch.testing.assert_close(found.values[cell], one_by_one(model, source_of(folder), cell))
    assert [found.costs[cell].tokens for cell in grid] == [2 * 64 + 1, 2 * 16 + 1]


def test_costs() -> None:
    model = flexible()
    costs = costs_of(model, GRID)
    assert {cost.grid for cost in costs.values()} == {(4, 4)}
    assert costs[Cell(5, 24)].tokens == 5 * 16 + 1
    assert costs[Cell(5, 24)].patch == (6, 6)
    assert 0 < costs[Cell(2, 24)].gflops < costs[Cell(5, 24)].gflops
    larger = costs_of(flexible(policy="static-patch"), [Cell(2, 48)])[Cell(2, 48)]
    assert (larger.tokens, larger.height) == (2 * 36 + 1, 48)

    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x) * float(x.mean())

    with pytest.warns(UserWarning, match="GFLOPs are left out: Stubborn does not run without values"):
        assert costs_of(Stubborn(), [Cell(4, 32)])[Cell(4, 32)].gflops is None


def test_native_size_is_the_clip_resized(folder: Path) -> None:
    plain = tiny()
    native, source = NativeSize(plain), source_of(folder)
    found = extract(native, source, grid=[Cell(4, 32), Cell(2, 24)])
    with torch.no_grad():
        own = [plain.forward_features(read_clip(source.identify(i), frames=4, size=32)) for i in range(7)]
        clip = read_clip(source.identify(0), frames=2, size=24)
        doubled = fv.resample.resize_clip(clip.repeat_interleave(2, dim=2), (32, 32))
        other = plain.forward_features(doubled)
    torch.testing.assert_close(found.values[Cell(4, 32)], torch.cat(own))
    torch.testing.assert_close(found.values[Cell(2, 24)][0], other[0])
    assert {cost.tokens for cost in found.costs.values()} == {4 * 16 + 1}
    assert found.model.policy == {"name": "native"}
    with pytest.raises(UnsupportedModelError, match=r"no resizing: `restore\(model\)` first\.$"):
        NativeSize(flexible())


def test_a_plain_model_runs_its_own_size(folder: Path) -> None:
    found = extract(tiny(), source_of(folder), grid=[Cell(4, 32)])
    assert found.model.policy is None
    with pytest.raises(GeometryError, match="make_flexible"):
        extract(tiny(), source_of(folder), grid=[Cell(4, 24)])


class Counting(ClipSource):
    """Counts what is read; clip 3 of the moody ones cannot be."""

    name, classes, flip_ok = "toys", ("a", "b"), True

    def __init__(self, *, moody: bool = False, count: int = 4, on_error="raise", seed: int = 0) -> None:
        super().__init__()
        self.taken: list[int] = []
        self.moody, self.count, self.on_error, self.seed = moody, count, on_error, seed

    @property
    def labels(self) -> tuple[int, ...]:
        return tuple(n % 2 for n in range(self.count))

    def identify(self, index: int) -> str:
        return f"toy {index}"

    def take(self, index: int, choose, size: Size) -> Tensor:
        if index == 3 and self.moody and size is None:
            raise VideoError("toy 3 is broken.")
        if size is None:  # others are looked at to tell one set from another
            self.taken.append(index)
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        frames = torch.randint(256, (9, 40, 56, 3), dtype=torch.uint8, generator=generator)
        return frames[choose(9)]


def same(one: Features, other: Features) -> bool:
    return all(torch.equal(one.values[cell], other.values[cell]) for cell in one.values)


def test_what_is_kept_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexvideo.evaluate.extraction._KEPT", 3)
    grid, source = cells((2,), (24, 32)), Counting()
    first = extract(flexible(), source, grid=grid, cache=tmp_path)
    assert sorted(source.taken) == [0, 1, 2, 3]
    again = Counting()
    assert same(extract(flexible(), again, grid=grid, cache=tmp_path), first)
    assert again.taken == []
    larger = extract(flexible(), again, grid=cells((2, 3), (24, 32)), cache=tmp_path)
    assert sorted(again.taken) == [0, 1, 2, 3]  # the new cells alone
    assert torch.equal(larger.values[grid[0]], first.values[grid[0]])
    torch.testing.assert_close(larger.values, extract(flexible(), again, grid=cells((2, 3), (24, 32))).values)


def test_what_is_kept_and_damaged_is_said(tmp_path: Path) -> None:
    extract(flexible(), Counting(), grid=[Cell(2, 24)], cache=tmp_path)
    (part,) = tmp_path.rglob("*.safetensors")
    part.write_bytes(part.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"truncated or damaged: .*\. Delete it, and what it kept is"):
        extract(flexible(), Counting(), grid=[Cell(2, 24)], cache=tmp_path)


def test_another_protocol_is_never_confused(tmp_path: Path) -> None:
    grid = cells((2,), (24,))
    extract(flexible(), Counting(), grid=grid, cache=tmp_path)
    changed = flexible()
    with torch.no_grad():
        changed.layers[0].mixer.A_log[0, 0] += 1e-3
    moved = flexible()
    moved.mean = (0.5, 0.5, 0.5)
    others = [
        (changed, Counting(), {}),
        (moved, Counting(), {}),
        (fv.make_flexible(tiny(norm_epsilon=1e-3)), Counting(), {}),
        (flexible(rule="paper"), Counting(), {}),
        (flexible(policy="static-patch"), Counting(), {}),
        (NativeSize(tiny()), Counting(), {}),
        (flexible(), Counting(seed=1), {}),
        (flexible(), Counting(count=6), {}),
        (flexible(), Counting(), {"clips": 2}),
        (flexible(), Counting(), {"sampling": "linspace"}),
        (flexible(), Counting(), {"output": "mean"}),
        (flexible().double(), Counting(), {}),
    ]
    for model, source, settings in others:
        extract(model, source, grid=grid, cache=tmp_path, **settings)
        assert source.taken, settings
    assert len(list(tmp_path.iterdir())) == 1 + len(others)
    for model, source, settings in others[6:9]:
        source.taken.clear()
        extract(model, source, grid=grid, cache=tmp_path, **settings)
        assert not source.taken, settings


def test_a_killed_pass_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexvideo.evaluate.extraction._KEPT", 2)
    grid = cells((2,), (24,))
    with pytest.raises(VideoError, match="toy 3 is broken"):
        extract(flexible(), Counting(moody=True, count=6), grid=grid, cache=tmp_path)
    repaired = Counting(count=6)
    found = extract(flexible(), repaired, grid=grid, cache=tmp_path)
    assert sorted(repaired.taken) == [2, 3, 4, 5]
    assert same(found, extract(flexible(), repaired, grid=grid, cache=tmp_path / "whole"))


def test_a_bad_clip_is_skipped_and_reported_every_time(tmp_path: Path) -> None:
    grid, source = cells((2,), (24,)), Counting(moody=True, on_error="skip")
    with pytest.warns(VideoWarning, match="skipped toy 3: is broken"):
        found = extract(flexible(), source, grid=grid, cache=tmp_path)
    assert [str(problem) for problem in found.skipped] == ["toy 3: is broken."]
    assert found.labels.tolist() == [0, 1, 0]
    assert found.names == ("toy 0", "toy 1", "toy 2")
    again = Counting(moody=True, on_error="skip")
    with pytest.warns(VideoWarning, match="skipped toy 3: is broken"):
        kept = extract(flexible(), again, grid=grid, cache=tmp_path)
    assert kept.skipped == found.skipped
    assert same(kept, found)
    assert again.taken == []
    with pytest.raises(VideoError, match="toy 3 is broken"):
        extract(flexible(), Counting(moody=True), grid=grid, cache=tmp_path)


def test_not_one_readable_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    with (
        pytest.warns(VideoWarning, match="skipped"),
        pytest.raises(
            VideoError, match=r"Not one of the 1 videos of toys test can be read; the first is .*a\.mp4"
        ),
    ):
        extract(flexible(), source_of(tmp_path, on_error="skip"), grid=GRID)
    with pytest.raises(VideoError, match="toys test holds no videos"):
        extract(flexible(), VideoSource(VideoSet("toys", "test", (), ("a",))), grid=GRID)


class Small(nn.Module):
    """Has room for so many tokens, whatever the device."""

    def __init__(self, room: int, error: Exception) -> None:
        super().__init__()
        self.model, self.room, self.error = flexible(policy="static-patch"), room, error

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def forward_features(self, x: Tensor) -> Tensor:
        if x.shape[0] * x.shape[2] * (x.shape[3] // 8) ** 2 > self.room:
            raise self.error
        return self.model.forward_features(x)


@pytest.mark.parametrize(
    ("room", "says"),
    [
        (200, r" with 2 clips at a time, but does with 1: set `tokens` to 145\."),
        (100, r"; 2x48 \(73 tokens\) does: leave out what is larger, or use static tokens"),
        (5, r", nor does any smaller cell of this grid: use fewer frames or smaller ones\."),
    ],
)
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("out"), RuntimeError("can't allocate memory: 5 bytes")]
)
def test_too_little_memory(room: int, says: str, error: Exception) -> None:
    what = r"^4x48 \(145 tokens a clip\) does not fit into the memory of cpu"
    with pytest.raises(GeometryError, match=what + says):
        extract(Small(room, error), Counting(), grid=cells((2, 4), (48,)), tokens=300)


def test_where_tokens_are_as_many_smaller_frames_fit() -> None:
    model = flexible(policy="static-tokens")

    def refuse(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if arguments[0].shape[3] > 32 and not arguments[0].is_meta:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model.patch_embed.register_forward_pre_hook(refuse)
    with pytest.raises(
        GeometryError, match=r"^4x48 \(65 tokens a clip\) .* cpu; 4x24 \(65 tokens\) does: leave"
    ):
        extract(model, Counting(), grid=cells((4,), (24, 48)), tokens=65)


def test_clips_too_large_to_be_read() -> None:
    class Large(Counting):
        def take(self, index, choose, size):
            if size is None:
                raise RuntimeError(
                    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes"
                )
            return super().take(index, choose, size)

    message = r" at 2 cells do not fit into memory while 2 videos are read .* the largest cell, 4x48\.$"
    with pytest.raises(GeometryError, match=message):
        extract(flexible(), Large(), grid=cells((2, 4), (48,)))


def test_other_runtime_errors_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match="something else"):
        extract(Small(0, RuntimeError("something else")), Counting(), grid=cells((2,), (48,)))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"grid": ()}, "need a cell and a worker, got 0 and 2"),
        ({"workers": 0}, "got 1 and 0"),
        ({"tokens": 0}, "`tokens` at least 1; got 'cls' and 0"),
        ({"output": "logits"}, "is one of cls, mean, scores"),
        ({"clips": 0}, "at least 1 clip and 1 crop, got 0 and 1"),
        ({"sampling": "best"}, "Unknown sampling 'best'"),
        ({"sampling": "linspace", "clips": 2}, "use another sampling"),
    ],
)
def test_impossible_settings(settings: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        extract(flexible(), Counting(), **({"grid": cells((2,), (24,))} | settings))


def test_impossible_grids() -> None:
    with pytest.raises(ConfigError, match="at least 1 frame, and 1 pixel of size and patch"):
        cells((0,), (24,))
    with pytest.raises(ConfigError, match="at least one frame count, one size and one patch"):
        cells((), (24,))
    with pytest.raises(GeometryError, match="smaller than the model's grid of 4 tokens"):
        extract(flexible(), Counting(), grid=cells((2,), (3,)))


def test_models_without_such_outputs(folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="Linear has no method `forward_features`"):
        Runner(nn.Linear(2, 2), [], output="cls", tokens=1)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = flexible()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

        def forward_features(self, x: Tensor) -> Tensor:
            return self.model.forward_features(x, all_tokens=True)

    with pytest.raises(UnsupportedModelError, match=r"Tokens gave \(4, 33, 16\) for 4 clips, not \(4, d\)"):
        extract(Tokens(), Counting(), grid=cells((2,), (24,)))
