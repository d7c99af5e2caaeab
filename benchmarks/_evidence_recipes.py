"""Long clips of real motion capture that differ in the order of their steps alone.

Three groups of six takes, of one performer's style each, with walking between them; the four classes of a
group hold the same six steps and swap the two members of pairs, so that any two differ in two places and no
single pair gives a class away. Every walk turns to a heading of its own: no heading tells the place.
"""

import math
from collections.abc import Sequence
from random import Random

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from flexvideo.data.look import Look, draw_look
from flexvideo.data.mocap import Take
from flexvideo.data.motion import RenderedSet
from flexvideo.data.scene import Scene, body_scale, build_scene
from flexvideo.data.skeleton import INDEX, TOE, place

WALK = "walk"
_LEFT, _RIGHT, _BOTH = "raise-up-left-hand", "raise-up-right-hand", "raise-up-both-hands"
_GROUPS = {
    "a": ((_LEFT, _RIGHT), ("wave-left-hand", "wave-right-hand"), (_BOTH, "wave-both-hands")),
    "b": ((_LEFT, "wave-both-hands"), ("run", "wave-right-hand"), (_RIGHT, "wave-left-hand")),
    "c": ((_BOTH, "wave-left-hand"), (_RIGHT, "run"), ("wave-both-hands", _LEFT)),
}
_CODES = ("000", "110", "101", "011")
RECIPES = {
    f"{group}_{code}": tuple(
        step for pair, bit in zip(pairs, code, strict=True) for step in (pair[::-1] if bit == "1" else pair)
    )
    for group, pairs in _GROUPS.items()
    for code in _CODES
}
_STEP, _FILLER, _BLEND = 3.5, (1.2, 2.2), 0.4  # seconds: of a step at most, of a walk, of a passage
_HEADING = 50.0  # degrees to either side of the camera


class MocapRecipes(RenderedSet):
    """Recipes joined from the takes of motion capture, a pure function of (split, seed, index).

    Args:
        takes: to draw from; of every style that has all actions.
        fps: their rate.
        split: another split, another draw.
        per_class: clips of each class.
        seed: another seed, another set.
    """

    def __init__(
        self, takes: Sequence[Take], *, fps: float, split: str, per_class: int, seed: int = 0
    ) -> None:
        self.split, self.seed, self.fps = split, seed, fps
        self.classes = tuple(RECIPES)
        self.labels = tuple(range(len(RECIPES))) * per_class
        self._takes = _by_style(takes)
        self._joined: dict[int, Float[Tensor, "t 21 3"]] = {}

    def duration(self, index: int) -> float:
        return (len(self._track(index)) - 1) / self.fps

    def joints(self, index: int, times: Float[Tensor, " t"]) -> Float[Tensor, "t 21 3"]:
        return self._at(self._track(index), times)

    def look(self, index: int) -> Look:
        rng = self._rng(index, "look")
        return draw_look(rng, girth=rng.uniform(0.85, 1.1))

    def scene(self, index: int, times: Float[Tensor, " t"]) -> Scene:
        track = self._track(index)
        focus = _smooth(track[:, INDEX["Hips"]], round(self.fps / 2)) * track.new_tensor([1.0, 0.0, 1.0])
        seen = self._at(track, times)
        return build_scene(seen, self.look(index), focus=self._at(focus, times), times=times.double())

    def _track(self, index: int) -> Float[Tensor, "t 21 3"]:
        self._check(index)
        if index not in self._joined:
            rng = self._rng(index, "motion")
            takes = self._takes[rng.choice(sorted(self._takes))]
            self._joined[index] = join(RECIPES[self.classes[self.labels[index]]], takes, self.fps, rng)
        return self._joined[index]

    def _at(self, values: Float[Tensor, "f *x"], times: Float[Tensor, " t"]) -> Float[Tensor, "t *x"]:
        at = (times.double() * self.fps).clamp(0, len(values) - 1)
        low = at.floor().long().clamp(max=len(values) - 2)
        return torch.lerp(values[low], values[low + 1], (at - low).reshape(-1, *[1] * (values.ndim - 1)))

    def _rng(self, index: int, what: str) -> Random:
        return Random(f"recipes {what} {self.seed} {self.split} {index}")


