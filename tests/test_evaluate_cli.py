"""`retrieve`, `probe`, `evaluate` and `table` as a user types them, on UCF101's layout and on drawn clips."""

import json
from pathlib import Path

import pytest
import torch
from small import build

import flexvideo as fv
from flexvideo.cli import main
from flexvideo.data.motion import MotionSet
from flexvideo.data.ucf import write_ucf101
from flexvideo.evaluate import load_result

ACTIONS = ("bow", "jump", "clap", "squat", "wave_left")  # as many as the model has classes
GRID = ["--frames", "2", "4", "--sizes", "24", "32", "--device", "cpu"]
CELL = ["--frames", "2", "--sizes", "24", "--device", "cpu"]


def tiny(**settings) -> fv.VideoMamba:
    return build(depth=1, embed_dim=16, **settings)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, one without a head, and a data set."""
    root = tmp_path_factory.mktemp("cli")
    fv.save(tiny(), root / "vanilla.safetensors")
    fv.save(fv.make_flexible(tiny()), root / "flexible.safetensors")
    fv.save(tiny(num_classes=0), root / "headless.safetensors")
    fv.save(tiny(num_classes=7), root / "seven.safetensors")
    train, test = (MotionSet(split, actions=ACTIONS, per_class=n) for split, n in (("train", 2), ("test", 1)))
    write_ucf101(root / "ucf", train=train, test=test, size=(24, 32), fps=4.0)
    return root


def results(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def test_from_videos_to_tables(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = f"ucf101:{root / 'ucf'}", str(tmp_path / "results")
    common = ["--data", data, *GRID, "--out", out]
    vanilla = [str(root / "vanilla.safetensors"), *common]
    assert (
        main(
            ["retrieve", *vanilla, "--name", "tables resized", "--policy", "static-patch", "--rule", "paper"]
        )
        == 0
    )
    assert main(["retrieve", *vanilla, "--name", "clip resized", "--policy", "native"]) == 0
    flexible = ["retrieve", str(root / "flexible.safetensors"), *common, "--name", "flexible", "--knn", "5"]
    assert main(flexible) == 0
    printed = capsys.readouterr().out
    assert "5 videos of UCF101 test, 10 of train" in printed
    files = results(tmp_path / "results")
    assert len(files) == 4
    found = {(load_result(path).task, load_result(path).name): load_result(path) for path in files}
    native = found["retrieval", "clip resized"]
    assert native.model.policy == {"name": "native"}
    assert {cell.cost.tokens for cell in native.cells} == {65}
    one = found["retrieval", "flexible"]
    assert (one.queries.data, one.queries.split, one.queries.fold) == ("UCF101", "test", "1")
    assert set(one.cells[0].metrics) == {"top1", "balanced", "R@5", "R@10", "R@20", "mAP"}
    assert all(cell.cost.gflops > 0 for cell in one.cells)
    retrieved = [str(path) for path in files if path.name.startswith("retrieval")]
    assert main(["table", *retrieved, "--figures", str(tmp_path / "figures")]) == 0
    printed = capsys.readouterr().out
    assert "| 24 px | 32 px | Avg. Δ |" in printed.replace("  ", " ").replace("  ", " ")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"sizes.png", "tokens.png", "grid.png"}
    for shape in ("differences", "models", "costs", "cells"):
        for format_ in ("md", "latex", "csv"):
            assert main(["table", *retrieved, "--shape", shape, "--format", format_]) == 0
    assert main(["table", *map(str, files)]) == 0
    assert "Nearest neighbours" in capsys.readouterr().out


def test_what_is_kept_is_used_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["retrieve", str(root / "flexible.safetensors"), "--data", f"ucf101:{root / 'ucf'}", *GRID]
    arguments += ["--out", str(tmp_path)]
    assert main(arguments) == 0
    before = load_result(results(tmp_path)[0])
    monkeypatch.setattr("flexvideo.data.source.VideoSource.take", None)  # nothing is read any more
    assert main(arguments) == 0
    (path,) = results(tmp_path)
    assert load_result(path) == before
    assert main([*arguments, "--gallery", "4x32"]) == 0
    assert main([*arguments, "--gallery", "4x32", "--sizes", "24"]) == 0
    assert len(results(tmp_path)) == 3


def test_drawn_clips_need_no_files(root: Path, tmp_path: Path, capsys) -> None:
    arguments = [
        "retrieve",
        str(root / "flexible.safetensors"),
        "--data",
        "motion:short:1",
        "--out",
        str(tmp_path),
    ]
    assert main([*arguments, "--frames", "2", "--sizes", "16", "--device", "cpu", "--pool", "mean"]) == 0
    assert "mAP" in capsys.readouterr().out
    result = load_result(results(tmp_path)[0])
    assert (result.data, result.queries.split, result.gallery.split) == ("motion short", "test", "train")
    assert len(result.labels) == 18
    assert result.protocol["output"] == "mean"


@pytest.mark.parametrize("method", ["adamw", "lbfgs"])
def test_probe(root: Path, tmp_path: Path, method: str) -> None:
    arguments = ["probe", str(root / "flexible.safetensors"), "--data", f"ucf101:{root / 'ucf'}", *GRID]
    assert main([*arguments, "--method", method, "--out", str(tmp_path)]) == 0
    result = load_result(results(tmp_path)[0])
    assert result.task == "probe"
    assert result.protocol["probe"]["method"] == method
    assert len(result.cells) == 4


def test_evaluate(root: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", str(root / "flexible.safetensors"), "--data", f"ucf101:{root / 'ucf'}", *GRID]
    assert main([*arguments, "--clips", "2", "--crops", "3", "--finetuned", "--out", str(tmp_path)]) == 0
    result = load_result(results(tmp_path)[0])
    assert result.task == "finetune"
    assert result.protocol["views"]["crops"] == 3
    assert set(result.cells[0].metrics) == {"top1", "balanced", "top5"}
    assert result.cells[0].metrics["top5"].value == 1


def test_a_bad_video_is_skipped_when_asked(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        for n, name in enumerate(("bow", "jump")):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for k in range(2):
                length = 6 if split == "test" else 9
                clip = torch.full((length, 32, 32, 3), 60 * (2 * n + k), dtype=torch.uint8)
                fv.write_video(tmp_path / "set" / split / name / f"{k}.mp4", clip)
    for split in ("train", "test"):
        (tmp_path / "set" / split / "jump" / "bad.mp4").write_text("no video")
    arguments = [
        "retrieve",
        str(root / "flexible.safetensors"),
        "--data",
        f"folder:{tmp_path / 'set'}",
        *GRID,
    ]
    arguments += ["--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "With --skip-unreadable such videos are left out and reported." in capsys.readouterr().err
    assert not results(tmp_path / "out")
    assert main([*arguments, "--skip-unreadable"]) == 0
    printed = capsys.readouterr()
    assert "4 videos of set test, 4 of train; 2 could not be read" in printed.out
    assert "bad.mp4" in printed.err
    content = json.loads(results(tmp_path / "out")[0].read_text())
    assert "bad.mp4" in content["skipped"][0]


def test_what_is_no_result_is_named(root, tmp_path, capsys) -> None:
    (tmp_path / "config.json").write_text('{"format": 1, "model": {}}')
    assert main(["table", str(tmp_path / "config.json")]) == 2
    assert "config.json is no result file of flexvideo: it has no 'gallery'." in capsys.readouterr().err
    assert main(["table", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == f"flexvideo table: {tmp_path} is a folder: give the results in it, {tmp_path}/*.json.\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["evaluate", "{root}/headless.safetensors", "--data", "{ucf}"],
            "has no classification head, and UCF101 has 5",
        ),
        (
            ["evaluate", "{root}/seven.safetensors", "--data", "{ucf}"],
            "has a head for 7 classes, and UCF101 has 5",
        ),
        (["retrieve", "{root}/none.safetensors", "--data", "{ucf}"], "none.safetensors"),
        (["retrieve", "{root}/flexible.safetensors", "--data", "{root}"], "names no source of clips"),
        (
            ["retrieve", "{root}/flexible.safetensors", "--data", "motion:huge"],
            "write motion:short, motion:long",
        ),
        (["retrieve", "{root}/flexible.safetensors", "--data", "{ucf}", "--fold", "9"], "9"),
        (["retrieve", "{root}/flexible.safetensors", "--data", "{ucf}", "--knn", "0"], "no top 0"),
        (
            ["evaluate", "{root}/flexible.safetensors", "--data", "k400:{root}"],
            "Kinetics-400 needs val.csv",
        ),
        (
            ["retrieve", "{root}/flexible.safetensors", "--data", "ucf101:{root}/none-of-it"],
            "if it lies elsewhere, name its folder by --annotations.",
        ),
        (
            ["retrieve", "{root}/flexible.safetensors", "--data", "{ucf}", "--splits", "test", "test"],
            "the same clips, UCF101 test",
        ),
        (
            ["retrieve", "{root}/flexible.safetensors", "--data", "{ucf}", "--sizes", "3"],
            "3 px is smaller than",
        ),
        (["retrieve", "{root}/flexible.safetensors", "--data", "{ucf}", "--frames", "0"], "at least 1 frame"),
        (
            ["retrieve", "{root}/flexible.safetensors", "--data", "{ucf}", "--gallery", "99"],
            "--gallery takes frames x pixels, such as 16x224, and got '99'.",
        ),
        (
            ["retrieve", "{root}/flexible.safetensors", "--data", "{ucf}", "--frames", "1000000000"],
            "1,000,000,000 frames of 24 x 24 px do not fit into memory: ask for fewer or for smaller ones.",
        ),
        (
            ["retrieve", "{root}/flexible.safetensors", "--data", "{ucf}", "--sizes", "200000000"],
            "2 frames of 200000000 x 200000000 px do not fit into memory",
        ),
        (["probe", "{root}/flexible.safetensors", "--data", "{missing}"], "has no video in"),
    ],
)
def test_mistakes_are_one_sentence(root, tmp_path, capsys, arguments, says) -> None:
    for split, names in (("train", "a"), ("test", "ab")):
        for name in "ab":
            (tmp_path / "missing" / split / name).mkdir(parents=True)
        for name in names:
            (tmp_path / "missing" / split / name / "1.mp4").write_text("never read")
    (root / "none-of-it").mkdir(exist_ok=True)
    places = {"root": root, "ucf": f"ucf101:{root / 'ucf'}", "missing": f"folder:{tmp_path / 'missing'}"}
    typed = [argument.format(**places) for argument in arguments]
    extra = [] if "--sizes" in typed else ["--sizes", "24"]
    extra += [] if "--frames" in typed else ["--frames", "2"]
    assert main([*typed, *extra, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"flexvideo {arguments[0]}: ")
    assert says in error


def own_set(folder: Path, *splits: str) -> Path:
    for split in splits:
        for n, name in enumerate(("bow", "jump")):
            (folder / split / name).mkdir(parents=True)
            clip = torch.full((5 + len(split), 32, 32, 3), 90 * n, dtype=torch.uint8)
            fv.write_video(folder / split / name / "1.mp4", clip)
    return folder


@pytest.mark.parametrize(("splits", "taken"), [(("train", "val"), "val"), (("train", "val", "test"), "test")])
@pytest.mark.parametrize("kind", ["folder", "list"])
def test_val_is_taken_where_there_is_no_test(root, tmp_path, capsys, splits, taken, kind) -> None:
    own = own_set(tmp_path / "set", *splits)
    for split in splits if kind == "list" else ():
        lines = (f"{split}/{name}/1.mp4,{name}\n" for name in ("bow", "jump"))
        (own / f"{split}.csv").write_text("".join(lines))
    arguments = ["retrieve", str(root / "flexible.safetensors"), "--data", f"{kind}:{own}", *CELL]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert f"2 videos of set {taken}, 2 of train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        (("train", "validate"), "holds train, validate"),
        (("training", "testing"), "it has: testing, training. --splits TRAIN TEST names the two to take."),
        (
            ("bow", "jump"),
            "If these are its classes, divide their videos into train/<class>/ and test/<class>/",
        ),
    ],
)
def test_refusals_of_splits_name_the_remedy(root, tmp_path, capsys, splits, says) -> None:
    own = own_set(tmp_path / "set", *splits)
    arguments = ["retrieve", str(root / "flexible.safetensors"), "--data", f"folder:{own}", *GRID]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err


def test_outputs_of_unknown_names_are_taken_in_order_and_it_is_said(root, tmp_path, capsys) -> None:
    arguments = ["--data", f"ucf101:{root / 'ucf'}", *CELL, "--out", str(tmp_path)]
    says = "note: the checkpoint records no classes; its outputs are taken for those of UCF101 in their order"
    assert main(["evaluate", str(root / "vanilla.safetensors"), *arguments]) == 0
    assert f"{says}, from 'Bow' to 'WaveLeft'" in capsys.readouterr().err
    model = tiny()
    model.labels = ("wave left", "bow", "jump", "clap", "squat")
    fv.save(model, tmp_path / "named.safetensors")
    assert main(["evaluate", str(tmp_path / "named.safetensors"), *arguments]) == 0
    assert "records no classes" not in capsys.readouterr().err


def test_several_processes_are_refused(root, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    for command in ("retrieve", "probe", "evaluate"):
        arguments = [str(root / "flexible.safetensors"), "--data", "motion:short:1", "--out", str(tmp_path)]
        assert main([command, *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"flexvideo {command}: it was started in 4 processes (WORLD_SIZE), each of")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["retrieve", "probe", "evaluate", "table"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "example:" in capsys.readouterr().out
