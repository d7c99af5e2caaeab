"""Inference at small batches: a model's forward as one CUDA graph for each kind of clip.

At batch 1 a GPU works off the kernels of a VideoMamba faster than Python starts them. A CUDA graph starts
them all at once.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from flexvideo.active import Patch, flex_within
from flexvideo.errors import BackendError, ConfigError, UnsupportedModelError, brief
from flexvideo.products import cached

Model = TypeVar("Model", bound=nn.Module)
_WARM_UPS = 2  # kernels are compiled, and libraries choose theirs, before anything is recorded


@dataclass(frozen=True)
class _Captured:
    """One graph, the memory it reads and writes, and what else must stay where it is."""

    replay: Callable[[], None]
    clip: Tensor
    output: Any
    alive: tuple[Tensor, ...]


class Graphed(Generic[Model]):
    """A model as `graphed` returns it: called like the model, on clips alone.

    Args:
        model: what is run.
        kinds: how many graphs are kept.
    """

    def __init__(self, model: Model, *, kinds: int) -> None:
        self.model = model
        self.kinds = kinds
        self._graphs: OrderedDict[tuple[Any, ...], _Captured] = OrderedDict()
        self._recorded: list[Any] = []
        self._pool: Any = None
        self._watch()

    def __call__(self, clip: Tensor, *, patch: Patch | None = None) -> Any:
        """The model's output; the memory is the caller's own.

        Args:
            clip: what the model takes, on its device.
            patch: as in the model's own call, where it is flexible.

        Raises:
            BackendError: a clip or a model that is not on a CUDA device.
            UnsupportedModelError: a model in training mode, gradients that are not switched off, or an output
                that holds something else than tensors.
        """
        _check(self.model, clip)
        if self._state() != self._recorded:
            self._graphs.clear()
            self._watch()
        low = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        kind = (clip.shape, clip.dtype, clip.device, tuple(patch) if isinstance(patch, list) else patch, low)
        with torch.inference_mode(False), torch.no_grad():
            captured = self._graphs.get(kind)
            if captured is None:
                captured = self._capture(clip, {} if patch is None else {"patch": patch}, low)
                self._graphs[kind] = captured
                if len(self._graphs) > self.kinds:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(kind)
            captured.clip.copy_(clip)
            captured.replay()
            return tree_map(_cloned, captured.output)

    def _watch(self) -> None:
        """Look for what the graphs depend on, so that a look at its state is quick."""
        modules = list(self.model.modules())
        _check_hooks(self.model, modules)
        self._hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._tensors = [store for m in modules for store in (m._parameters, m._buffers) if store]
        self._parts = [m._modules for m in modules if m._modules]
        self._flex = flex_within(self.model)
        self._recorded = self._state()

    def _state(self) -> list[Any]:
        """Where the weights are, by which graphs know them, and what else the model may have changed."""
        state: list[Any] = [x.data_ptr() for store in self._tensors for x in store.values() if x is not None]
        state += [part for parts in self._parts for part in parts.values()]
        flex = self._flex
        return [
            *state,
            sum(map(len, self._hooks)),
            type(self.model),
            *((flex.policy, flex.plan) if flex else ()),
        ]

    def _capture(self, clip: Tensor, options: dict[str, Any], low: torch.dtype | None) -> _Captured:
        still = torch.empty_like(clip, memory_format=torch.contiguous_format).copy_(clip)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # weights that autocast casts are cached until it ends, so that a graph would read freed memory
        autocast = torch.autocast("cuda", dtype=low, enabled=low is not None, cache_enabled=False)
        with torch.cuda.device(clip.device), autocast:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    self.model(still, **options)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # on this stream: by itself torch takes one of the device where it first recorded anything
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                output = self.model(still, **options)
        return _Captured(graph.replay, still, output, cached())


def graphed(model: Model, *, kinds: int = 8) -> Graphed[Model]:
    """Run a model's inference as CUDA graphs: the fast way at small batches.

    Clips of one shape and dtype, at one `patch` and under one autocast dtype, are one kind. The first clip of
    a kind is run a few times, and recorded; later ones are a copy in, one launch, and a copy out. Graphs
    share their memory. Weights may change in place, as optimizers and `load_state_dict` change them; where
    they were replaced or moved, layers replaced or the policy changed, everything is recorded anew.

    Not for models whose work depends on what the clip shows, nor for several threads or streams at once.

    Args:
        model: a model on a CUDA device, in evaluation mode; flexible or not.
        kinds: graphs kept, those used last; each holds its own clip and output.

    Raises:
        BackendError: a model that is not on a CUDA device.
        UnsupportedModelError: no model, one in training mode, or one with forward hooks.
        ConfigError: `kinds` below 1.

    Example:
        >>> import torch
        >>> from flexvideo import VideoMamba, graphed, make_flexible
        >>> model = make_flexible(VideoMamba(img_size=32, depth=1, embed_dim=16, num_frames=4)).eval()
        >>> if torch.cuda.is_available():
        ...     fast = graphed(model.cuda())
        ...     with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        ...         logits = fast(torch.rand(1, 3, 6, 48, 40, device="cuda"), patch=8)
    """
    if kinds < 1:
        raise ConfigError(f"kinds={kinds}: at least one graph must be kept.")
    _check_model(model)
    return Graphed(model, kinds=kinds)


def _check(model: nn.Module, clip: Tensor) -> None:
    _check_model(model)
    if not isinstance(clip, Tensor) or clip.device.type != "cuda":
        where = f"on {clip.device}" if isinstance(clip, Tensor) else brief(clip)
        raise BackendError(f"CUDA graphs take clips on a CUDA device, and this one is {where}.")
    if torch.is_grad_enabled():
        raise UnsupportedModelError(
            "CUDA graphs of a model have no gradients, and they are switched on here: call it under "
            "torch.inference_mode(), or the model itself to train."
        )


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"Give a model, a torch.nn.Module; got {brief(model)}.")
    name, place = type(model).__name__, next(model.parameters()).device
    if place.type != "cuda":
        there = torch.cuda.is_available()
        remedy = "move it with model.cuda(), or call" if there else "torch finds none here; call"
        raise BackendError(
            f"CUDA graphs need a model on a CUDA device, and this {name} is on {place}: {remedy} the model "
            "itself."
        )
    if model.training:
        raise UnsupportedModelError(
            f"CUDA graphs are for inference, and this {name} is in training mode: call model.eval() first."
        )


def _check_hooks(model: nn.Module, modules: Sequence[nn.Module]) -> None:
    hooked = next((m for m in modules if m._forward_hooks or m._forward_pre_hooks), None)
    if hooked is not None:
        raise UnsupportedModelError(
            f"CUDA graphs replay kernels without Python, and {type(hooked).__name__}, a module of this "
            f"{type(model).__name__}, has forward hooks, which would not run: remove them, or call the model "
            "itself."
        )


def _cloned(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.clone()
    if leaf is None or isinstance(leaf, bool | int | float | str):
        return leaf
    raise UnsupportedModelError(
        f"The model's output holds {brief(leaf)}, whose tensors the next call would overwrite: return "
        "tensors, or lists, tuples and dictionaries of them."
    )
