"""One process or many: torchrun starts them, and everything here is trivial for one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from flexvideo.errors import ConfigError, FlexVideoError


@contextmanager
def processes() -> Iterator[torch.device | None]:
    """Join the processes that `torchrun` started, if it did, and part with them at the end.

    Gives the device of this process, or None where torchrun has no part in it. A mistake that several of them
    meet comes out of the first; the others end silently, with exit code 2.

    Raises:
        ConfigError: more processes than GPUs.
    """
    if not dist.is_torchelastic_launched():
        yield None
        return
    if torch.cuda.is_available():
        device, backend = _own_gpu(int(os.environ["LOCAL_RANK"])), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    else:
        device, backend = torch.device("cpu"), "gloo"
    store, rank, world = next(rendezvous("env://"))
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=world)
    try:
        yield device
    except FlexVideoError as error:
        if store.add(f"mistake: {error}", 1) > 1:
            raise SystemExit(2) from None
        raise
    # Not after an error: to part takes all, and those that wait for this one would keep it from saying why.
    dist.destroy_process_group()


def _own_gpu(number: int) -> torch.device:
    count = torch.cuda.device_count()
    if number >= count:
        raise ConfigError(
            f"torchrun started more processes than this machine has GPUs: --nproc-per-node {count} fits."
        )
    return torch.device("cuda", number)


def rank_and_world() -> tuple[int, int]:
    """Return the number of this process and how many there are.

    Example:
        >>> rank_and_world()
        (0, 1)
    """
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def summed(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Add up what every process has.

    Args:
        values: of this process; left as they are.
    """
    values = values.clone()
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def any_of(flag: bool) -> bool:
    """Whether any process says so; every process gets the same answer.

    Args:
        flag: of this process.
    """
    return bool(summed(torch.tensor([float(flag)])).item())
