"""Draws of drop path that belong to a sample: the same on every device, in every batch, on every rank."""

from jaxtyping import Bool, Int64
from torch import Tensor

_BITS = 53  # of a draw: as many as a float64 holds


def kept(keys: Int64[Tensor, " b"], *, rate: float) -> Bool[Tensor, " b"]:
    """Whether each sample is kept, by its key alone.

    Args:
        keys: one for each sample, already different for each layer; any 64 bits.
        rate: probability of being dropped, 0 to 1.

    Example:
        >>> import torch
        >>> kept(torch.arange(8), rate=0.5).tolist()
        [False, False, True, False, True, True, True, False]
    """
    draws = _shifted(_scrambled(keys), 64 - _BITS)
    return draws >= int(rate * 2**_BITS)


def of_layer(keys: Int64[Tensor, " b"], layer: int) -> Int64[Tensor, " b"]:
    """Turn the keys of samples into those of one layer, which have nothing to do with another layer's.

    Args:
        keys: one for each sample.
        layer: any number.
    """
    return _scrambled(keys + _wrapped(0x9E3779B97F4A7C15 * (layer + 1)))


def _scrambled(bits: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """Splitmix64's last step, on signed integers that wrap around."""
    bits = (bits ^ _shifted(bits, 30)) * _wrapped(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shifted(bits, 27)) * _wrapped(0x94D049BB133111EB)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Int64[Tensor, " b"], by: int) -> Int64[Tensor, " b"]:
    """To the right, with zeros coming in: the shift of signed integers repeats the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _wrapped(number: int) -> int:
    """The signed integer of the same lowest 64 bits."""
    return (number + 2**63) % 2**64 - 2**63
