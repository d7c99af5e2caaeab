"""Subclasses of a host's classes: entry points that set the geometry, attributes that follow it."""

import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn

from flexvideo.active import Flex, Patch, in_backward, sequence_number
from flexvideo.errors import GeometryError, UnsupportedModelError
from flexvideo.geometry import as_pair
from flexvideo.plan import State, Table


def own_value(module: nn.Module, name: str) -> Any:
    """Return an attribute as a module stores it, or a method as its class has it, past what follows geometry.

    Raises:
        AttributeError: when the module has no such attribute.
    """
    for store in (module._parameters, module._buffers):
        if name in store:
            return store[name]
    if name in module.__dict__:
        # Up to torch 2.11, dynamo takes an item of `__dict__` for the attribute, which asks here again.
        compiling = torch.compiler.is_compiling()
        return cast(Any, module)._flex_stored[name] if compiling else module.__dict__[name]
    method = getattr(getattr(type(module), "_flex_host", type(module)), name, None)
    if inspect.isfunction(method):
        return MethodType(method, module)
    raise AttributeError(f"{type(module).__name__!r} object has no attribute {name!r}")


def first_argument(method: Callable[..., Any]) -> str | None:
    """Name of the argument after self, which the clip is passed by when it is passed by keyword."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameters[0].name if parameters and parameters[0].kind not in variadic else None


def takes_patch(method: Callable[..., Any]) -> bool:
    """Whether a method has an argument `patch` of its own."""
    return "patch" in inspect.signature(method).parameters


@functools.cache
def flexible_class(
    host: type[nn.Module], followers: tuple[str, ...], entries: tuple[str, ...], carriers: tuple[str, ...]
) -> type[nn.Module]:
    """Subclass of a host's class, one for each combination, so that torch.compile shares its graphs.

    Args:
        host: class to derive from.
        followers: attributes that follow the geometry.
        entries: methods that take the clip.
        carriers: methods that take no clip of their own but pass `patch` on to the entry points inside.
    """
    body: dict[str, Any] = {name: _follower(name, inside=not entries) for name in followers}
    body |= {name: _entry(getattr(host, name)) for name in entries}
    body |= {name: _carrier(getattr(host, name)) for name in carriers}

    def __reduce_ex__(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        # nn.Module.__getstate__ leaves out what `model.compile()` made, which runs the original's weights.
        return _rebuild, (host, followers, entries, carriers), self.__getstate__()

    @functools.wraps(host.__init__)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        # `type(model)(...)` and `model.from_pretrained(...)` build a model that nothing has made flexible.
        self.__class__ = host
        host.__init__(self, *args, **kwargs)

    body |= {"__reduce_ex__": __reduce_ex__, "__init__": __init__, "_flex_host": host}
    # transformers looks up what a model can record by the text of its class, which is made of these two.
    body |= {"__module__": host.__module__, "__qualname__": host.__qualname__, "__doc__": host.__doc__}
    # It writes the name of the class beside weights, too, and loads them by it.
    of_transformers = hasattr(host, "config_class")
    return type(host.__name__ if of_transformers else f"Flexible{host.__name__}", (host,), body)


def _rebuild(
    host: type[nn.Module], followers: tuple[str, ...], entries: tuple[str, ...], carriers: tuple[str, ...]
) -> nn.Module:
    cls = flexible_class(host, followers, entries, carriers)
    return cls.__new__(cls)


def _follower(name: str, *, inside: bool) -> property:
    """Property that follows the geometry; `inside` a module that an entry point of another one calls."""

    def get(self: Any) -> Any:
        value = own_value(self, name)
        flex: Flex = self._flex
        geometry = flex.active.geometry
        if geometry is None and inside and in_backward():
            geometry = flex.geometry_again()
            if geometry is None:
                raise GeometryError(
                    f"`{name}` of {type(self).__name__} is read in a backward pass that cannot tell by which "
                    "clip: activation checkpointing recomputes this part by itself. Checkpoint the whole "
                    "model instead."
                )
        if geometry is None:
            return value
        follower: Table | State = self._flex_followers[name]
        try:
            return follower.follow(value, base=flex.plan.base, geometry=geometry, rule=flex.plan.rule)
        except AttributeError as error:
            # nn.Module would take it for a missing property and return the tensor as it is.
            raise RuntimeError(f"Making {name!r} follow {geometry} failed: {error}") from error

    def set_(self: Any, value: Any) -> None:
        flex: Flex = self._flex
        if flex.active.geometry is None or _is_base_table(self._flex_followers[name], value, flex):
            self.__dict__[name] = value
            self.__dict__["_flex_stored"] = {**self._flex_stored, name: value}  # replicas share the old one
            return
        # A host that keeps the attribute up to date by itself must come to the same, and leave no trace.
        expected = get(self)
        if not _same(value, expected):
            raise UnsupportedModelError(
                f"The forward of {type(self).__name__} sets `{name}` to {value!r}, and the plan has it as "
                f"{expected!r} at {flex.active.geometry}: correct its State or Table."
            )

    def delete(self: nn.Module) -> None:
        if name not in self.__dict__:
            raise AttributeError(name)
        del self.__dict__[name]

    return property(get, set_, delete)


def _is_base_table(follower: Table | State, value: Any, flex: Flex) -> bool:
    """Whether a value is the table at its base size, which a sharded model sets anew in its forward."""
    if not (isinstance(follower, Table) and isinstance(value, Tensor)):
        return False
    lengths = follower.lengths(flex.plan.base)
    return tuple(value.shape[follower.dim : follower.dim + len(lengths)]) == lengths


def _same(value: Any, expected: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(expected, Tensor):
        return value.dtype == expected.dtype and torch.equal(value.to(expected.device), expected)
    return value == expected


def _entry(method: Callable[..., Any]) -> Callable[..., Any]:
    clip_name = first_argument(method)

    @functools.wraps(method)
    def entry(self: Any, *args: Any, patch: Patch | None = None, **kwargs: Any) -> Any:
        flex: Flex = self._flex
        if "parametrizations" in self._modules:
            _check_parametrized(self)
        if args:
            clip = args[0]
        elif clip_name in kwargs:
            clip = kwargs[clip_name]
        else:
            return method(self, **kwargs)  # Python's own error for the missing argument
        active, pair = flex.active, None if patch is None else as_pair(patch)
        if pair is None and active.geometry is None and active.patch is None and in_backward():
            # A checkpoint inside the host passes on no `patch` of the call, when it runs this part again.
            pair = flex.patch_again()
        geometry = flex.geometry(clip, pair)
        clip = flex.fit(clip, geometry, self)
        before, first = (active.geometry, active.patch), sequence_number()
        active.geometry = geometry
        if pair is not None:
            active.patch = pair
        try:
            if args:
                return method(self, clip, *args[1:], **kwargs)
            return method(self, **{**kwargs, clip_name: clip})
        finally:
            flex.ran(first, geometry)
            active.geometry, active.patch = before

    return _with_patch(entry, method)


def _check_parametrized(model: Any) -> None:
    """Refuse a parametrization made afterwards, whose property hides the one that follows the geometry."""
    hidden = sorted(set(model.parametrizations) & set(getattr(model, "_flex_followers", ())))
    if hidden:
        raise UnsupportedModelError(
            f"`{hidden[0]}` was parametrized after make_flexible, and no longer follows the clip: "
            "remove the parametrization (torch.nn.utils.parametrize.remove_parametrizations)."
        )


def _carrier(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def carrier(self: Any, *args: Any, patch: Patch | None = None, **kwargs: Any) -> Any:
        flex: Flex = self._flex
        before, first = flex.active.patch, sequence_number()
        flex.active.patch = None if patch is None else as_pair(patch)
        try:
            return method(self, *args, **kwargs)
        finally:
            flex.ran(first, None)
            flex.active.patch = before

    return _with_patch(carrier, method)


def _with_patch(function: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    """Show `patch` in the signature, for help() and for tools that filter arguments by it."""
    signature = inspect.signature(method)
    parameters = list(signature.parameters.values())
    patch = inspect.Parameter("patch", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Patch | None)
    at = len(parameters) - (bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    parameters.insert(at, patch)
    function.__signature__ = signature.replace(parameters=parameters)
    return function
