"""Randomness of the forward pass that belongs to the samples, not to the process that runs them."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from flexvideo.models.drop import of_layer
from flexvideo.models.videomamba import DropPath


@contextmanager
def keyed(model: nn.Module, places: Sequence[int], *, seed: int, epoch: int) -> Iterator[None]:
    """Draw what a forward pass draws by (seed, epoch, place): however samples are split over batches.

    Drop path of our models goes by each sample's own key; one that comes again in an epoch has another.
    Anything else that draws (dropout, other models' drop path) takes torch's generators, which are seeded by
    the first place of the batch: it repeats when a run is resumed, and is the same on N ranks as in N
    accumulated batches.

    Args:
        model: in training.
        places: in the order of the epoch, of the sample in each row of the batch: `Batch.places`.
        seed: of the run.
        epoch: of the run.

    Example:
        >>> import torch
        >>> from flexvideo.models.videomamba import DropPath
        >>> drop, x = DropPath(0.5), torch.ones(4, 1, 1)
        >>> with keyed(drop, [7, 8, 9, 10], seed=0, epoch=3):
        ...     whole = drop(x)
        >>> with keyed(drop, [9, 10], seed=0, epoch=3):
        ...     torch.equal(drop(x[2:]), whole[2:])
        True
    """
    layers = [module for module in model.modules() if isinstance(module, DropPath)]
    weight = next(model.parameters(), None)
    device = None if weight is None else weight.device
    samples = torch.tensor([_key(seed, epoch, place) for place in places])
    torch.manual_seed(_key(seed, epoch, places[0]))
    for number, layer in enumerate(layers):
        layer.keys = of_layer(samples, number).to(device, non_blocking=True)
    try:
        yield
    finally:
        for layer in layers:
            layer.keys = None


def _key(seed: int, epoch: int, place: int) -> int:
    digest = hashlib.sha256(f"{seed}/{epoch}/{place}/forward".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
