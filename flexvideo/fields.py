"""Fields of plain data, out of JSON: it has 1 for 1.0 and lists for tuples, and users write anything."""

from types import UnionType
from typing import Any, get_args, get_origin

from flexvideo.errors import ConfigError

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", type(None): "None"}


def typed(owner: str, name: str, value: Any, kind: Any) -> Any:
    """Give a value of JSON as the field has it.

    Args:
        owner: class of the field, for the message.
        name: of the field.
        value: to be put there.
        kind: its annotation: a number, a pair of them, either or None; any other is not looked at.

    Raises:
        ConfigError: a value of another kind.

    Example:
        >>> typed("Augment", "scale", [0.5, 1], tuple[float, float] | None)
        (0.5, 1.0)
    """
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    pair = any(get_origin(each) is tuple for each in kinds)
    if pair and isinstance(value, list | tuple) and [*map(type, map(_real, value))] == [float, float]:
        return tuple(map(_real, value))
    value = _real(value) if float in kinds else value
    if type(value) in kinds or not (pair or _KINDS.keys() & kinds):
        return value
    wanted = " or ".join(_KINDS.get(each, "two numbers") for each in kinds)
    raise ConfigError(f"{owner}: `{name}` must be {wanted}, got {value!r}.")


def _real(value: Any) -> Any:
    return float(value) if type(value) is int else value
