"""Two processes train as one that accumulates twice: the same clips, the same losses within rounding."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.testing import assert_close
from training import CONFIG, ToySource, toy_train

from flexvideo.errors import CheckpointError
from flexvideo.train import Validation, read_log

VALIDATION = ((2, 16), (4, 24))


def curve(out: Path, name: str = "loss") -> torch.Tensor:
    return torch.tensor([record[name] for record in read_log(out) if name in record])


def _process(rank: int, store: str, out: str, settings: dict) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    validation = Validation(ToySource(clips=7), VALIDATION, batch=2)
    toy_train(Path(out), evaluate=validation, **settings)
    dist.destroy_process_group()


def two_processes(tmp_path: Path, out: Path, **settings) -> None:
    torch.multiprocessing.spawn(_process, (str(tmp_path / "store"), str(out), settings), nprocs=2)
    (tmp_path / "store").unlink(missing_ok=True)


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_are_one_that_accumulates_twice(accumulate: int, tmp_path: Path):
    config = replace(CONFIG, accumulate=accumulate)
    two_processes(tmp_path, tmp_path / "two", config=config)
    validation = Validation(ToySource(clips=7), VALIDATION, batch=2)
    alone = replace(config, accumulate=2 * accumulate)
    toy_train(tmp_path / "one", config=alone, evaluate=validation)
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert [record.get("spec") for record in one] == [record.get("spec") for record in two]
    for name in ("loss", "grad_norm"):
        assert_close(curve(tmp_path / "two", name), curve(tmp_path / "one", name), rtol=1e-4, atol=1e-5)
    assert_close(curve(tmp_path / "two", "top1/4x24"), curve(tmp_path / "one", "top1/4x24"), rtol=0, atol=0)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in first.items():
        assert_close(second[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path):
    """Processes times accumulation is what counts."""
    whole = replace(CONFIG, accumulate=2)
    toy_train(tmp_path / "one", config=whole)
    asked = iter([False, True])
    toy_train(tmp_path / "both", config=whole, stop=lambda: next(asked))
    with pytest.raises(CheckpointError, match="processes times accumulation was 2 and is 1"):
        toy_train(tmp_path / "both", config=replace(whole, accumulate=1), resume=True)
    two_processes(tmp_path, tmp_path / "both", config=replace(whole, accumulate=1), resume=True)
    assert_close(curve(tmp_path / "both"), curve(tmp_path / "one"), rtol=1e-4, atol=1e-5)
