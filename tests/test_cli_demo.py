"""The first command: what it prints and leaves, and the two small models that it shows."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

import flexvideo as fv
from flexvideo.cli import main
from flexvideo.data.motion import MotionSet
from flexvideo.demo import pair, recipe
from flexvideo.demo.grid import Cell, points, run_grid, table_lines
from flexvideo.demo.pair import FILES, accuracy_lines, finding, measure_pair
from flexvideo.errors import UnsupportedModelError
from flexvideo.evaluate import load_result
from flexvideo.train import TrainConfig


@pytest.fixture
def checkpoint(tmp_path):
    model = fv.VideoMamba(img_size=32, patch_size=8, depth=2, embed_dim=32, num_classes=5, num_frames=4)
    path = tmp_path / "model.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "video.mp4"
    fv.write_video(path, torch.randint(0, 255, (12, 48, 64, 3), dtype=torch.uint8))
    return path


@pytest.fixture
def cheap(monkeypatch):
    """The demo of a small model, a small grid and few clips."""
    small = fv.VideoMamba(img_size=32, patch_size=8, depth=1, embed_dim=32, num_classes=5, num_frames=4)
    monkeypatch.setattr("flexvideo.cli.demo.videomamba_tiny", lambda **_: small)
    monkeypatch.setattr(pair, "_CLIPS", 1)
    monkeypatch.setattr("flexvideo.cli.demo.measure_pair", lambda files, *, progress: _measured(files))
    return ["--frames", "2", "--sizes", "32", "--policies", "temporal"]


def _measured(files):
    return measure_pair(files, frames=(8,), sizes=(24, 48))


def test_demo_shows_every_geometry(tmp_path, checkpoint, video, capsys):
    out = tmp_path / "out"
    sizes = ["--frames", "2", "8", "--sizes", "24", "40"]
    assert (
        main(["demo", "--checkpoint", str(checkpoint), "--video", str(video), "--out", str(out), *sizes]) == 0
    )
    cells = json.loads((out / "grid.json").read_text())
    assert len(cells) == 5 * 2 * 2
    assert all(cell["gflops"] > 0 and -1 <= cell["cosine"] <= 1.0001 for cell in cells)
    static = [cell for cell in cells if cell["policy"] == "static-tokens"]
    assert {tuple(cell["grid"]) for cell in static} == {(4, 4)}
    assert (out / "grid.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert all(
        policy in printed for policy in ("temporal", "static-patch", "static-tokens", "flexivit", "flex-all")
    )


def test_demo_refuses_weights_that_give_no_numbers(tmp_path, checkpoint, capsys):
    state = torch.load(checkpoint, weights_only=True)
    state["layers.0.mixer.in_proj.weight"][0, 0] = float("nan")
    torch.save(state, checkpoint)
    arguments = ["--frames", "2", "--sizes", "32", "--policies", "static-tokens"]
    assert main(["demo", "--checkpoint", str(checkpoint), *arguments, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert "gave values that are no numbers, or infinite, at 4 x 32, its own size: its weights" in printed
    assert not (tmp_path / "out" / "grid.json").exists()


def test_a_cell_of_no_numbers_is_named(checkpoint):
    model = fv.make_flexible(fv.load(checkpoint))

    def clip(frames, size):
        return torch.full((1, 3, frames, size, size), float("nan") if size == 24 else 0.5)

    grid = points(model, policies=["temporal", "static-tokens"], frames=[2], sizes=[32, 24])
    with pytest.raises(UnsupportedModelError, match="infinite, at 2 x 24 under temporal: its weights"):
        list(run_grid(model, clip, grid))


def test_demo_renders_its_own_video(tmp_path, checkpoint, capsys):
    arguments = ["--frames", "2", "--sizes", "32", "--policies", "static-tokens"]
    assert main(["demo", "--checkpoint", str(checkpoint), *arguments, "--out", str(tmp_path / "out")]) == 0
    assert fv.read_clip(tmp_path / "out" / "video.mp4", frames=2, size=32).std() > 0.1
    printed = capsys.readouterr().out
    assert "cosine  of the feature to that at its own size, 4 frames of 32 px" in printed
    assert "random weights" not in printed
    assert "top-1" not in printed  # the two small models are for those who have none


def test_demo_runs_each_geometry_once(checkpoint):
    model = fv.make_flexible(fv.load(checkpoint))
    grid = points(model, policies=["temporal", "flexivit", "temporal"], frames=[4, 2, 4], sizes=[32, 24, 32])
    assert [(point.policy.name, point.size, point.frames) for point in grid] == [
        (policy, size, frames)
        for policy in ("temporal", "flexivit")
        for size in (32, 24)
        for frames in (4, 2)
    ]


def test_rows_come_as_they_are_known(checkpoint):
    model = fv.make_flexible(fv.load(checkpoint))
    read = []

    def clip(frames, size):
        read.append((frames, size))
        return torch.rand(1, 3, frames, size, size)

    grid = points(model, policies=["temporal", "static-tokens"], frames=[2], sizes=[32, 24])
    lines = table_lines(run_grid(model, clip, grid))
    assert next(lines).startswith("policy")
    assert read == []
    assert next(lines).startswith("temporal ")
    assert read == [(4, 32), (2, 32)]  # the model's own size first
    assert [line[:13] for line in lines] == [" " * 13, "static-tokens", " " * 13]


def test_demo_is_warm_before_it_is_timed(checkpoint, monkeypatch):
    passes = []
    model = fv.make_flexible(fv.load(checkpoint))
    honest = type(model).forward_features

    def counting(self, *arguments, **named):
        passes.append(self.pos_embed.device.type)
        return honest(self, *arguments, **named)

    monkeypatch.setattr(type(model), "forward_features", counting)
    monkeypatch.setattr("time.perf_counter", lambda: passes.append("clock") or 0.0)
    grid = points(model, policies=["temporal", "static-tokens"], frames=[2], sizes=[32])
    list(run_grid(model, lambda t, r: torch.rand(1, 3, t, r, r), grid))
    assert passes == ["cpu", *["cpu", "clock", "cpu", "clock", "meta"] * 2]


@pytest.mark.parametrize(("size", "sees"), [(24, 24), (35, 32), (41, 40)])
def test_pixels_that_no_patch_covers_are_not_seen(checkpoint, size, sees):
    model = fv.make_flexible(fv.load(checkpoint))
    grid = points(model, policies=["static-tokens"], frames=[2], sizes=[size])
    (cell,) = run_grid(model, lambda t, r: torch.rand(1, 3, t, r, r), grid)
    assert cell.sees == sees


def test_mistakes_of_the_demo_come_before_its_work(tmp_path, monkeypatch, checkpoint):
    monkeypatch.setattr(
        "flexvideo.cli.demo.write_video", lambda *_, **__: pytest.fail("a video was rendered")
    )
    monkeypatch.setattr("flexvideo.cli.demo.run_grid", lambda *_: pytest.fail("a model was run"))
    arguments = ["demo", "--checkpoint", str(checkpoint), "--out", str(tmp_path)]
    (tmp_path / "bad.mp4").write_text("no video")
    for wrong in (
        ["--sizes", "32", "3", "--policies", "temporal", "static-tokens"],
        ["--frames", "2", "0"],
        ["--video", str(tmp_path / "bad.mp4")],
    ):
        assert main([*arguments, *wrong]) == 2


def test_demo_needs_nothing(tmp_path, capsys, cheap):
    assert main(["demo", *cheap, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "cosine" not in printed  # random weights hardly tell one video from another
    for name in ("vanilla, tables resized", "vanilla, clip resized", "static tokens"):
        assert re.search(rf"^{name} +8 +\d+\.\d +\d+\.\d\*$", printed, flags=re.MULTILINE)
    assert "points" in printed
    assert f"picture: {tmp_path / 'accuracy.png'}" in printed
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    assert len([load_result(path) for path in tmp_path.glob("accuracy-*.json")]) == 3
    narrow = printed.replace(str(tmp_path), "flexvideo-demo").splitlines()
    assert max(map(len, narrow)) <= 80


def test_the_models_that_are_shipped():
    assert sum(file.stat().st_size for file in FILES.values()) < 5e6
    plain, flexible = (fv.load(FILES[name]) for name in ("vanilla", "static-tokens"))
    assert plain.labels == flexible.labels == MotionSet().classes
    assert fv.flex_config(flexible)["policy"] == recipe.POLICY.to_config()
    assert plain.license == "apache-2.0"
    for file in FILES.values():
        with safe_open(file, "pt") as opened:
            made = json.loads(opened.metadata()["flexvideo"])["made"]
        assert TrainConfig.of(made["training"]) == recipe.SHIPPED.training
        assert (made["start"]["steps"], made["clips"]) == (recipe.SHIPPED.start.steps, recipe.SHIPPED.clips)


@pytest.fixture(scope="module")
def measured():
    """The shipped models at four sizes, on a clip of each class."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair, "_CLIPS", 1)
        return measure_pair(FILES, frames=(4, 8), sizes=(24, 48))


