"""Two processes train as one that accumulates twice: the same clips, the same losses within rounding."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing import ProcessRaisedException
from torch.testing import assert_close
from training import CONFIG, PLAIN, ToySource, toy_model, toy_train

import flexvideo as fv
from flexvideo.cli import main
from flexvideo.data.loader import Batch
from flexvideo.errors import CheckpointError, ConfigError, MemoryLimitError
from flexvideo.geometry import ClipSpec
from flexvideo.train import TrainConfig, Validation, loss_sum, processes, read_log
from flexvideo.train.checkpoint import checkpoints
from flexvideo.train.sharding import Sharding, blocks
from flexvideo.train.step import Stepper, fitting

VALIDATION = ((2, 16), (4, 24))


def curve(out: Path, name: str = "loss") -> torch.Tensor:
    return torch.tensor([record[name] for record in read_log(out) if name in record])


def _process(rank: int, store: str, runs: list[tuple[str, dict]]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for out, settings in runs:
        toy_train(Path(out), **{"evaluate": Validation(ToySource(clips=7), VALIDATION, batch=2), **settings})
    dist.destroy_process_group()


def two_processes(tmp_path: Path, *runs: tuple[Path, dict]) -> None:
    """Train, one run after the other."""
    plain = [(str(out), settings) for out, settings in runs]
    torch.multiprocessing.spawn(_process, (str(tmp_path / "store"), plain), nprocs=2)
    (tmp_path / "store").unlink(missing_ok=True)


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_are_one_that_accumulates_twice(accumulate: int, tmp_path: Path):
    same_in_two_processes(tmp_path, replace(CONFIG, accumulate=accumulate))


def twice(model: nn.Module, batch: Batch) -> torch.Tensor:
    """A criterion that runs the model once more on the same clips, of half the length."""
    scores, more = (model(clips, patch=batch.spec.patch) for clips in (batch.clips, batch.clips[:, :, ::2]))
    return (loss_sum(scores, batch) + loss_sum(more, batch)) / 2


@pytest.mark.slow
def test_several_sizes_a_step_and_a_criterion_of_ones_own_in_two_processes(tmp_path: Path):
    same_in_two_processes(tmp_path, replace(CONFIG, specs=2, accumulate=2), criterion=twice)


def same_in_two_processes(tmp_path: Path, config: TrainConfig, **settings) -> None:
    two_processes(tmp_path, (tmp_path / "two", {"config": config, **settings}))
    validation = Validation(ToySource(clips=7), VALIDATION, batch=2)
    alone = replace(config, accumulate=2 * config.accumulate)
    toy_train(tmp_path / "one", config=alone, evaluate=validation, **settings)
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert [record.get("spec") for record in one] == [record.get("spec") for record in two]
    for name in ("loss", "grad_norm"):
        assert_close(curve(tmp_path / "two", name), curve(tmp_path / "one", name), rtol=1e-4, atol=1e-5)
    assert_close(curve(tmp_path / "two", "top1/4x24"), curve(tmp_path / "one", "top1/4x24"), rtol=0, atol=0)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in first.items():
        assert_close(second[name], value, rtol=1e-3, atol=1e-4)


class Spare(nn.Module):
    """A model with a layer that its forward leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.spare = toy_model(), nn.Linear(2, 2)

    def forward(self, x, patch=None):
        return self.model(x, patch=patch)


def test_parameters_that_are_not_used(tmp_path: Path):
    """One process leaves them as they are; two would wait for their gradients, unless they are frozen."""
    settings = {"config": replace(PLAIN, drop_path=None, epochs=1, warmup_epochs=0), "evaluate": None}
    toy_train(tmp_path / "one", model=Spare(), **settings)
    with pytest.raises(
        ProcessRaisedException,
        match=r"2 parameters of Spare have no gradient \(spare.weight, spare.bias\), and several processes",
    ):
        two_processes(tmp_path, (tmp_path / "two", settings | {"model": Spare()}))
    frozen = Spare()
    frozen.spare.requires_grad_(False)
    (tmp_path / "store").unlink(missing_ok=True)
    two_processes(tmp_path, (tmp_path / "frozen", settings | {"model": frozen}))
    assert (tmp_path / "frozen" / "model.safetensors").exists()


SHARDED = replace(CONFIG, shard=True, accumulate=2)
UNEVEN = Validation(ToySource(clips=9), VALIDATION, batch=4)
"""Of which one of two processes runs a batch more than the other."""


class Thrice:
    """Stops a training at its third step."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked == 3


def files(out: Path) -> list[Path]:
    return [*checkpoints(out), out / "model.safetensors"]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model two processes share, and one that was stopped and went on."""
    folder = tmp_path_factory.mktemp("sharded")
    whole = {"config": SHARDED, "evaluate": UNEVEN}
    stopped, resumed = whole | {"stop": Thrice()}, whole | {"resume": True}
    two_processes(folder, (folder / "whole", whole), (folder / "cut", stopped), (folder / "cut", resumed))
    return folder


def test_two_that_share_a_model_are_one_that_accumulates_twice(sharded: Path, tmp_path: Path):
    toy_train(tmp_path, config=replace(CONFIG, accumulate=4), evaluate=UNEVEN)
    two = sharded / "whole"
    for name in ("loss", "grad_norm"):
        assert_close(curve(two, name), curve(tmp_path, name), rtol=1e-4, atol=1e-5)
    for name in ("top1/2x16", "top1/4x24"):
        assert_close(curve(two, name), curve(tmp_path, name), rtol=0, atol=0)
    for first, second in zip(files(tmp_path), files(two), strict=True):
        assert_close(load_file(second), load_file(first), rtol=1e-3, atol=1e-4)
    assert fv.load(two).labels == ToySource().classes


