"""What a preset sets gives way to what is asked for, and is named where it does not fit."""

import pytest
from training import toy_model

import flexvideo as fv
from flexvideo.cli import main
from flexvideo.cli.shared import in_options
from flexvideo.cli.trainoptions import STARTS
from flexvideo.train import PRESETS

pytestmark = pytest.mark.usefixtures("few_clips")
ONCE = ["--data", "motion:short", "--steps", "1", "--epochs", "1", "--workers", "0", "--val-split", "none"]


def run(out, *more: str) -> int:
    return main(["train", "--preset", "tiny", *ONCE, "--device", "cpu", "--out", str(out), *more])


def test_a_checkpoint_brings_its_own_model_and_sizes(tmp_path, capsys):
    toy_model().save_pretrained(tmp_path / "start")
    assert run(tmp_path / "a", "--start", str(tmp_path / "start"), "--tokens", "192") == 0
    said = capsys.readouterr().err
    assert "drawn by StaticTokens(frames=(2, 3), sizes=(16, 24))" in said
    assert "records policy" not in said


def test_another_policy_than_the_checkpoints_is_said(tmp_path, capsys):
    toy_model().save_pretrained(tmp_path / "start")
    small = ["--frames", "2", "--sizes", "16", "--tokens", "192", "--policy", "static-patch"]
    assert run(tmp_path / "a", "--start", str(tmp_path / "start"), *small) == 0
    note = "note: the checkpoint records policy static-tokens, and is trained under static-patch"
    assert note in capsys.readouterr().err.splitlines()


def test_a_plain_model_and_one_of_a_single_size(tmp_path, capsys):
    assert run(tmp_path / "a", "--policy", "none", "--clips", "4") == 0
    assert "drawn by Temporal(frames=(8,))" in capsys.readouterr().err
    assert type(fv.load(tmp_path / "a")) is fv.VideoMamba
    assert run(tmp_path / "b", "--policy", "temporal", "--clips", "4") == 0
    assert "drawn by Temporal(frames=(4, 8, 16))" in capsys.readouterr().err


def test_sizes_of_the_preset_that_do_not_fit(tmp_path, capsys):
    assert run(tmp_path, "--policy", "flexivit") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "flexvideo train: The preset 'tiny' sets sizes 24, 32, 48, and with these: FlexiViT:"
    )
    assert said.endswith("Give --sizes for it.")
    assert run(tmp_path, "--policy", "flexivit", "--sizes", "50") == 2
    assert "preset" not in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("`shard` spreads a model, or leave `shard` out.", "--shard spreads a model, or leave --shard out."),
        ("config.augment.flip was 1 and is 2", "--set augment.flip was 1 and is 2"),
        ("training policy.frames was [2] and is [3]", "--frames was [2] and is [3]"),
    ],
)
def test_messages_name_options(message: str, said: str):
    assert in_options(message) == said


def test_help_says_what_presets_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for preset, recipe in PRESETS.items():
        assert f"{preset} {recipe.epochs} epochs" in said
        assert f"{recipe.tokens:,} tokens a step" in said
    for option, value in STARTS["tiny"].items():
        assert f"--{option} {' '.join(map(str, value)) if isinstance(value, list) else value}" in said
    assert "clip_norm, drop_path, augment" in said
