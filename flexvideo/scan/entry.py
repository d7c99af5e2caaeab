"""How the operators are entered: recorded by autograd, and past torch's dispatcher where nobody looks on.

The kernels of a block of a small batch take less time than it takes the dispatcher to hand on its tensors.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexvideo.errors import BackendError
from flexvideo.scan.registry import transformed

Run = Callable[..., Any]  # an operator without autograd
PLAIN = {Tensor, nn.Parameter, type(None), bool, int, float, str, list, torch.dtype}
_LIBRARY = torch.library.Library("flexvideo", "FRAGMENT")


def entry(name: str, implementation: Run, record: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Give an operator its implementation and gradient, and return a function that is called in its stead.

    Args:
        name: of the operator, which is defined.
        implementation: on plain tensors.
        record: (the operator without autograd, its arguments) -> its results; called where a gradient is
            wanted. When None such calls have no derivative, and say so; the last argument is the backend.
    """
    torch.library.impl(f"flexvideo::{name}", "default", implementation)
    operator = getattr(torch.ops.flexvideo, name).default
    if record is None:
        torch.library.register_autograd(operator, _no_second_derivative, setup_context=_keep_name)
    else:
        _register(name, operator, record)

    def direct(*arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return implementation(*arguments)

    def call(*arguments: Any) -> Any:
        if seen(arguments):
            return operator(*arguments)
        if not _wanted(arguments):
            return direct(*arguments)
        return operator(*arguments) if record is None else record(direct, *arguments)

    return call


def seen(arguments: Sequence[Any]) -> bool:
    """Whether anyone looks on: a compiler, a transform, a mode, a profiler, or a tensor of another class."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or transformed():
        return True
    # torch has no public name for it
    if torch.autograd._profiler_enabled():  # pyright: ignore[reportPrivateImportUsage]
        return True
    kinds = {type(x) for x in arguments}
    kinds.update(*({type(x) for x in several} for several in arguments if type(several) is list))
    return not kinds <= PLAIN or arguments[0].is_meta or torch._C._get_tracing_state() is not None


def _wanted(arguments: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)


def _register(name: str, operator: Any, record: Callable[..., Any]) -> None:
    """As `torch.library.register_autograd`, which takes longer than the kernels where there are lists."""

    def run(keys: torch.DispatchKeySet, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *arguments)

    def autograd(keys: torch.DispatchKeySet, *arguments: Any) -> Any:
        if _wanted(arguments):
            return record(functools.partial(run, keys), *arguments)
        return run(keys, *arguments)

    _LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
    raise BackendError(
        f"The scan backend {ctx.backend!r} has first derivatives only, and this backward pass needs second "
        "ones: build the model with scan_backend='reference'."
    )


def _keep_name(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.backend = inputs[-1]