def join(
    recipe: Sequence[str], takes: dict[str, list[Take]], fps: float, rng: Random
) -> Float[Tensor, "t 21 3"]:
    """Draw a take for every step, with a walk before each and after the last, and put them end to end."""
    heading = rng.uniform(-_HEADING, _HEADING)
    whole: list[Tensor] = []
    for name in (*recipe, None):
        turned = rng.uniform(-_HEADING, _HEADING)
        walk = _cut(rng.choice(takes[WALK]), fps * rng.uniform(*_FILLER), rng)
        whole.append(_steered(walk, heading, turned))
        heading = turned
        if name is not None:
            step = _cut(rng.choice(takes[name]), fps * _STEP, None)
            whole.append(_steered(step, heading, heading))
    return _grounded(_passing(whole, round(_BLEND * fps)))


def _by_style(takes: Sequence[Take]) -> dict[str, dict[str, list[Take]]]:
    wanted = {WALK, *(step for recipe in RECIPES.values() for step in recipe)}
    found: dict[str, dict[str, list[Take]]] = {}
    for take in takes:
        if take.action in wanted:
            found.setdefault(take.style, {}).setdefault(take.action, []).append(take)
    return {style: actions for style, actions in found.items() if set(actions) == wanted}


def _cut(take: Take, frames: float, rng: Random | None) -> Float[Tensor, "t 21 3"]:
    """So many frames from the beginning, or from a random place."""
    joints, kept = take.joints.double(), max(4, round(frames))
    start = 0 if rng is None else rng.randint(0, max(0, len(joints) - kept))
    return joints[start : start + kept]


def _steered(joints: Float[Tensor, "t 21 3"], before: float, after: float) -> Float[Tensor, "t 21 3"]:
    """Face one heading at first and go over to another, in degrees; the path bends along."""
    hips = joints[:, INDEX["Hips"]]
    ground = hips.new_tensor([1.0, 0.0, 1.0])
    ramp = torch.linspace(0, 1, len(joints), dtype=joints.dtype)
    yaw = before - _facing(joints[0]) + (after - before) * ramp
    moves = (hips * ground).diff(dim=0, prepend=(hips * ground)[:1])
    path = place(moves[:, None], yaw, torch.zeros_like(moves))[:, 0].cumsum(0)
    return place(joints - (hips * ground)[:, None], yaw, path)


def _facing(joints: Float[Tensor, "21 3"]) -> float:
    across = joints[INDEX["UpperLeg_L"]] - joints[INDEX["UpperLeg_R"]]
    return math.degrees(math.atan2(-across[2], across[0]))


def _passing(parts: Sequence[Float[Tensor, "t 21 3"]], blend: int) -> Float[Tensor, "t 21 3"]:
    """End to end; what jumps at a seam fades over the first frames of the part after it."""
    whole = [parts[0]]
    for part in parts[1:]:
        last = whole[-1][-1]
        part = part + (last[INDEX["Hips"]] - part[0, INDEX["Hips"]]) * part.new_tensor([1.0, 0.0, 1.0])
        fade = (1 - torch.arange(1, len(part) + 1, dtype=part.dtype) / blend).clamp(min=0)
        whole.append(part + fade[:, None, None] * (last - part[0]))
    return torch.cat(whole)


def _grounded(joints: Float[Tensor, "t 21 3"]) -> Float[Tensor, "t 21 3"]:
    """From the middle of the floor, with the lowest joint at the height of toes."""
    start = joints[0, INDEX["Hips"]].clone()
    start[1] = joints[..., 1].min() - TOE * body_scale(joints)
    return joints - start


def _smooth(path: Float[Tensor, "t 3"], reach: int) -> Float[Tensor, "t 3"]:
    padded = F.pad(path.T[None], (reach, reach), mode="replicate")
    return F.avg_pool1d(padded, 2 * reach + 1, stride=1)[0].T