def test_a_shared_model_goes_on_to_the_bit(sharded: Path):
    assert torch.equal(curve(sharded / "cut"), curve(sharded / "whole"))
    for first, second in zip(files(sharded / "whole"), files(sharded / "cut"), strict=True):
        assert_close(load_file(second), load_file(first), rtol=0, atol=0)


def test_a_shared_model_goes_on_in_one_process(sharded: Path, tmp_path: Path):
    shutil.copytree(sharded / "whole", tmp_path / "one")
    checkpoints(tmp_path / "one")[-1].unlink()
    toy_train(tmp_path / "one", config=replace(CONFIG, accumulate=4), evaluate=UNEVEN, resume=True)
    assert_close(curve(tmp_path / "one"), curve(sharded / "whole"), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_shared_model_under_bfloat16(tmp_path: Path):
    config = replace(CONFIG, bf16=True)
    shared = {"config": replace(config, shard=True), "evaluate": None}
    two_processes(tmp_path, (tmp_path / "two", shared))
    toy_train(tmp_path / "one", config=replace(config, accumulate=2))
    assert_close(curve(tmp_path / "two"), curve(tmp_path / "one"), rtol=1e-3, atol=1e-3)


class Plain(nn.Module):
    """Blocks in a list of lists, a stem in a sequence, statistics, and rows that two do not share evenly."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh())
        self.stages = nn.ModuleList(nn.ModuleList(nn.Linear(3, 3) for _ in range(2)) for _ in range(2))
        self.head = nn.Linear(3, 1, bias=False)
        if tied:
            self.stages[1][1].weight = self.stages[0][0].weight

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            for block in stage:
                x = x + block(x).mT.mT  # a view
        return self.head(x)


def built(**arguments) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Plain(**arguments), torch.randn(6, 4)


def test_blocks_of_any_model():
    model, _ = built(tied=False)
    assert blocks(model) == [*list(model.stem)[:2], *model.stages[0], *model.stages[1]]
    assert blocks(built(tied=True)[0]) == []
    assert blocks(nn.Linear(1, 1)) == []


def _any_model(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for tied in (False, True):
        alone, x = built(tied=tied)
        alone(x).square().mean().backward()
        norm = nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
        model, _ = built(tied=tied)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(rank)  # the first one's count
        sharding = Sharding(model)
        model(x).square().mean().backward()
        assert_close(sharding.clip(0.1), norm)
        for mine, expected in zip(model.parameters(), alone.parameters(), strict=True):
            assert isinstance(mine.grad, DTensor)
            assert_close(mine.grad.full_tensor(), expected.grad)
        with sharding.whole():
            for _ in range(rank):  # one of them alone
                assert_close(model.eval()(x), alone.eval()(x))
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        plain = sharding.plain()
        assert type(plain) is Plain
        if rank == 0:
            assert_close(plain.state_dict(), alone.state_dict())
    scale = nn.Linear(1, 1)
    scale.temperature = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(
        ConfigError, match="cannot spread `temperature`, a parameter without dimensions: make"
    ):
        Sharding(scale)
    dist.destroy_process_group()


def test_any_model_can_be_shared(tmp_path: Path):
    torch.multiprocessing.spawn(_any_model, (str(tmp_path / "store"),), nprocs=2)


def test_one_process_has_nobody_to_share_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(
        ConfigError, match="and this is the only one: start it with `torchrun --nproc-per-node"
    ):
        toy_train(tmp_path / "out", config=SHARDED)
    data = ["--data", "motion:short:1", "--preset", "tiny", "--hold", "2x16", "--val-split", "none"]
    assert main(["train", *data, "--shard", "--out", str(tmp_path / "out")]) == 2
    assert "or leave --shard out." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_too_large_a_batch_of_a_shared_model():
    """Finding out what does fit would take the other processes."""

    def full(part: Batch) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    spec, clips = ClipSpec(2, 8, 8, (8, 8)), torch.zeros(3, 3, 2, 8, 8)
    batch = Batch(clips, torch.zeros(3, dtype=torch.long), (0, 1, 2), (0, 1, 2), spec, torch.ones(3))
    with pytest.raises(
        MemoryLimitError, match=r"3 clips of 2 frames .* memory of cpu: accumulate more batches"
    ):
        fitting(full, None, batch, batches=2)


def _full(rank: int, store: str, out: str) -> None:
    """The second process runs out of memory when its forward is ready for the exchange of gradients."""
    loss = Stepper._loss

    def limited(self, forward, batch, **settings):
        found = loss(self, forward, batch, **settings)
        if rank == 1 and len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return found

    Stepper._loss = limited
    _process(rank, store, [(out, {})])


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
    for more in ([], [], ["--device", "cpu"], ["--shard", "--out", str(tmp_path / "sharded")]):
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
    assert "2 steps, loss" in said[3]
    for out in ("run", "sharded"):
        assert fv.load(tmp_path / out).num_classes == 18


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
    two_processes(tmp_path, (tmp_path / "both", {"config": replace(whole, accumulate=1), "resume": True}))
    assert_close(curve(tmp_path / "both"), curve(tmp_path / "one"), rtol=1e-4, atol=1e-5)
