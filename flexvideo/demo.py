"""One set of weights over a grid of frames x sizes x policies: what the first command shows."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flexvideo.discover import plan_for
from flexvideo.geometry import Geometry
from flexvideo.models import VideoMamba
from flexvideo.policy import Policy, policy_of
from flexvideo.swap import make_flexible

PATCHES = {"flexivit": 24, "flex-all": 32}
ClipReader = Callable[[int, int], Float[Tensor, "1 3 t h w"]]


@dataclass(frozen=True)
class Cell:
    """What one forward pass at one geometry cost, and how close its feature is to the base geometry's."""

    policy: str
    frames: int
    size: int
    patch: int
    grid: tuple[int, int]
    sees: int
    tokens: int
    gflops: float
    milliseconds: float
    cosine: float

    def to_json(self) -> dict[str, object]:
        """Plain data, ready for `json.dump`."""
        return asdict(self)


def run_grid(
    model: VideoMamba,
    read: ClipReader,
    *,
    policies: Sequence[str | Policy],
    frames: Sequence[int],
    sizes: Sequence[int],
) -> Iterator[Cell]:
    """Run the flexible `model` at every policy, frame count and size, one cell at a time.

    "flexivit" and "flex-all" are shown with a patch of their own sets (`PATCHES`): a bare call would use the
    base patch, and their rows would repeat those of "static-patch".

    Args:
        model: a flexible model.
        read: `read(frames, size)` gives the clip as (1, 3, frames, size, size).
        policies: names or policies, in the order of the table.
        frames: frame counts T.
        sizes: frame sides R in pixels.

    Example:
        >>> import torch, flexvideo as fv
        >>> model = fv.make_flexible(fv.VideoMamba(img_size=32, patch_size=8, depth=1, embed_dim=32).eval())
        >>> cells = run_grid(model, lambda t, r: torch.rand(1, 3, t, r, r), policies=["static-tokens"],
        ...                  frames=[4], sizes=[24, 32])
        >>> [cell.tokens for cell in cells]
        [65, 65]
    """
    base = plan_for(model).base
    shadow = copy.deepcopy(model).to("meta")
    reference = _feature(model, read(base.frames or frames[0], base.height), patch=None)
    for policy in map(policy_of, policies):
        patch = PATCHES.get(policy.name)
        make_flexible(model, policy=policy)
        make_flexible(shadow, policy=policy)
        for size in sizes:
            for count in frames:
                geometry = policy.geometry(base, count, size, size, patch)
                clip = read(count, size)
                start = time.perf_counter()
                feature = _feature(model, clip, patch=patch)
                elapsed = 1e3 * (time.perf_counter() - start)
                cosine = float(torch.cosine_similarity(feature, reference, dim=-1))
                yield _cell(policy.name, count, size, geometry, _gflops(shadow, clip, patch), elapsed, cosine)


def _cell(
    policy: str, frames: int, size: int, geometry: Geometry, gflops: float, elapsed: float, cosine: float
) -> Cell:
    return Cell(
        policy=policy,
        frames=frames,
        size=size,
        patch=geometry.patch[0],
        grid=geometry.grid,
        sees=geometry.height,
        tokens=1 + geometry.tokens,
        gflops=gflops,
        milliseconds=elapsed,
        cosine=cosine,
    )


@torch.inference_mode()
def _feature(
    model: VideoMamba, clip: Float[Tensor, "1 3 t h w"], *, patch: int | None
) -> Float[Tensor, "1 d"]:
    features: Callable[..., Tensor] = model.forward_features  # takes `patch` since the model is flexible
    return features(clip, patch=patch)


def _gflops(shadow: VideoMamba, clip: Float[Tensor, "1 3 t h w"], patch: int | None) -> float:
    """Count 2 x multiply-accumulate on the meta device, where a forward pass costs no arithmetic."""
    with FlopCounterMode(display=False) as counter:
        _feature(shadow, clip.to("meta"), patch=patch)
    return counter.get_total_flops() / 1e9


def format_table(cells: Sequence[Cell]) -> str:
    """The cells as a table: one block a policy, one line a geometry.

    Example:
        >>> print(format_table([Cell("static-tokens", 8, 96, 7, (14, 14), 98, 1569, 11.5, 410.0, 0.98)]))
        policy          clip T x R  patch     grid   sees  tokens  GFLOPs      ms  cosine
        static-tokens       8 x 96      7  14 x 14     98    1569    11.5     410   0.980
    """
    lines = [
        f"{'policy':<15} {'clip T x R':>10} {'patch':>6} {'grid':>8} {'sees':>6} {'tokens':>7} {'GFLOPs':>7} "
        f"{'ms':>7} {'cosine':>7}"
    ]
    previous = None
    for cell in cells:
        if previous is not None and cell.policy != previous:
            lines.append("")
        name = cell.policy if cell.policy != previous else ""
        previous = cell.policy
        lines.append(
            f"{name:<15} {f'{cell.frames} x {cell.size}':>10} {cell.patch:>6} "
            f"{f'{cell.grid[0]} x {cell.grid[1]}':>8} {cell.sees:>6} {cell.tokens:>7} {cell.gflops:>7.1f} "
            f"{cell.milliseconds:>7.0f} {cell.cosine:>7.3f}"
        )
    return "\n".join(lines)
