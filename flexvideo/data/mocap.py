"""Real motion capture, drawn like the procedural set: label results on it "rendered motion capture"."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flexvideo.data.look import Look, draw_look
from flexvideo.data.motion import MAX_AZIMUTH, RenderedSet
from flexvideo.data.scene import Scene, body_scale, build_scene
from flexvideo.data.skeleton import INDEX, TOE, place
from flexvideo.errors import MissingExtraError, MotionError

_NPZ_FPS = 15.0
_SMOOTH = 0.5  # seconds to either side over which the camera evens out the hips' path


@dataclass(frozen=True)
class Take:
    """One recording: joints in metres at a steady rate, what was done, how, and its number in the file."""

    joints: Float[Tensor, "t 21 3"]
    action: str
    style: str
    number: int


class MocapSet(RenderedSet):
    """Clips of a converted motion capture file, each turned to within 60 degrees of the camera.

    Args:
        path: a file of `convert_bvh`, or an .npz with `delta_mm`, `length`, `content` and `style`.
        seed: of looks, cameras and headings; the motion itself is as recorded.
        actions: actions to keep, in the order of their labels; all, sorted, when None.
        styles: styles to keep; all when None. Keeping some for testing makes an unseen-style test set.

    Raises:
        MotionError: not such a file, or no clip of a wanted action or style in it.
        MissingExtraError: an .npz file without numpy.

    Example:
        >>> clips = MocapSet("bandai.safetensors", styles=("elderly",))  # doctest: +SKIP
        >>> clips.sample(0, frames=16, size=112).shape  # doctest: +SKIP
        torch.Size([16, 112, 112, 3])
    """

    def __init__(
        self,
        path: str | Path,
        *,
        seed: int = 0,
        actions: Sequence[str] | None = None,
        styles: Sequence[str] | None = None,
    ):
        self.seed = seed
        takes, self.fps = _load(Path(path))
        _check_known("action", actions, {take.action for take in takes}, path)
        _check_known("style", styles, {take.style for take in takes}, path)
        kept = [take for take in takes if styles is None or take.style in styles]
        self.classes = tuple(sorted({take.action for take in kept}) if actions is None else actions)
        self.takes = [take for take in kept if take.action in self.classes]
        if not self.takes:
            raise MotionError(f"No clip of {path} has both a wanted action and a wanted style.")
        self.labels = tuple(self.classes.index(take.action) for take in self.takes)

    def duration(self, index: int) -> float:
        """Length of a clip in seconds."""
        self._check(index)
        return max(len(self.takes[index].joints) - 1, 1) / self.fps

    def joints(self, index: int, times: Float[Tensor, " t"]) -> Float[Tensor, "t 21 3"]:
        """Joint positions in metres at times in seconds, on the floor and turned to the camera."""
        return self._at(self._placed(index), times)

    def look(self, index: int) -> Look:
        """The appearance of a clip as plain data."""
        rng = self._rng(index, "look")
        return draw_look(rng, girth=rng.uniform(0.85, 1.1))

    def scene(self, index: int, times: Float[Tensor, " t"]) -> Scene:
        """What the camera sees at times in seconds."""
        placed = self._placed(index)
        path = _smooth(placed[:, INDEX["Hips"]], round(_SMOOTH * self.fps))
        path[:, 1] = 0
        return build_scene(
            self._at(placed, times), self.look(index), focus=self._at(path, times), times=times.double()
        )

    def _placed(self, index: int) -> Float[Tensor, "t 21 3"]:
        self._check(index)
        joints = self.takes[index].joints.double()
        across = joints[:, INDEX["UpperLeg_L"]] - joints[:, INDEX["UpperLeg_R"]]
        middle = across[len(across) // 2]
        facing = math.degrees(math.atan2(-middle[2], middle[0]))
        wanted = self._rng(index, "heading").uniform(-MAX_AZIMUTH, MAX_AZIMUTH)
        start = joints[0, INDEX["Hips"]].clone()
        start[1] = joints[..., 1].min() - TOE * body_scale(joints)
        turn = joints.new_full((len(joints),), wanted - facing)
        return place(joints - start, turn, joints.new_zeros(len(joints), 3))

    def _at(self, values: Float[Tensor, "f *x"], times: Float[Tensor, " t"]) -> Float[Tensor, "t *x"]:
        at = (times.double() * self.fps).clamp(0, len(values) - 1)
        low = at.floor().long().clamp(max=max(len(values) - 2, 0))
        high = (low + 1).clamp(max=len(values) - 1)
        return torch.lerp(values[low], values[high], (at - low).reshape(-1, *[1] * (values.ndim - 1)))

    def _rng(self, index: int, what: str) -> Random:
        return Random(f"flexvideo mocap {what} {self.seed} {self.takes[index].number}")


def _check_known(what: str, names: Sequence[str] | None, known: set[str], path: str | Path) -> None:
    for name in names or ():
        if name not in known:
            raise MotionError(f"{path} has no {what} {name!r}; it has {', '.join(sorted(known))}.")


def _smooth(path: Float[Tensor, "t 3"], reach: int) -> Float[Tensor, "t 3"]:
    """A moving average; the ends are continued by point reflection, so that a walk does not lag there."""
    reach = min(reach, len(path) - 1)
    before = 2 * path[:1] - path[1 : reach + 1].flip(0)
    after = 2 * path[-1:] - path[-reach - 1 : -1].flip(0)
    total = torch.cat([path.new_zeros(1, 3), torch.cat([before, path, after]).cumsum(0)])
    return (total[2 * reach + 1 :] - total[: len(path)]) / (2 * reach + 1)


def _load(path: Path) -> tuple[list[Take], float]:
    if not path.is_file():
        raise MotionError(f"There is no motion capture file {path}; `convert_bvh` makes one from BVH files.")
    return (_load_npz(path), _NPZ_FPS) if path.suffix == ".npz" else _load_safetensors(path)


def _load_safetensors(path: Path) -> tuple[list[Take], float]:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            joints, lengths = file.get_tensor("joints"), file.get_tensor("lengths").tolist()
            clips, fps = json.loads(about["clips"]), float(about["fps"])
    except (SafetensorError, KeyError) as error:
        raise MotionError(f"{path} is not a file of `convert_bvh`: {error}.") from error
    parts = zip(joints.split(lengths), clips, strict=True)
    return [Take(part, clip["action"], clip["style"], n) for n, (part, clip) in enumerate(parts)], fps


def _load_npz(path: Path) -> list[Take]:
    """Millimetre steps, the hips' own and the other joints' relative to the hips, clip after clip."""
    try:
        import numpy
    except ImportError as error:
        raise MissingExtraError(f"Reading {path} needs numpy: pip install numpy.") from error
    with numpy.load(path) as file:
        missing = [name for name in ("delta_mm", "length", "content", "style") if name not in file]
        if missing:
            raise MotionError(f"{path} has no array {missing[0]!r}; it has {', '.join(file)}.")
        steps = torch.from_numpy(file["delta_mm"]).permute(2, 0, 1)
        lengths, actions, styles = (file[name].tolist() for name in ("length", "content", "style"))
    takes = []
    for number, part in enumerate(steps.split(lengths)):
        places = part.cumsum(0, dtype=torch.int32).float() / 1000
        places[:, 1:] += places[:, :1]
        takes.append(Take(places, actions[number], styles[number], number))
    return takes
