"""An average of the weights over the steps, which often tests better than the last ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average of the parameters of a model; buffers are the model's own.

    Early on the decay is (1 + steps) / (10 + steps), so that the average forgets the weights of the start.

    Args:
        model: whose parameters are averaged, from what they are now.
        decay: share of the average that one step keeps, in the long run.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> average = Ema(layer, decay=0.5)
        >>> _ = layer.weight.data.add_(1.0)
        >>> average.update(step=100)
        >>> with average.used():
        ...     inside = layer.weight.item()
        >>> round(layer.weight.item() - inside, 6)
        0.5
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self._parameters = dict(model.named_parameters())
        self.state = {name: value.detach().clone() for name, value in self._parameters.items()}

    @torch.no_grad()
    def update(self, *, step: int) -> None:
        """Take in the parameters as they are after a step.

        Args:
            step: number of steps that were taken before, from 0.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, values = [*self.state.values()], [value.detach() for value in self._parameters.values()]
        # private, as all of torch's functions of lists are; one call, each of which is slow where sharded
        torch._foreach_lerp_(averages, values, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the model run on the average for a while."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up an average that was saved.

        Args:
            state: what `state` was.
        """
        for name, value in self.state.items():
            value.copy_(state[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, value in self._parameters.items():
            held = value.clone()
            value.copy_(self.state[name])
            self.state[name].copy_(held)
