"""A model spread over the processes by FSDP2, and gathered where it is wanted whole.

Imported where a run is sharded, and nowhere else: torch's distributed tensors take a second to import.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from flexvideo.errors import ConfigError
from flexvideo.train.distributed import rank_and_world


class Sharding:
    """Leaves each process a part of every parameter of a model, of its gradient and of the optimizer's state.

    The model is changed in place, and stays so. It is gathered block by block as it runs: see `blocks`; what
    is in no block is gathered for the whole of a forward or backward pass.

    Args:
        model: on its device, the same on every process but for its weights: the first process's count.

    Raises:
        ConfigError: one process alone, or a parameter that cannot be spread.
    """

    def __init__(self, model: nn.Module) -> None:
        self._rank, world = rank_and_world()
        _check(model, world)
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()
            dist.broadcast(parameter.data, 0)
        self._copy_buffers(model)
        self._plain = copy.deepcopy(model).to("meta")
        mesh = init_device_mesh(next(model.parameters()).device.type, (world,))
        # The outermost reshards too: what it kept after an evaluation would be stale after the next step.
        for module in (*blocks(model), model):
            module.register_forward_hook(_without_views)
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        assert isinstance(model, FSDPModule)
        self._model = model
        self._parameters = dict(model.named_parameters(remove_duplicate=False))

    def synchronise(self, last: bool) -> None:
        """Say whether the next backward is the last of a step, which brings the gradients together."""
        self._model.set_requires_gradient_sync(last)

    def clip(self, limit: float) -> Float[Tensor, ""]:
        """Clip the gradient to a norm, over all processes; returns the norm before."""
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), limit, foreach=True)
        assert isinstance(norm, DTensor)
        return norm.full_tensor()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Hold the whole model on every process for a while, which can run it as often as it likes."""
        parts = [module for module in self._model.modules() if isinstance(module, FSDPModule)]
        self._model.set_reshard_after_forward(False)
        for part in parts:
            part.unshard()
        self._copy_buffers(self._model)
        try:
            yield
        finally:
            for part in parts:
                part.reshard()
            self._model.set_reshard_after_forward(True)

    def plain(self) -> nn.Module:
        """Return the model whole, on the CPU; every process calls, and all but the first get no values."""
        state = self.gathered(self._model.state_dict())
        if self._rank == 0:
            self._plain.load_state_dict(state, assign=True)
        return self._plain

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return whole tensors on the CPU of the first process, gathered one by one; every process calls.

        Args:
            tensors: the same names on every process.
        """
        found: dict[str, Tensor] = {}
        for name, value in tensors.items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if self._rank == 0:
                found[name] = whole.detach().cpu()
        return found

    def spread(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this process's parts of whole tensors; what has no dimension stays as it is.

        Args:
            tensors: named as parameters are, or as "parameter/kind".
        """
        return {
            name: self._part(value, self._parameters.get(name.partition("/")[0]))
            for name, value in tensors.items()
        }

    def _part(self, value: Tensor, parameter: Tensor | None) -> Tensor:
        if value.ndim == 0 or not isinstance(parameter, DTensor):
            return value
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)

    @staticmethod
    def _copy_buffers(model: nn.Module) -> None:
        """The first process's statistics count, as they do where gradients alone are shared."""
        for buffer in model.buffers():
            if buffer.is_floating_point():
                held = buffer.contiguous()
                dist.broadcast(held, 0)
                buffer.copy_(held)


def blocks(model: nn.Module) -> list[nn.Module]:
    """Find the modules of a model that are gathered one by one: the members of its outermost lists.

    A list is an nn.ModuleList or nn.Sequential. Where a weight is used in two places there are none, because
    it must be gathered for both of them.

    Args:
        model: any.

    Example:
        >>> from flexvideo import VideoMamba
        >>> model = VideoMamba(img_size=16, depth=3, embed_dim=16, num_frames=2)
        >>> blocks(model) == list(model.layers)
        True
    """
    names = list(model.named_parameters(remove_duplicate=False))
    return list(_members(model)) if len(names) == len(list(model.parameters())) else []


def _members(module: nn.Module) -> Iterator[nn.Module]:
    listed = isinstance(module, nn.ModuleList | nn.Sequential)
    for child in module.children():
        runs = not isinstance(child, nn.ModuleList | nn.ModuleDict)  # they have no forward to be gathered for
        if listed and runs and next(child.parameters(), None) is not None:
            yield child
        else:
            yield from _members(child)


def _without_views(module: nn.Module, arguments: Any, output: Any) -> Any:
    """Copy what is a view, such as an input that is given back: in place, it would lose FSDP2's hook."""
    return tree_map_only(
        Tensor, lambda value: value.clone() if value.requires_grad and value._is_view() else value, output
    )


def _check(model: nn.Module, world: int) -> None:
    if world == 1:
        raise ConfigError(
            "`shard` spreads a model over several processes, and this is the only one: start it with "
            "`torchrun --nproc-per-node N`, or leave `shard` out."
        )
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:
            raise ConfigError(
                f"`shard` cannot spread `{name}`, a parameter without dimensions: make it a tensor of one "
                "element, or leave `shard` out."
            )
