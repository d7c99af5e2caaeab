"""Two processes, each at its own sizes: the parameters move as in one process that averages the gradients."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hosts import BASE, SIZES, VisionMamba, clip, randomised
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import flexvideo as fv
from flexvideo.errors import UnsupportedModelError

STEPS = ((BASE, SIZES[0]), (SIZES[1], SIZES[2]), (SIZES[2], BASE))
"""Sizes of the clip of each rank, a step."""


def flexible() -> nn.Module:
    torch.manual_seed(0)
    return fv.make_flexible(randomised(VisionMamba()), policy="static-patch")


def loss(model: nn.Module, size: tuple[int, int, int]) -> Tensor:
    return model(clip(size)).square().mean()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def alone() -> dict[str, Tensor]:
    """Parameters after the steps, in one process."""
    model = flexible()
    optimizer = optimizer_of(model)
    for sizes in STEPS:
        optimizer.zero_grad()
        sum(loss(model, size) / len(sizes) for size in sizes).backward()
        optimizer.step()
    return {name: value.detach() for name, value in model.named_parameters()}


def train(model: nn.Module, rank: int) -> None:
    optimizer = optimizer_of(model)
    for sizes in STEPS:
        optimizer.zero_grad()
        loss(model, sizes[rank]).backward()
        optimizer.step()


def assert_as_alone(found: dict[str, Tensor]) -> None:
    for name, expected in alone().items():
        torch.testing.assert_close(found[name].detach(), expected, rtol=1e-5, atol=1e-6)


def with_ddp(rank: int) -> None:
    for options in ({}, {"static_graph": True}, {"gradient_as_bucket_view": True, "bucket_cap_mb": 1e-4}):
        model = flexible()
        wrapped = DistributedDataParallel(model, **options)
        train(wrapped, rank)
        assert_as_alone(dict(model.named_parameters()))
    with pytest.raises(UnsupportedModelError, match="DistributedDataParallel: call make_flexible first"):
        fv.make_flexible(DistributedDataParallel(VisionMamba()))
    assert wrapped(clip(SIZES[0]), patch=4).shape == (2, 5)
    assert type(fv.restore(model)) is VisionMamba


def with_fsdp2(rank: int) -> None:
    mesh = init_device_mesh("cpu", (2,))
    for units in (("layers.0", "patch_embed"), ("patch_embed.proj",), ()):
        model = flexible()
        for unit in units:
            fully_shard(model.get_submodule(unit), mesh=mesh)
        fully_shard(model, mesh=mesh)
        train(model, rank)
        full = {name: value.full_tensor() for name, value in model.named_parameters()}
        assert all(isinstance(value, DTensor) for value in model.parameters())
        assert_as_alone(full)
        register_fsdp_forward_method(model, "forward_features")
        assert model.forward_features(clip(SIZES[0]), patch=4).shape == (2, 8)
        for undo in (fv.restore, partial(fv.bake, frames=4, size=48)):
            with pytest.raises(UnsupportedModelError, match="FSDPModule: load its full state dict into a fl"):
                undo(model)
    plain = VisionMamba()
    fully_shard(plain, mesh=mesh)
    with pytest.raises(
        UnsupportedModelError, match="wrapped in FSDPModule: call make_flexible first, then ful"
    ):
        fv.make_flexible(plain)


def with_fsdp1(rank: int) -> None:
    for use_orig_params in (True, False):
        model = flexible()
        wrapped = FullyShardedDataParallel(
            model, use_orig_params=use_orig_params, device_id=torch.device("cpu")
        )
        for size in SIZES:
            torch.testing.assert_close(wrapped(clip(size)), flexible()(clip(size)))
        train(wrapped, rank)
        with FullyShardedDataParallel.summon_full_params(wrapped):
            assert_as_alone(dict(model.named_parameters()))
    with pytest.raises(UnsupportedModelError, match="wrapped in FullyShardedDataParallel"):
        fv.make_flexible(FullyShardedDataParallel(VisionMamba(), device_id=torch.device("cpu")))


def _process(rank: int, scenario: Callable[[int], None], store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    scenario(rank)
    dist.destroy_process_group()


@pytest.mark.parametrize("scenario", [with_ddp, with_fsdp2, pytest.param(with_fsdp1, marks=pytest.mark.slow)])
def test_two_processes(scenario: Callable[[int], None], tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (scenario, str(tmp_path / "store")), nprocs=2)
