"""Sizes that a model stores and a plan does not mention: left as they are, they could misplace tokens."""

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from flexvideo.errors import UnsupportedModelError
from flexvideo.families import find
from flexvideo.listing import shortened, together
from flexvideo.plan import Plan
from flexvideo.sizedlayers import sized_layers, token_counts

_SIZE = re.compile(
    r"(^|_)(img|image|input|frames?|clip|crop|grid|patch|patches|tokens?|spatial|temporal|time|resolution"
    r"|t?hw|seq|seqlen|length|size|shape|height|width|pos|positions|windows?|steps|[thwn])(_|$)",
    re.IGNORECASE,
)
_NOT_A_CLIP = re.compile(
    r"kernel|stride|padding|dilation|tubelet|dim|channel|class|head|batch|vocab|step_size|hidden|intermediate"
)
_TABLE = re.compile(r"(^|_)pos|temporal|time|frame|spatial|space|table|embed|bias", re.IGNORECASE)
_TIME = re.compile(r"temporal|time|frame", re.IGNORECASE)
_SMALLEST = 2  # a 1 is the size of everything
_TELLING = 9  # tokens of a frame, of which a multiple is no accident
_NAMED_BY_PATH = (nn.Embedding, nn.ParameterList, nn.ParameterDict)  # their own names for tensors say nothing


def unsettled(model: nn.Module, plan: Plan) -> tuple[str, ...]:
    """Describe attributes that hold a size of the base, where the plan does not say what to do with them.

    A number counts when its name is that of a size and its value one of the base's; a tensor when one of its
    dimensions is the number of tokens, or by its name of steps, and a parameter only when it also has the
    name or the shape of a table. Of the layers of torch itself, embeddings are looked at, and pools,
    Unflatten and Linear for the size of the grid.

    Args:
        model: the model that the plan is for.
        plan: its `tables`, `state` and `fixed` are settled.

    Example:
        >>> from flexvideo import VideoMamba, plan_for
        >>> model = VideoMamba(img_size=32, depth=1, embed_dim=16, num_frames=4)
        >>> model.num_frames = 4
        >>> unsettled(model, plan_for(model))
        ('num_frames = 4',)
    """
    settled = plan.settled
    sizes = _sizes(plan)
    widths = {find(model, f"{path}.weight").shape[0] for path in plan.patch_embeds}
    found: list[str] = []
    for path, module in model.named_modules():
        named_by_path = isinstance(module, _NAMED_BY_PATH)
        of_torch = type(module).__module__.startswith("torch.nn.modules") and not named_by_path
        if of_torch or path in plan.patch_embeds:
            continue
        for name, value in _stored(module):
            full = f"{path}.{name}" if path else name
            top = f"{path}.{name.partition('.')[0]}" if path else name.partition(".")[0]
            label = path.rpartition(".")[2] if named_by_path else name
            if {full, top} & settled or (named_by_path and not isinstance(value, Tensor)):
                continue
            rows = _rows(value, widths, matrices=not isinstance(module, nn.Embedding))
            is_a_size = _is_a_size(label, value, sizes, plan) or _has_the_grid(label, value, widths, plan)
            if is_a_size or _may_be_positions(label, rows, plan):
                shown = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"= {value!r}"
                found.append(f"{full} {shown}")
    found += [f"{name} = {value!r}" for name, value in sized_layers(model, plan) if name not in settled]
    return tuple(found)


def check_settled(model: nn.Module, plan: Plan) -> None:
    """Refuse a model that holds sizes of which the plan does not say whether they must follow the clip.

    Args:
        model: the model that the plan is for.
        plan: what would be made flexible.

    Raises:
        UnsupportedModelError: listing them, with what to write into the plan.
    """
    found = unsettled(model, plan)
    if found:
        seen = "; ".join(shortened(together(found, " ")))
        raise UnsupportedModelError(
            f"{type(model).__name__} stores sizes that it was built for, and nothing says whether its "
            f"forward reads them: {seen}. For each, add to the plan State(name, value) or a Table if it must "
            "follow the clip, or its name to `fixed` if it must not: make_flexible(model, "
            "plan=dataclasses.replace(plan, fixed=(*plan.fixed, ...))), where `plan` is the one you gave, "
            "or plan_for(model) with the arguments you gave it."
        )


