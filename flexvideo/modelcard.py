"""README.md of a model repository, from the facts: what it is, how to use it, what was measured."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flexvideo.description import Description
from flexvideo.modelconfig import ModelConfig

MARK = "<!-- written by flexvideo; remove this line to keep your own text -->"
Results = Mapping[str, Any] | Sequence[Mapping[str, Any]]

_CITATIONS = """\
```bibtex
@article{siddiqui2025stretchysnake,
  title={StretchySnake: Flexible SSM Training Unlocks Action Recognition Across Spatio-Temporal Scales},
  author={Siddiqui, Nyle and Gupta, Rohit and Swetha, Sirnam and Shah, Mubarak},
  journal={arXiv preprint arXiv:2510.16209},
  year={2025}
}
@inproceedings{li2024videomamba,
  title={VideoMamba: State Space Model for Efficient Video Understanding},
  author={Li, Kunchang and Li, Xinhao and Wang, Yi and He, Yinan and Wang, Yali and Wang, Limin and Qiao, Yu},
  booktitle={European Conference on Computer Vision},
  year={2024}
}
```"""


def model_card(
    found: Description,
    config: ModelConfig,
    *,
    name: str,
    results: Results | None = None,
) -> str:
    """Return the text of README.md.

    Args:
        found: what the model is.
        config: what travels with it.
        name: repository or folder to load it from.
        results: measurements, one mapping or a list of them, shown as a table; what `flexvideo evaluate`
            writes has a row for every geometry.

    Example:
        >>> from flexvideo.description import description
        >>> from flexvideo.statedict import interpret
        >>> import flexvideo
        >>> model = flexvideo.VideoMamba(img_size=32, depth=1, embed_dim=16)
        >>> config = ModelConfig({})
        >>> found = description(interpret(model.state_dict()), config, name="me/x")
        >>> 'fv.load("me/x")' in model_card(found, config, name="me/x")
        True
    """
    base = found.base
    parts = [
        _front_matter(found, config.license),
        MARK,
        f"# {name.rpartition('/')[2]}",
        _summary(found),
        _table(["", ""], _facts(found, config)),
        "## Use",
        _use(config, name, base.frames or 1, base.height, base.width),
        *(["## Results", _results(results)] if results else []),
        "## Licence",
        config.license or "Not stated by the authors of these weights.",
        "## Citation",
        _CITATIONS,
    ]
    return "\n\n".join(parts) + "\n"


def licence_in(card: str | None) -> str | None:
    """Identifier of the licence that the metadata of a card name; None where there is none.

    Args:
        card: text of README.md, if there is one.

    Example:
        >>> licence_in("---\\nlicense: mit\\n---\\n# Mine")
        'mit'
    """
    metadata = re.match(r"---\n(.*?)\n---", card or "", flags=re.DOTALL)
    found = re.search(r"^license: *([a-z0-9.-]+) *$", metadata[1], flags=re.MULTILINE) if metadata else None
    return found[1] if found else None


def _front_matter(found: Description, license: str | None) -> str:
    task = "video-classification" if found.classes else "feature-extraction"
    lines = [
        *([f"license: {license}"] if license else []),
        "library_name: flexvideo",
        f"pipeline_tag: {task}",
        "tags:",
        *(f"- {tag}" for tag in ("flexvideo", "videomamba", "state-space-model", "video")),
    ]
    return "\n".join(["---", *lines, "---"])


def _summary(found: Description) -> str:
    if found.policy is None:
        return (
            f"A VideoMamba ({found.variant}) for clips of {found.base.frames} frames of "
            f"{found.base.height} x {found.base.width} pixels. "
            "`flexvideo.make_flexible(model)` runs it at any other size."
        )
    return (
        f"A flexible VideoMamba ({found.variant}): one set of weights for any number of frames, frame size "
        "and patch size."
    )


def _facts(found: Description, config: ModelConfig) -> list[list[str]]:
    base = found.base
    drawn = {key: value for key, value in (found.policy or {}).items() if key != "name"}
    return [
        ["parameters", f"{found.parameters:,} ({found.dtype})"],
        ["layers x width", f"{found.depth} x {found.width}"],
        ["base geometry", f"{base.frames} x {base.height} x {base.width}"],
        ["base patch", f"{base.patch[0]} x {base.patch[1]}"],
        ["classes", str(found.classes) if found.classes else "none (features)"],
        *([["policy", found.policy["name"]]] if found.policy else []),
        *([f"{key} the policy draws in training", _drawn(value)] for key, value in drawn.items()),
        *([["resampling rule", _rule(found.rule)]] if found.rule else []),
        ["mean, std", f"{_words(list(config.mean))}; {_words(list(config.std))}"],
    ]


def _drawn(value: Any) -> str:
    """What a policy draws from, rectangles apart from squares."""
    if not isinstance(value, list | tuple):
        return _words(value)
    return ", ".join(
        " x ".join(map(str, each)) if isinstance(each, list | tuple) else str(each) for each in value
    )


def _rule(rule: Mapping[str, Any]) -> str:
    return f"{rule['kernel']}, {'antialiased' if rule['antialias'] else 'not antialiased'}"


def _use(config: ModelConfig, name: str, frames: int, height: int, width: int) -> str:
    usual = ModelConfig({})
    norm = "" if (config.mean, config.std) == (usual.mean, usual.std) else ", mean=model.mean, std=model.std"
    size = height if height == width else (height, width)
    return "\n".join(
        [
            "```python",
            "import flexvideo as fv",
            f'model = fv.load("{name}")',
            f'logits = model(fv.read_clip("video.mp4", frames={frames}, size={size}{norm}))',
            "```",
        ]
    )


def _results(results: Results) -> str:
    listed = [results] if isinstance(results, Mapping) else results
    rows = [row for result in listed for row in (_cells(result) if _is_grid(result) else [result])]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _table(names, [[_words(row.get(name, "")) for name in names] for row in rows])


def _is_grid(result: Mapping[str, Any]) -> bool:
    cells = result.get("cells")
    whole = isinstance(cells, list) and all({"cell", "metrics"} <= cell.keys() for cell in cells)
    return whole and {"task", "queries"} <= result.keys()


def _cells(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a result over a grid of geometries, each metric with its interval."""
    what = {"task": result["task"], "data": result["queries"]["data"]}
    return [
        what
        | {name: value for name, value in cell["cell"].items() if value is not None}
        | {
            name: f"{_words(found['value'])} ({_words(found['low'])} to {_words(found['high'])})"
            for name, found in cell["metrics"].items()
        }
        for cell in result["cells"]
    ]


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in cells
    )


def _words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
