"""What in an unknown model could be its patch embedding, tables and sizes, by names and shapes."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flexvideo.families import conv_sizes
from flexvideo.layers import FLEXIBLE_LAYERS

_POSITIONS = re.compile(r"(^|_)pos|temporal|time|frame", re.IGNORECASE)
_SIZES = re.compile(
    r"(img|image|input|frame|crop)_?(size|resolution)|num_?frames|num_?patches", re.IGNORECASE
)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that may hold positions.

    Args:
        name: dotted path from the model.
        label: its own name, or that of the list or embedding it is in.
        shape: its shape.
        kind: "parameter", "buffer" or "attribute".
    """

    name: str
    label: str
    shape: tuple[int, ...]
    kind: str

    def __str__(self) -> str:
        return f"`{self.name}` {self.shape}"


def position_tensors(model: nn.Module) -> Iterator[StoredTensor]:
    """Tensors with the name of a table of positions, wherever a model stores them.

    Args:
        model: any model.
    """
    for path, module in model.named_modules():
        for kind, store in (
            ("parameter", module._parameters),
            ("buffer", module._buffers),
            ("attribute", module.__dict__),
        ):
            for name, value in store.items():
                named_by_path = isinstance(module, nn.ParameterList | nn.Embedding)
                label = path.rpartition(".")[2] if named_by_path else name
                if isinstance(value, Tensor) and _POSITIONS.search(label):
                    yield StoredTensor(f"{path}.{name}" if path else name, label, tuple(value.shape), kind)


def tensors_as_wide(model: nn.Module, widths: set[int]) -> Iterator[StoredTensor]:
    """Parameters with the shape of a table of positions, whatever their names: vectors as wide as a token.

    Args:
        model: any model.
        widths: of a token.
    """
    for path, module in model.named_modules():
        embedding = isinstance(module, nn.Embedding)
        for name, value in module._parameters.items():
            if value is None or value.ndim < (2 if embedding else 3) or value.shape[-1] not in widths:
                continue
            *around, rows = sorted(value.shape[:-1])
            if rows > 1 and set(around) <= {1}:
                full = f"{path}.{name}" if path else name
                yield StoredTensor(full, path if embedding else name, tuple(value.shape), "parameter")


def convolutions(model: nn.Module) -> tuple[list[str], list[str]]:
    """Paths of the convolutions that can be a patch embedding, and of the others, with why they cannot.

    Args:
        model: any model.
    """
    found, rejected = [], []
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            problem = _not_a_patch_embed(module)
            if problem is None:
                found.append(path)
            else:
                rejected.append(f"{path}: {type(module).__name__} {problem}")
    return found, rejected


def candidates(model: nn.Module) -> str:
    """Describe what a plan for a model could name, and the plan to start from, for people to complete.

    Args:
        model: any model.

    Example:
        >>> print(candidates(nn.ModuleDict({"stem": nn.Conv2d(3, 8, 4, stride=4)})))
        What ModuleDict holds that a plan could name:
            stem: Conv2d, kernel (4, 4), stride (4, 4)
        A plan to start from, each ? to be filled in:
            Plan(
                base=Base(frames=?, height=?, width=?, patch=(4, 4), tubelet=1),
                patch_embeds=('stem',),
                tables=(),
            )
    """
    found, rejected = convolutions(model)
    linears = [path for path, module in model.named_modules() if _may_embed_patches(module)]
    tensors = [tensor for tensor in position_tensors(model) if max(tensor.shape[:-1], default=1) > 1]
    widths: set[Any] = {model.get_submodule(path).out_channels for path in found}
    names = {tensor.name for tensor in tensors}
    tensors += [tensor for tensor in tensors_as_wide(model, widths) if tensor.name not in names]
    patch, tubelet = (conv_sizes(model, found[0]) if found else None) or ("?", 1)
    lines = [f"What {type(model).__name__} holds that a plan could name:"]
    lines += [f"    {path}: {_kernel(model.get_submodule(path))}" for path in found]
    lines += [f"    {path}: Linear from {model.get_submodule(path).in_features} features" for path in linears]
    lines += [f"    {tensor.name}: {tensor.kind} of shape {tensor.shape}" for tensor in tensors]
    lines += [f"    {name} = {value!r}" for name, value in _sizes(model)]
    lines += [f"    not a patch embedding: {reason}" for reason in rejected[:8]]
    tables = "".join(f"\n            Table({each.name!r}, axes=?, dim={_dim(each)})," for each in tensors)
    return "\n".join(lines) + (
        "\nA plan to start from, each ? to be filled in:\n    Plan(\n"
        f"        base=Base(frames=?, height=?, width=?, patch={patch}, tubelet={tubelet}),\n"
        f"        patch_embeds={tuple(found[:1] or linears[:1])},\n"
        f"        tables=({tables}{chr(10) + ' ' * 8 if tables else ''}),\n    )"
    )


def _not_a_patch_embed(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> str | None:
    if type(module) not in FLEXIBLE_LAYERS:
        return "is not a plain Conv2d or Conv3d"
    if module.in_channels != 3:
        return f"over {module.in_channels} channels"
    if module.kernel_size[-2:] != module.stride[-2:] or max(module.stride[-2:]) == 1:
        return f"has kernel {module.kernel_size} and stride {module.stride}"
    return None


def _may_embed_patches(module: nn.Module) -> bool:
    """Whether a Linear takes as many features as a square patch of three channels has."""
    if type(module) is not nn.Linear or module.in_features % 3:
        return False
    side = math.isqrt(module.in_features // 3)
    return side >= 4 and 3 * side**2 == module.in_features


def _kernel(module: Any) -> str:
    return f"{type(module).__name__}, kernel {module.kernel_size}, stride {module.stride}"


def _dim(tensor: StoredTensor) -> int:
    """The dimension with the most entries but for the last, which holds the channels."""
    return max(range(len(tensor.shape) - 1), key=lambda dim: tensor.shape[dim])


def _sizes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            if _SIZES.search(name) and isinstance(value, int | tuple | list):
                yield f"{path}.{name}" if path else name, value
