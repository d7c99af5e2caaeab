"""Two processes train as one that accumulates twice: the same clips, the same losses within rounding."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.multiprocessing import ProcessRaisedException
from torch.testing import assert_close
from training import CONFIG, ToySource, toy_train

import flexvideo as fv
from flexvideo.errors import CheckpointError, ConfigError
from flexvideo.train import Validation, processes, read_log
from flexvideo.train.step import Stepper

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


def _full(rank: int, store: str, out: str) -> None:
    """The second process runs out of memory when its forward is ready for the exchange of gradients."""
    loss = Stepper._loss

    def limited(self, forward, batch, **settings):
        found = loss(self, forward, batch, **settings)
        if rank == 1 and len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return found

    Stepper._loss = limited
    _process(rank, store, out, {})


@pytest.mark.slow
def test_one_that_is_full_says_so_while_the_other_waits(tmp_path: Path):
    with pytest.raises(ProcessRaisedException, match=r"do not fit into the memory of cpu; 2 of them do"):
        torch.multiprocessing.spawn(_full, (str(tmp_path / "store"), str(tmp_path / "out")), nprocs=2)


@pytest.mark.slow
def test_under_torchrun_one_process_speaks(tmp_path: Path):
    train = ["train", "--data", "motion:short:1", "--preset", "tiny", "--epochs", "1", "--steps", "2"]
    small = ["--frames", "2", "--sizes", "16", "--tokens", "192", "--hold", "2x16", "--val-split", "none"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    said = []
    for more in ([], [], ["--device", "cpu"]):
        command = [*torchrun, "-m", "flexvideo", *train, *small, "--out", str(tmp_path / "run"), *more]
        said.append(subprocess.run(command, capture_output=True, text=True, timeout=200, check=False).stderr)
    for text in (
        "18 clips, 18 classes",
        "step 2 of 2: loss",
        "2 steps, loss",
        "model, log and checkpoints: ",
    ):
        assert said[0].count(text) == 1
    assert said[1].count("holds a run already: resume it (--resume)") == 1
    assert said[2].count("Under torchrun each process has a device of its own: leave --device out.") == 1
    assert fv.load(tmp_path / "run").num_classes == 18


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="more processes than this machine has GPUs: --nproc-per-node 2 "):
        processes().__enter__()


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
