"""`flexvideo train` and `finetune`: from data to a model that other commands read, and the mistakes."""

import json
import os
import re
import signal

import pytest
import torch
from training import run, toy_model

import flexvideo as fv
from flexvideo.cli import main
from flexvideo.cli.trainreport import StepBar
from flexvideo.data.motion import MotionSet
from flexvideo.train import read_log, replace_head
from flexvideo.train.checkpoint import checkpoints
from flexvideo.train.interrupt import stopped_by_signals
from flexvideo.weights import read_weights

pytestmark = pytest.mark.usefixtures("few_clips")


def test_from_data_to_a_model_that_is_read(tmp_path, capsys):
    assert (
        run(tmp_path / "a", "--policy", "static-tokens", "--val-split", "val", "--evaluate-at", "2x16") == 0
    )
    said = capsys.readouterr().err
    assert (
        "motion short train: 6 clips, 3 classes; drawn by StaticTokens(frames=(2, 3), sizes=(16, 24))" in said
    )
    assert re.search(r"^epoch 1: top-1 at 2x16 px \d+\.\d %$", said, re.MULTILINE)
    assert re.search(r"^step 1 of 2: loss \d\.\d+\nstep 2 of 2: loss \d\.\d+$", said, re.MULTILINE)
    assert "2 steps, loss" in said
    assert f"model, log and checkpoints: {tmp_path / 'a'}" in said
    model = fv.load(tmp_path / "a")
    assert model.labels == MotionSet().classes
    assert fv.flex_config(model)["policy"] == {"name": "static-tokens", "frames": [2, 3], "sizes": [16, 24]}
    fv.write_video(tmp_path / "clip.mp4", torch.randint(0, 255, (8, 40, 40, 3), dtype=torch.uint8))
    features = ["features", str(tmp_path / "clip.mp4"), "--frames", "3", "--size", "24", "--device", "cpu"]
    assert main([*features, "--checkpoint", str(tmp_path / "a"), "--out", str(tmp_path / "f.npz")]) == 0


def test_fields_of_the_recipe_and_a_plain_model(tmp_path):
    plain = ["--policy", "none", "--frames", "8", "--sizes", "32", "--tokens", "256", "--steps", "1"]
    recipe = [
        "--set",
        "warmup_epochs=0",
        "ema=0.9",
        "clip_norm=None",
        "--set",
        "augment=light",
        "--lr",
        "0.5",
    ]
    assert run(tmp_path, *plain, *recipe) == 0
    assert read_log(tmp_path)[0]["lr"] == pytest.approx(0.5 * 2 / 256)
    assert type(fv.load(tmp_path)) is fv.VideoMamba
    header = read_weights(checkpoints(tmp_path)[-1])[1]["flexvideo-training"]
    recipe = json.loads(header)["identity"]["config"]
    assert (recipe["warmup_epochs"], recipe["ema"], recipe["augment"]["sampling"]) == (0, 0.9, "random")
    assert recipe["clip_norm"] is None


def test_a_run_that_is_resumed_and_one_that_is_not(tmp_path, capsys):
    assert run(tmp_path) == 0
    before = (tmp_path / "model.safetensors").read_bytes()
    assert run(tmp_path) == 2
    assert "holds a run already: resume it (--resume), or choose another folder." in capsys.readouterr().err
    assert run(tmp_path, "--resume") == 0
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert run(tmp_path, "--resume", "--lr", "7") == 2
    assert "is a checkpoint of another run: --lr was" in (said := capsys.readouterr().err)
    assert "start a new one in another folder (--start begins with its weights)." in said


def test_what_comes_is_said_before_it_is_waited_for(tmp_path, capsys):
    assert run(tmp_path / "a", "--tokens", "3840") == 0
    said = capsys.readouterr().err
    assert re.search(r"^first epoch: 2 steps of \d+ clips on average$", said, re.MULTILINE)
    assert re.search(r"^note: a step takes every clip \d+ times; --clips or", said, re.MULTILINE)
    assert "--hold keeps" not in said
    assert run(tmp_path / "b", "--hold", "2x16") == 0
    said = capsys.readouterr().err
    assert "note: up to 3 frames of 24 px are drawn, and --hold keeps 2 of 16 px" in said
    assert "takes every clip" not in said


def test_interrupting_saves_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    """The signal comes while the first step is taken."""
    from flexvideo.train.step import Stepper

    take = Stepper.take
    before = signal.getsignal(signal.SIGINT)  # ignored, if the tests run in the background

    def interrupted(self, *arguments, **settings):
        os.kill(os.getpid(), signal.SIGINT)
        return take(self, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "take", interrupted)
        assert run(tmp_path) == 130
    said = capsys.readouterr().err
    assert "stopped and saved at step 1: the same command with --resume goes on from there" in said
    assert signal.getsignal(signal.SIGINT) is before
    assert run(tmp_path, "--resume") == 0


