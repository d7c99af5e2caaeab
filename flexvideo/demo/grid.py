"""One set of weights over a grid of frames x sizes x policies: what the first command shows."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flexvideo.discover import plan_for
from flexvideo.features import require_finite
from flexvideo.geometry import Base, Geometry
from flexvideo.models import VideoMamba
from flexvideo.policy import Policy, policy_of
from flexvideo.swap import make_flexible

PATCHES = {"flexivit": 24, "flex-all": 32}
ClipReader = Callable[[int, int], Float[Tensor, "1 3 t h w"]]


@dataclass(frozen=True)
class Point:
    """One geometry to run, as a policy solves it.

    Args:
        policy: under which the clip is run.
        frames: frames T of the clip.
        size: frame side R of the clip in pixels.
        patch: what the call asks for; None leaves it to the policy.
        geometry: sizes that the forward pass runs at.
    """

    policy: Policy
    frames: int
    size: int
    patch: int | None
    geometry: Geometry


@dataclass(frozen=True)
class Cell:
    """What one forward pass at one geometry cost, and how close its feature is to the base geometry's.

    Args:
        policy: its name.
        frames: frames T of the clip.
        size: frame side R of the clip in pixels.
        patch: side of a patch in pixels.
        grid: rows and columns of patches.
        sees: side in pixels of what the patches cover, after the model's own resize of the clip.
        tokens: with the class token.
        gflops: 2 x multiply-accumulates of the pass, in 10^9.
        milliseconds: that the pass took.
        cosine: of its feature to the one at the model's own size.
    """

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


def points(
    model: VideoMamba, *, policies: Sequence[str | Policy], frames: Sequence[int], sizes: Sequence[int]
) -> list[Point]:
    """Solve the geometry of every policy, size and frame count, in this order, each once.

    "flexivit" and "flex-all" are shown with a patch of their own sets (`PATCHES`): a bare call would use the
    base patch, and their rows would repeat those of "static-patch".

    Args:
        model: a flexible model.
        policies: names or policies.
        frames: frame counts T.
        sizes: frame sides R in pixels.

    Raises:
        GeometryError: one that cannot be run.
    """
    base = plan_for(model).base
    grid = product(dict.fromkeys(map(policy_of, policies)), dict.fromkeys(sizes), dict.fromkeys(frames))
    return [_point(base, policy, count, size) for policy, size, count in grid]


def _point(base: Base, policy: Policy, frames: int, size: int) -> Point:
    patch = PATCHES.get(policy.name)
    return Point(policy, frames, size, patch, policy.geometry(base, frames, size, size, patch))


def run_grid(model: VideoMamba, read: ClipReader, grid: Sequence[Point]) -> Iterator[Cell]:
    """Run the flexible `model` at every point, one cell at a time.

    The first pass under each policy is run twice, and the second one timed: the first compiles the scan and
    builds the resampling matrices.

    Args:
        model: a flexible model; it is left under the last policy.
        read: `read(frames, size)` gives the clip as (1, 3, frames, size, size).
        grid: of `points`, for this model.

    Raises:
        UnsupportedModelError: a feature that is infinite or no number.

    Example:
        >>> import torch, flexvideo as fv
        >>> model = fv.make_flexible(fv.VideoMamba(img_size=32, patch_size=8, depth=1, embed_dim=32).eval())
        >>> grid = points(model, policies=["static-tokens"], frames=[4], sizes=[24, 32])
        >>> [cell.tokens for cell in run_grid(model, lambda t, r: torch.rand(1, 3, t, r, r), grid)]
        [65, 65]
    """
    base = plan_for(model).base
    shadow = copy.deepcopy(model).to("meta")
    frames = base.frames or grid[0].frames
    reference = _feature(model, read(frames, base.height), patch=None)
    require_finite(reference, model, at=f"{frames} x {base.height}, its own size")
    under = None
    for point in grid:
        clip = read(point.frames, point.size)
        if point.policy != under:
            under = point.policy
            make_flexible(model, policy=under)
            make_flexible(shadow, policy=under)
            _feature(model, clip, patch=point.patch)
        start = time.perf_counter()
        feature = _feature(model, clip, patch=point.patch)
        elapsed = 1e3 * (time.perf_counter() - start)
        require_finite(feature, model, at=f"{point.frames} x {point.size} under {point.policy.name}")
        cosine = float(torch.cosine_similarity(feature, reference, dim=-1))
        yield _cell(point, _gflops(shadow, clip, point.patch), elapsed, cosine)


def _cell(point: Point, gflops: float, milliseconds: float, cosine: float) -> Cell:
    geometry = point.geometry
    return Cell(
        policy=point.policy.name,
        frames=point.frames,
        size=point.size,
        patch=geometry.patch[0],
        grid=geometry.grid,
        sees=geometry.grid[0] * geometry.patch[0],
        tokens=1 + geometry.tokens,
        gflops=gflops,
        milliseconds=milliseconds,
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


def table_lines(cells: Iterable[Cell], *, cosines: bool = True) -> Iterator[str]:
    """The cells as a table, line by line as they come: a line a geometry, the policy named once.

    Args:
        cells: of `run_grid`.
        cosines: whether to show them; those of random weights say little.

    Example:
        >>> cell = Cell("static-tokens", 8, 96, 7, (14, 14), 98, 1569, 11.5, 410.0, 0.98)
        >>> print(*table_lines([cell]), sep="\\n")
        policy        clip T x R  patch     grid   sees  tokens  GFLOPs      ms  cosine
        static-tokens     8 x 96      7  14 x 14     98    1569    11.5     410   0.980
    """
    last = f" {'cosine':>7}" if cosines else ""
    yield (
        f"{'policy':<13} {'clip T x R':>10} {'patch':>6} {'grid':>8} {'sees':>6} {'tokens':>7} {'GFLOPs':>7} "
        f"{'ms':>7}{last}"
    )
    previous = None
    for cell in cells:
        name = cell.policy if cell.policy != previous else ""
        previous = cell.policy
        last = f" {cell.cosine:>7.3f}" if cosines else ""
        yield (
            f"{name:<13} {f'{cell.frames} x {cell.size}':>10} {cell.patch:>6} "
            f"{f'{cell.grid[0]} x {cell.grid[1]}':>8} {cell.sees:>6} {cell.tokens:>7} {cell.gflops:>7.1f} "
            f"{cell.milliseconds:>7.0f}{last}"
        )
