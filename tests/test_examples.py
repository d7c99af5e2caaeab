"""The examples run as they are, on small models and clips."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import flexvideo as fv

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def files(tmp_path):
    model = fv.VideoMamba(img_size=32, patch_size=8, depth=1, embed_dim=32, num_classes=5, num_frames=4)
    fv.save(model, tmp_path / "model.safetensors")
    for name in ("a", "b"):
        fv.write_video(tmp_path / f"{name}.mp4", torch.randint(0, 255, (9, 40, 40, 3), dtype=torch.uint8))
    return tmp_path


def test_any_clip(files, capsys):
    example("01_any_clip").main(
        str(files / "model.safetensors"), str(files / "a.mp4"), frames=[3], sizes=[24, 32]
    )
    printed = capsys.readouterr().out
    assert "temporal_pos_embedding" in printed
    assert printed.count("probability") == 2


def test_any_clip_of_a_checkpoint_that_is_not_there(files, capsys, monkeypatch):
    path = EXAMPLES / "01_any_clip.py"
    monkeypatch.setattr(sys, "argv", [str(path), str(files / "no.pth"), str(files / "a.mp4")])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(path), run_name="__main__")
    assert f"error: {files / 'no.pth'} is no file or folder here" in capsys.readouterr().err


def test_your_own_model(capsys):
    example("02_your_own_model").main(steps=2)
    assert capsys.readouterr().out.count("loss") == 2


def test_features_of_a_folder(files, capsys):
    out = files / "features.safetensors"
    example("03_features_of_a_folder").main(
        str(files / "model.safetensors"), str(files), str(out), frames=3, size=24
    )
    assert re.search(
        r": 2 x 32 numbers, one row a video\nmost alike: .*a\.mp4 and .*b\.mp4, cosine [01]\.",
        capsys.readouterr().out,
    )
    assert len(fv.load_features(out)[0]) == 2
    assert fv.feature_settings(out)["size"] == 24


def test_features_of_a_folder_of_one_video_and_of_none(files, capsys):
    main, checkpoint = example("03_features_of_a_folder").main, str(files / "model.safetensors")
    (files / "b.mp4").unlink()
    main(checkpoint, str(files), str(files / "f.npz"), frames=3, size=24)
    assert "nothing to compare: it takes two videos" in capsys.readouterr().out
    (files / "a.mp4").unlink()
    with pytest.raises(SystemExit, match=r"There is no video under .*: looked for \.avi, "):
        main(checkpoint, str(files), str(files / "f.npz"))


def test_pairs_that_point_away_from_each_other():
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [-1.0, -2.0]])
    assert "b and c" in example("03_features_of_a_folder").most_alike(["a", "b", "c"], features)
    assert "a and b" in example("03_features_of_a_folder").most_alike(["a", "b"], features[:2])


def test_save_and_share(tmp_path, capsys):
    example("04_save_and_share").main(str(tmp_path), steps=2)
    assert "flex-all, ('run', 'jump'), same bits: True" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}


@pytest.fixture
def data_set(files):
    for split, count in (("train", 3), ("test", 1)):
        for name in ("jump", "run"):
            (files / "set" / split / name).mkdir(parents=True)
            for n in range(count):
                clip = torch.randint(0, 255, (9, 40, 40, 3), dtype=torch.uint8)
                fv.write_video(files / "set" / split / name / f"{n}.mp4", clip)
    return f"folder:{files / 'set'}"


@pytest.mark.parametrize("flexible", [False, True])
def test_retrieval(files, data_set, capsys, flexible):
    checkpoint, out = str(files / "model.safetensors"), str(files / "results")
    if flexible:
        checkpoint = str(files / "flexible.safetensors")
        fv.save(fv.make_flexible(fv.load(files / "model.safetensors")), checkpoint)
    example("05_retrieval").main(checkpoint, data_set, out, frames=[2, 4], sizes=[24, 32])
    printed = capsys.readouterr().out
    assert printed.count("| flexible ") == 2 + 2  # in the table of top-1 and in that of costs
    assert len(list((files / "results").glob("retrieval-*.json"))) == 2


def test_linear_probe(files, data_set, capsys):
    checkpoint, out = str(files / "model.safetensors"), str(files / "results")
    example("06_linear_probe").main(checkpoint, data_set, out, frames=2, size=24)
    assert re.findall(r"^(\w+): top-1 \d+\.\d % \[", capsys.readouterr().out, re.MULTILINE) == [
        "adamw",
        "lbfgs",
    ]
    assert len(list((files / "results").glob("probe-*.json"))) == 2


def test_flexible_training(files, data_set, capsys):
    result = example("07_flexible_training").main(
        data_set,
        str(files / "run"),
        start=str(files / "model.safetensors"),
        frames=[2, 3],
        sizes=[24, 32],
        tokens=192,
        epochs=1,
        steps=2,
    )
    printed = capsys.readouterr().out
    assert (result.steps, sorted(result.metrics)) == (2, ["top1/2x24", "top1/3x32"])
    assert "temporal_pos_embedding" in printed
    assert fv.load(files / "run").labels == ("jump", "run")


def test_fine_tuning(files, data_set):
    checkpoint, out = str(files / "model.safetensors"), str(files / "run")
    settings = {"frames": 2, "size": 24, "clips": 2, "epochs": 1, "steps": 1}
    result = example("08_fine_tuning").main(checkpoint, data_set, out, **settings)
    assert {(spec.frames, spec.height): clips for spec, clips in result.clips.items()} == {(2, 24): 2}
    assert fv.flex_config(fv.load(out))["policy"]["frames"] == [8, 16, 32, 64]


def test_accelerate(data_set):
    losses = example("09_accelerate").main(data_set, steps=2, tokens=256)
    assert len(losses) == 2
    assert losses[0] == pytest.approx(0.69, abs=0.4)


def test_every_example_is_tested():
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == [
        "01_any_clip",
        "02_your_own_model",
        "03_features_of_a_folder",
        "04_save_and_share",
        "05_retrieval",
        "06_linear_probe",
        "07_flexible_training",
        "08_fine_tuning",
        "09_accelerate",
    ]
