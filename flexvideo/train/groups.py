"""Parameter groups of the official recipe, with the parameters that flex taken out of its layer decay."""

from typing import Any

from torch import nn

from flexvideo.active import flex_within
from flexvideo.errors import ConfigError

# What the official script takes for the input of the model; it takes all blocks for its output.
_FIRST = ("cls_token", "mask_token", "pos_embed", "patch_embed.")


def param_groups(
    model: nn.Module, *, weight_decay: float = 0.05, layer_decay: float = 1.0, flexed_lr: float = 1.0
) -> list[dict[str, Any]]:
    """Sort the parameters that train into groups for an optimizer, each with its factor `lr_scale`.

    As in the official script, vectors, biases and the names in the model's `no_weight_decay()` are not
    decayed (A_log is), and layer decay, of which an oversight there left little, holds for the class token,
    the spatial table and the patch embedding alone, at layer_decay ** (depth + 1): 7.5e-5 for the middle
    model at 0.75. That all but freezes what has to learn to be resampled, so whatever a flexible model
    resamples is in groups of its own, at the factor `flexed_lr`.

    Args:
        model: plain or flexible; not wrapped.
        weight_decay: of the groups that decay.
        layer_decay: factor a layer, at most 1; 1 is no layer decay.
        flexed_lr: factor on the learning rate of what is resampled.

    Raises:
        ConfigError: nothing to train, or layer decay for a model without `get_num_layers()`.

    Example:
        >>> from flexvideo import VideoMamba, make_flexible
        >>> model = make_flexible(VideoMamba(img_size=32, depth=3, embed_dim=16, num_frames=2))
        >>> for group in param_groups(model, layer_decay=0.5):
        ...     print(group["kind"], group["lr_scale"], group["weight_decay"], len(group["params"]))
        first 0.0625 0.0 2
        flexed 1.0 0.0 2
        flexed 1.0 0.05 1
        other 1.0 0.05 31
        other 1.0 0.0 23

    Source: run_class_finetuning.py and optim_factory.py of VideoMamba.
    """
    kernels, tables = _flexed(model)
    flexed, kept = kernels | tables, _undecayed(model) | tables
    scales = {"first": _first_scale(model, layer_decay), "flexed": flexed_lr, "other": 1.0}
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind = "flexed" if name in flexed else "first" if _is_first(name, layer_decay) else "other"
        decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in kept
        group = groups.setdefault(
            (kind, decays),
            {
                "kind": kind,
                "lr_scale": scales[kind],
                "weight_decay": weight_decay if decays else 0.0,
                "names": [],
                "params": [],
            },
        )
        group["names"].append(name)
        group["params"].append(parameter)
    if not groups:
        raise ConfigError(f"Nothing to train: no parameter of {type(model).__name__} requires a gradient.")
    return list(groups.values())


def _flexed(model: nn.Module) -> tuple[set[str], set[str]]:
    """Names of the kernels and of the tables that are resampled, wherever in the model that part is."""
    flex = flex_within(model)
    if flex is None:
        return set(), set()
    names = set(dict(model.named_parameters()))
    plans = (flex.plan.within(path) for path, _ in model.named_modules())
    plan = max(plans, key=lambda plan: len(names.intersection(plan.parameters)))
    tables = {table.name for table in plan.tables}
    return set(plan.parameters) - tables, tables


def _undecayed(model: nn.Module) -> set[str]:
    listed = getattr(model, "no_weight_decay", None)
    return set() if listed is None else set(listed())


def _is_first(name: str, layer_decay: float) -> bool:
    return layer_decay < 1 and name.startswith(_FIRST)


def _first_scale(model: nn.Module, layer_decay: float) -> float:
    if layer_decay == 1:
        return 1.0
    count = getattr(model, "get_num_layers", None)
    if count is None:
        raise ConfigError(
            f"Layer decay needs the depth of the model, and {type(model).__name__} has no "
            "`get_num_layers()`: leave `layer_decay` at 1."
        )
    return layer_decay ** (count() + 1)