def _sizes(plan: Plan) -> set[Any]:
    base = plan.base
    (rows, columns), frames, steps = base.grid, base.frames, base.steps
    tokens = rows * columns
    sizes: set[Any] = {base.height, base.width, rows, columns, *base.window, *base.patch}
    sizes |= {(base.height, base.width), base.grid, base.window, base.patch}
    counts = {tokens}
    if frames is not None and steps is not None:
        counts.add(steps * tokens)
        sizes |= {frames, steps, (frames, base.height, base.width), (steps, *base.grid)}
    return sizes | {count + extra for count in counts for extra in range(3)}


def _stored(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Plain attributes, those of a configuration object or mapping one level down, and tensors."""
    for name, value in (module.__dict__ | module._buffers | module._parameters).items():
        if name.startswith("_"):
            continue
        yield name, value
        inside = value if isinstance(value, dict) else getattr(value, "__dict__", None)
        if isinstance(inside, dict) and not callable(value) and not isinstance(value, Tensor):
            yield from ((f"{name}.{key}", inner) for key, inner in inside.items() if isinstance(key, str))


def _is_a_size(name: str, value: Any, sizes: set[Any], plan: Plan) -> bool:
    if isinstance(value, Tensor):
        counts, lengths = token_counts(plan), value.shape
        if plan.base.steps is not None and _TIME.search(name):
            counts.add(max(plan.base.steps, _SMALLEST))
        if isinstance(value, nn.Parameter):  # the last dimension of a table is that of the channels
            lengths = lengths[:-1] if _TABLE.search(name) else ()
        elif _spans_time(value, plan):
            return True
        return any(length - extra in counts for length in lengths for extra in range(3))
    own = name.rpartition(".")[2]
    if not _SIZE.search(own) or _NOT_A_CLIP.search(own) or isinstance(value, bool):
        return False
    if isinstance(value, int):
        return value >= _SMALLEST and value in sizes
    return isinstance(value, tuple | list) and _plain(value) and tuple(value) in sizes


def _spans_time(value: Tensor, plan: Plan) -> bool:
    """Whether a tensor that nobody trains is a mask over steps, or has a row for each token of some steps."""
    if value.ndim < 2:
        return False
    square = value.shape[-1] == value.shape[-2] >= _SMALLEST
    if _over_unknown_time(plan):
        return square or any(_in_steps(length, plan) for length in value.shape[:-1])
    return square and value.shape[-1] == plan.base.steps


def _rows(value: Any, widths: set[int], *, matrices: bool) -> int:
    """Rows of a parameter that has the shape of a table, whatever its name: vectors as wide as a token.

    Args:
        value: anything.
        widths: of a token.
        matrices: whether a parameter of two dimensions may be a matrix, and so no table.
    """
    if not isinstance(value, nn.Parameter) or value.ndim < (3 if matrices else 2):
        return 0
    *around, rows = sorted(value.shape[:-1])
    return rows if value.shape[-1] in widths and set(around) <= {1} else 0


def _may_be_positions(name: str, rows: int, plan: Plan) -> bool:
    """Whether a table has a row for each token, step, row or column; of another pathway, too."""
    over_time = rows == plan.base.steps or _over_unknown_time(plan) or _TIME.search(name) is not None
    return rows >= _SMALLEST and (over_time or rows in plan.base.grid or _in_steps(rows, plan))


def _has_the_grid(name: str, value: Any, widths: set[int], plan: Plan) -> bool:
    """Whether a tensor has the rows and columns of the grid as dimensions side by side."""
    if not isinstance(value, Tensor) or math.prod(plan.base.grid) < _SMALLEST:
        return False
    beside = plan.base.grid in itertools.pairwise(value.shape)
    named = not isinstance(value, nn.Parameter) or _TABLE.search(name) is not None
    return beside and (named or not widths.isdisjoint(value.shape))


def _over_unknown_time(plan: Plan) -> bool:
    return plan.base.steps is None and "t" in plan.layout


def _in_steps(rows: int, plan: Plan) -> bool:
    """Whether rows are the tokens of some number of steps, with up to two class tokens."""
    tokens = math.prod(plan.base.grid)
    if tokens < _TELLING:
        return any(rows - extra in token_counts(plan) for extra in range(3))
    return rows >= tokens and rows % tokens < 3


def _plain(values: tuple[Any, ...] | list[Any]) -> bool:
    return all(isinstance(value, int) for value in values)