def test_a_long_training_says_how_long_it_takes(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    show = StepBar()
    for step in (1, 11, 51, 91):
        show({"step": step, "steps": 111, "loss": 0.5})
        now[0] += 31
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    assert said == [
        "step 1 of 111: loss 0.500",
        "step 11 of 111: loss 0.500, about 5 min left",
        "step 51 of 111: loss 0.500, about 1 min left",
        "step 91 of 111: loss 0.500",
    ]


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch):
    """As under torchrun, which passes on what a terminal has sent to all."""
    now = [5.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with stopped_by_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        now[0] += 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_help_fits_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("train", "finetune"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        usage, *lines = capsys.readouterr().out.splitlines()
        assert usage.endswith("--data KIND:PATH --out DIR [option ...]")
        assert max(map(len, lines)) <= 82


def test_finetuning_replaces_the_head(tmp_path, capsys):
    model = toy_model(classes=5)
    model.save_pretrained(tmp_path / "start")
    assert run(tmp_path / "b", command=("finetune", str(tmp_path / "start"))) == 0
    assert "a new head: the model had 5 classes, the data has 3 others" in capsys.readouterr().err
    tuned = fv.load(tmp_path / "b")
    assert (tuned.num_classes, tuned.config["depth"]) == (3, 2)
    assert fv.flex_config(tuned)["policy"] == fv.flex_config(model)["policy"]


def test_the_same_classes_in_another_order_take_a_new_head(tmp_path, capsys):
    start = replace_head(toy_model(), MotionSet().classes[::-1])
    start.save_pretrained(tmp_path / "start")
    assert run(tmp_path / "b", "--steps", "1", command=("finetune", str(tmp_path / "start"))) == 0
    said = capsys.readouterr().err
    assert "a new head: the model had the same 3 classes in another order" in said
    assert re.search(r"^1 step, loss \d", said, re.MULTILINE)


def test_finetuning_weights_that_have_no_head(tmp_path, capsys):
    fv.save(toy_model(classes=0), tmp_path / "start.safetensors")
    assert run(tmp_path / "b", command=("finetune", str(tmp_path / "start.safetensors"))) == 0
    assert "the model had 0 classes" in capsys.readouterr().err
    assert fv.load(tmp_path / "b").num_classes == 3


def test_finetuning_a_model_of_one_frame_size(tmp_path, capsys):
    """The size that it has is no size asked for."""
    model = fv.make_flexible(fv.restore(toy_model(img_size=224, patch_size=112)), policy="temporal")
    model.save_pretrained(tmp_path / "start")
    small = ["--steps", "1", "--hold", "2x224", "--epochs", "1", "--workers", "0", "--val-split", "none"]
    tune = ["finetune", str(tmp_path / "start"), "--data", "motion:short", *small, "--tokens", "128"]
    assert main([*tune, "--device", "cpu", "--out", str(tmp_path / "a")]) == 0
    assert "drawn by Temporal(frames=(16,))" in capsys.readouterr().err
    assert main([*tune, "--sizes", "112", "--out", str(tmp_path / "b")]) == 2
    assert "Policy 'temporal' keeps the model's own frame size" in capsys.readouterr().err


def test_videos_that_fail_are_left_out_of_what_is_held(tmp_path, capsys):
    for split in ("train", "val"):
        for number, action in enumerate(("jump", "bow")):
            (tmp_path / split / action).mkdir(parents=True)
            clip = torch.randint(0, 255, (4, 24, 24, 3), dtype=torch.uint8)
            fv.write_video(tmp_path / split / action / f"{number}.mp4", clip)
    (tmp_path / "train" / "jump" / "bad.mp4").write_bytes(b"no video")
    data = ["--data", f"folder:{tmp_path}", "--out", str(tmp_path / "run")]
    assert run(tmp_path / "run", *data) == 2
    assert "bad.mp4" in capsys.readouterr().err.splitlines()[-1]
    assert run(tmp_path / "run", *data, "--skip-unreadable", "--val-split", "val") == 0
    said = capsys.readouterr().err
    assert f"skipped {tmp_path}/train/jump/bad.mp4" in said
    assert "2 clips, 2 classes" in said
    assert "epoch 1: top-1 at" in said
    (tmp_path / "train" / "jump" / "bad.mp4").unlink()
    data = ["--data", f"folder:{tmp_path / 'train'}", "--split", "none"]
    assert run(tmp_path / "all", *data) == 0
    assert "no split to measure on" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--set", "lr"), "--set takes FIELD=VALUE, such as ema=0.999, and got 'lr'."),
        (("--clips", "0"), "flexvideo train: --clips must be at least 1, got 0."),
        (("--set", "ema=abc"), "flexvideo train: --set ema must be a number or None, got 'abc'."),
        (("--set", "speed=3"), "Unknown fields ['speed'] of a TrainConfig"),
        (
            ("--evaluate-at", "2x16", "--val-split", "none"),
            "--evaluate-at says at which sizes to measure",
        ),
        (("--out", "/dev/null"), "/dev/null cannot be made a folder: File exists."),
        (("--evaluate-at", "16"), "--evaluate-at takes frames x pixels, such as 16x224, and got '16'."),
        (("--hold", "x"), "--hold takes frames x pixels, such as 16x224, and got 'x'."),
        (("--policy", "temporal"), "Policy 'temporal' keeps the model's own frame size: leave --sizes out."),
        (("--policy", "none"), "A plain model trains at its own size alone, 8 x 32 px"),
        (("--model", "tiny", "--start", "x"), "--model is for a new model, --start for one that there is"),
        (("--start", "nowhere.safetensors", "--model", "laptop"), "give one of them."),
        (("--tokens", "3"), "A budget of 3 tokens a step does not hold one clip"),
        (("--data", "motion:tall"), "names no source of clips"),
        (("--split", "all"), "Unknown split 'all'"),
    ],
)
def test_mistakes_end_in_one_sentence(more, message, tmp_path, capsys):
    assert run(tmp_path, *(("--val-split", "val") if "--evaluate-at" in more else ()), *more) == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1]
    assert said[-1].startswith("flexvideo train: ")