def test_what_is_shipped_has_learnt_something(measured):
    resized, native, flexible = (
        [found.metrics["top1"].value for found in result.cells] for result in measured
    )
    assert resized[3] == native[3] > 0.6
    assert min(flexible) > 0.5
    assert max(resized[0], resized[2]) < 0.3


@pytest.mark.parametrize("better", [True, False])
def test_the_sentence_says_what_the_numbers_say(measured, better):
    def rigged(result):
        hits = ("1" if (result.name == "static tokens") == better else "0") * 18
        return replace(result, cells=tuple(replace(cell, hits=hits) for cell in result.cells))

    sign, side = ("+", "above") if better else ("-", "below")
    told, interval = f"100.0 points {side}", f"[{sign}100.0, {sign}100.0]"
    assert finding(list(map(rigged, measured))) == (
        f"At vanilla's own 8 x 48 px, static tokens is {told} vanilla {interval}; over the other 3 sizes it "
        f"is on average {told} vanilla with its tables resized {interval}, and {told} vanilla with the clip "
        f"resized {interval} (in brackets 95 % intervals)."
    )


def test_the_demos_own_models_are_not_yours(tmp_path, capsys, checkpoint):
    assert main(["demo", "--train", "--checkpoint", str(checkpoint), "--out", str(tmp_path)]) == 2
    assert "--train is about the demo's own two models" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_trains(tmp_path, capsys, cheap, monkeypatch):
    few = recipe.Recipe(
        clips=1,
        start=replace(recipe.QUICK.start, steps=2, warmup=0),
        training=replace(recipe.QUICK.training, epochs=1, warmup_epochs=0, steps=2),
    )
    monkeypatch.setattr("flexvideo.cli.demo.QUICK", few)
    monkeypatch.setattr(recipe, "_VAL_CLIPS", 1)
    command = ["demo", *cheap, "--train", "--out", str(tmp_path)]
    assert main(command) == 0
    first = capsys.readouterr()
    for part in ("start: ", "vanilla: ", "static-tokens: "):
        assert part in first.err
    assert f"picture: {tmp_path / 'trained' / 'accuracy.png'}" in first.out
    files = {name: tmp_path / "trained" / f"{name}.safetensors" for name in recipe.ARMS}
    assert fv.flex_config(fv.load(files["static-tokens"]))["policy"] == recipe.POLICY.to_config()
    assert list(accuracy_lines(_measured(files)))[2] in first.out
    assert main(command) == 0
    again = capsys.readouterr()
    assert "loss" not in again.err  # what is there is not made again
    assert again.out.split("top-1")[1] == first.out.split("top-1")[1]
    monkeypatch.setattr("flexvideo.cli.demo.QUICK", replace(few, start=replace(few.start, steps=3)))
    assert main(command) == 2
    assert "is a checkpoint of another run: config.steps" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_training_goes_on(tmp_path, capsys, cheap, monkeypatch):
    monkeypatch.setattr(
        "flexvideo.cli.demo.QUICK",
        recipe.Recipe(
            clips=1,
            start=replace(recipe.QUICK.start, steps=2, warmup=0),
            training=replace(recipe.QUICK.training, epochs=1, warmup_epochs=0, steps=2),
        ),
    )
    monkeypatch.setattr(recipe, "_VAL_CLIPS", 1)
    honest = recipe.train
    monkeypatch.setattr(recipe, "train", lambda *a, **n: honest(*a, **(n | {"stop": lambda: True})))
    command = ["demo", *cheap, "--train", "--out", str(tmp_path)]
    assert main(command) == 130
    stopped = capsys.readouterr()
    assert "stopped and saved: the same command goes on from there" in stopped.err
    assert not stopped.out  # nothing that would be shown again
    monkeypatch.setattr(recipe, "train", honest)
    assert main(command) == 0


def test_table_keeps_its_columns():
    cell = Cell("static-tokens", 64, 1024, 73, (14, 14), 1024, 12545, 203.4, 12345.6, -0.5)
    for cosines in (True, False):
        header, line = table_lines([cell], cosines=cosines)
        assert len(header) == len(line) <= 79
        assert header.endswith("cosine") == cosines
