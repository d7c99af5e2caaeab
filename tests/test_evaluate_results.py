"""What is measured from features, and the files that keep it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flexvideo.errors import CheckpointError, ConfigError, DatasetError
from flexvideo.evaluate import (
    Cell,
    Cost,
    Features,
    Probe,
    Result,
    Views,
    accuracy,
    knn,
    linear_probe,
    load_result,
    retrieval,
    retrieval_values,
    save_result,
)
from flexvideo.evaluate.facts import ModelFacts, SourceFacts

CELLS = (Cell(8, 96), Cell(8, 224), Cell(16, 96, patch=8))


def features(split: str = "test", *, count: int = 30, seed: int = 0, **changes) -> Features:
    """Features of which those of larger sizes tell more of the class."""
    generator = torch.Generator().manual_seed(7 * seed + (split == "test"))
    labels = torch.arange(count) % 3
    centres = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    values = {
        cell: centres[labels] + 100 / cell.size * torch.randn(count, 8, generator=generator) for cell in CELLS
    }
    cost = Cost(height=96, width=96, patch=(7, 7), grid=(14, 14), tokens=1569, gflops=1.5)
    found = Features(
        values=values,
        labels=labels,
        names=tuple(f"{n}.mp4" for n in range(count)),
        classes=("a", "b", "c"),
        costs=dict.fromkeys(CELLS, cost),
        skipped=(),
        model=ModelFacts(
            "tiny.pth", "f" * 64, 12345, {"name": "static-tokens"}, {"kernel": "auto"}, {"frames": 8}
        ),
        source=SourceFacts("toys", split, "1", count, 3, split),
        views=Views(),
        output="cls",
    )
    return replace(found, **changes)


def test_retrieval() -> None:
    queries, gallery = features(), features("train", count=60)
    result = retrieval(queries, gallery, name="flexible", top=(5, 10))
    assert [cell.cell for cell in result.cells] == list(CELLS)
    for cell in result.cells:
        expected = retrieval_values(
            queries.values[cell.cell],
            queries.labels,
            gallery.values[cell.cell],
            gallery.labels,
            top=(1, 5, 10),
        )
        assert cell.metrics["top1"].value == pytest.approx(expected["R@1"].mean().item())
        assert cell.metrics["R@5"].value == pytest.approx(expected["R@5"].mean().item())
        assert cell.metrics["mAP"].value == pytest.approx(expected["AP"].mean().item())
        assert cell.hits == "".join(str(int(hit)) for hit in expected["R@1"])
        assert list(cell.metrics) == ["top1", "balanced", "R@5", "R@10", "mAP"]
        for metric in cell.metrics.values():
            assert 0 <= metric.low <= metric.value <= metric.high <= 1
    assert result.protocol["gallery"] == "the queries' own cell"
    assert result.labels == tuple(queries.labels.tolist())


def test_retrieval_across_geometries() -> None:
    queries, gallery = features(), features("train", count=60)
    result = retrieval(queries, gallery, at=CELLS[1])
    expected = retrieval_values(
        queries.values[CELLS[0]], queries.labels, gallery.values[CELLS[1]], gallery.labels
    )
    assert result.cells[0].metrics["R@10"].value == pytest.approx(expected["R@10"].mean().item())
    assert result.protocol["gallery"] == "8x224"
    assert result.digest != retrieval(queries, gallery).digest
    with pytest.raises(ConfigError, match="The gallery has no features at 4x4; it has 8x96, 8x224, 16x96p8"):
        retrieval(queries, gallery, at=Cell(4, 4))


def test_neighbours_and_probes() -> None:
    queries, gallery = features(count=60), features("train", count=120)
    near = knn(queries, gallery, k=5)
    probed = linear_probe(gallery, queries, probe=Probe(method="lbfgs"))
    for result in (near, probed):
        assert list(result.cells[0].metrics) == ["top1", "balanced", "top5"]
        assert result.cells[1].metrics["top1"].value > 0.8
        assert result.queries.split == "test"
    assert near.protocol["k"] == 5
    assert set(probed.cells[0].chosen) == {"C", "held_out_top1"}
    assert probed.protocol["probe"]["method"] == "lbfgs"
    assert near.name == "tiny static-tokens"


@pytest.mark.parametrize(
    ("source", "name"),
    [("runs/v/model.safetensors", "v"), ("model.safetensors", "model"), ("a/tiny.pth", "tiny")],
)
def test_a_run_is_called_by_its_folder(source: str, name: str) -> None:
    queries, gallery = (
        replace(found, model=replace(found.model, source=source))
        for found in (features(count=60), features("train", count=120))
    )
    assert knn(queries, gallery, k=5).name == f"{name} static-tokens"


def test_a_probe_does_not_see_the_test_split() -> None:
    train = features("train", count=120)
    one, other = (linear_probe(train, features(seed=seed, count=60)) for seed in (0, 1))
    assert [cell.chosen for cell in one.cells] == [cell.chosen for cell in other.cells]


def scores(**changes) -> Features:
    found = features(**changes)
    return replace(
        found, output="scores", values={c: torch.eye(3)[found.labels.roll(c.size % 2)] for c in CELLS}
    )


def test_accuracy_of_a_classifier() -> None:
    found = scores()
    assert accuracy(found).task == "accuracy"
    result = accuracy(found, finetuned=True)
    assert result.task == "finetune"
    assert result.gallery is None
    assert result.cells[0].metrics["top1"].value == 1
    swapped = replace(found, values={c: v[:, [2, 0, 1]] for c, v in found.values.items()})
    assert accuracy(swapped).cells[0].metrics["top1"].value == 0
    for labels in (("c", "a", "b"), ("C", " a", "b.")):
        assert accuracy(swapped, labels=labels).cells[0].metrics["top1"].value == 1
    with pytest.raises(DatasetError, match=r"has a head for 3 classes, and toys has 2 classes: give one"):
        accuracy(replace(found, classes=("a", "b")))
    with pytest.raises(DatasetError, match=r"knows no class 'b' of toys, but 'a' and others: give one that"):
        accuracy(found, labels=("a", "c", "d"))
    with pytest.raises(ConfigError, match="measured by its \"scores\"; these are 'cls' features"):
        accuracy(features())


@pytest.mark.parametrize("task", [retrieval, knn, linear_probe])
def test_clips_do_not_find_themselves(task: Callable[..., Result]) -> None:
    with pytest.raises(ConfigError, match="are the same clips, toys test, so that each would find itself"):
        task(features(), features())


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"views": Views(clips=2)}, ConfigError, "differ in their views"),
        (
            {"output": "mean"},
            ConfigError,
            "differ in their output, so their features cannot be compared: cls and",
        ),
        ({"classes": ("a", "c", "b")}, DatasetError, "toys test and train do not have the same classes"),
        (
            {"labels": torch.arange(30) % 2},
            DatasetError,
            "Class 'c' of toys test has no readable video in train",
        ),
    ],
)
def test_what_cannot_be_compared(changes: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        retrieval(features(), features("train", **changes))


def test_files(tmp_path: Path) -> None:
    result = retrieval(features(), features("train"), name="Static tokens / 12 epochs")
    path = save_result(result, tmp_path / "results")
    assert path.name == f"retrieval-toys-Static_tokens_12_epochs-{result.digest[:8]}.json"
    assert load_result(path) == result
    content = json.loads(path.read_text())
    assert content["protocol"]["views"]["clips"] == 1
    assert content["cells"][2]["cell"] == {"frames": 16, "size": 96, "patch": 8}
    probed = linear_probe(features("train", count=60), features(), probe=Probe(method="lbfgs"))
    assert load_result(save_result(probed, tmp_path / "probe.json")) == probed


def test_only_the_same_protocol_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    first = retrieval(features(), features("train"))
    save_result(first, path)
    later = replace(first, date="2030-01-01", version="9")
    save_result(later, path)
    assert load_result(path) == later
    others = [
        retrieval(features(), features("train"), name="another"),
        retrieval(features(), features("train"), at=CELLS[0]),
        retrieval(features(), features("train"), top=(5,)),
        retrieval(features(views=Views(clips=2)), features("train", views=Views(clips=2))),
        knn(features(), features("train")),
        replace(first, cells=first.cells[:1]),
        replace(first, model=replace(first.model, weights="0" * 64)),
    ]
    for other in others:
        with pytest.raises(ConfigError, match=r"result\.json is the result of another protocol and is not"):
            save_result(other, path)
    assert load_result(path) == later
    names = {save_result(other, tmp_path / "many") for other in [first, later, *others]}
    assert len(names) == 1 + len(others)


def test_files_that_are_no_results(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ConfigError, match=r"a\.json cannot be read: No such file"):
        load_result(path)
    for text in ("", "[]", "{}", '{"format": 1}', '{"format": 1, "gallery": null, "model": 3}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"a\.json is no result file of flexvideo: "):
            load_result(path)
    path.write_text('{"format": 2}')
    with pytest.raises(ConfigError, match="of another format than 1: it needs another version"):
        load_result(path)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="is no result file"):
        save_result(retrieval(features(), features("train")), path)


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    result = retrieval(features(), features("train"))
    (tmp_path / "results").touch()
    for path in (tmp_path / "results", tmp_path / "results" / "new"):
        with pytest.raises(
            ConfigError, match=rf"^{path} cannot be made a folder: (File exists|Not a dir\w+)\.$"
        ):
            save_result(result, path)
    with pytest.raises(CheckpointError, match=r"a\.json cannot be written: Not a directory\.$"):
        save_result(result, tmp_path / "results" / "a.json")


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result: Result = retrieval(features(), features("train"))
    path = save_result(result, tmp_path / "a.json")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"a\.json cannot be written: No space left on device"):
        save_result(replace(result, date="2030-01-01"), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
