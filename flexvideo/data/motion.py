"""A procedural motion data set: a figure performs keyframed actions, drawn at any frame count and size.

`MotionSet` ships with the package and needs no files. Each clip is a pure function of (split, seed, index):
the random draw does not see the label, so the members of a pair differ only in what the label says.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from flexvideo.data.actions import ACTIONS, MOTIONS
from flexvideo.data.look import Look, draw_look
from flexvideo.data.render import render
from flexvideo.data.scene import Scene, build_scene
from flexvideo.data.skeleton import Body
from flexvideo.data.timeline import Step, Timeline, Walk
from flexvideo.errors import ConfigError, GeometryError

SPLITS = ("train", "val", "test")
MAX_AZIMUTH = 60.0

# Three groups of six steps. The four classes of a group hold the same steps; a 1 in the code swaps a pair.
# Any two codes differ in exactly two places, so that no single pair gives the class away.
_GROUPS = {
    "a": (("wave_left", "wave_right"), ("bow", "jump"), ("kick_left", "kick_right")),
    "b": (("raise_left", "raise_right"), ("squat", "clap"), ("kick_left", "bow")),
    "c": (("wave_right", "kick_left"), ("jump", "raise_right"), ("clap", "wave_left")),
}
_CODES = ("000", "110", "101", "011")
RECIPES = {
    f"recipe_{group}_{code}": tuple(
        step for pair, bit in zip(pairs, code, strict=True) for step in (pair[::-1] if bit == "1" else pair)
    )
    for group, pairs in _GROUPS.items()
    for code in _CODES
}


class RenderedSet(ABC):
    """Clips that are drawn when asked for, at the frame count and size asked for."""

    classes: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def duration(self, index: int) -> float:
        """Length of a clip in seconds."""

    @abstractmethod
    def joints(self, index: int, times: Float[Tensor, " t"]) -> Float[Tensor, "t 21 3"]:
        """Joint positions in metres at times in seconds, y up, in the order of `skeleton.JOINTS`."""

    @abstractmethod
    def scene(self, index: int, times: Float[Tensor, " t"]) -> Scene:
        """What the camera sees at times in seconds."""

    def sample(
        self, index: int, *, frames: int, size: int | tuple[int, int], device: torch.device | str = "cpu"
    ) -> UInt8[Tensor, "t h w 3"]:
        """Draw one clip.

        The frames lie in the middle of `frames` equal parts of the clip and are drawn at those instants.

        Args:
            index: which clip.
            frames: how many frames, at least 1.
            size: height and width in pixels, or one number for a square.
            device: where to draw; other devices agree within rounding.

        Raises:
            GeometryError: no frames, or frames below 8 pixels.
            IndexError: no such clip.

        Example:
            >>> MotionSet("train", seed=0).sample(3, frames=4, size=(32, 48)).shape
            torch.Size([4, 32, 48, 3])
        """
        return self.batch([index], frames=frames, size=size, device=device)[0]

    def batch(
        self,
        indices: Sequence[int],
        *,
        frames: int,
        size: int | tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> UInt8[Tensor, "b t h w 3"]:
        """Draw several clips in one pass, which is what a GPU wants.

        Args:
            indices: which clips.
            frames: frames of each, as in `sample`.
            size: height and width in pixels, or one number for a square.
            device: where to draw.
        """
        if frames < 1:
            raise GeometryError(f"Cannot draw a clip of {frames} frames; ask for at least 1.")
        height, width = (size, size) if isinstance(size, int) else size
        scenes = [self.scene(index, frame_times(self.duration(index), frames)) for index in indices]
        drawn = render(Scene.cat(scenes).to(device), (height, width))
        return drawn.unflatten(0, (len(indices), frames))

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no clip {index}: the set holds {len(self)} clips, counted from 0.")


def frame_times(seconds: float, frames: int) -> Float[Tensor, " t"]:
    """Instants in the middle of equal parts of a clip, in seconds.

    Example:
        >>> frame_times(2.0, 4).tolist()
        [0.25, 0.75, 1.25, 1.75]
    """
    return (torch.arange(frames, dtype=torch.float64) + 0.5) * (seconds / frames)


class MotionSet(RenderedSet):
    """The procedural set: 18 short actions, or 12 long recipes that differ only in the order of their steps.

    Clip `index` has the class `index % len(classes)`, so the classes are balanced.

    Args:
        split: "train", "val" or "test": different draws.
        seed: another seed, another data set.
        kind: "short" (one action, 2 to 4 seconds) or "long" (a recipe of six actions, about half a minute).
        actions: names of `ACTIONS` or `RECIPES`; all of the kind when None.
        per_class: clips of each class.

    Raises:
        ConfigError: an unknown split, kind or action, or no clips.

    Example:
        >>> clips = MotionSet("test", seed=1, actions=("sit_down", "stand_up"), per_class=5)
        >>> len(clips), clips.classes[clips.labels[3]]
        (10, 'stand_up')
    """

    def __init__(
        self,
        split: str = "train",
        *,
        seed: int = 0,
        kind: Literal["short", "long"] = "short",
        actions: Sequence[str] | None = None,
        per_class: int = 100,
    ):
        known = {"short": tuple(ACTIONS), "long": tuple(RECIPES)}
        _check_names("split", [split], SPLITS)
        _check_names("kind", [kind], tuple(known))
        _check_names("action", actions or (), known[kind])
        if per_class < 1:
            raise ConfigError(f"per_class is {per_class}; a set holds at least one clip of each class.")
        self.split, self.seed, self.kind = split, seed, kind
        self.classes = known[kind] if actions is None else tuple(actions)
        if not self.classes:
            raise ConfigError("No actions were given; pass names, or None for all.")
        self.labels = tuple(range(len(self.classes))) * per_class

    def duration(self, index: int) -> float:
        """Length of a clip in seconds."""
        return self.timeline(index).seconds

    def joints(self, index: int, times: Float[Tensor, " t"]) -> Float[Tensor, "t 21 3"]:
        """Joint positions in metres at times in seconds, y up, in the order of `skeleton.JOINTS`."""
        return self.timeline(index).joints(times)

    def timeline(self, index: int) -> Timeline:
        """The motion of a clip as plain data."""
        self._check(index)
        name, rng = self.classes[self.labels[index]], self._rng(index, "motion")
        return _draw_short(name, rng) if self.kind == "short" else _draw_long(RECIPES[name], rng)

    def look(self, index: int) -> Look:
        """The appearance of a clip as plain data."""
        return draw_look(self._rng(index, "look"), girth=self.timeline(index).body.girth)

    def scene(self, index: int, times: Float[Tensor, " t"]) -> Scene:
        """What the camera sees at times in seconds."""
        line = self.timeline(index)
        return build_scene(
            line.joints(times),
            self.look(index),
            focus=line.focus(times),
            times=line.seconds - times if line.backwards else times,
            ball=line.ball(times),
            stool=line.stool(times),
        )

    def _rng(self, index: int, what: str) -> Random:
        """Seeded by text: Python fixes what a string seeds, on every machine and version."""
        return Random(f"flexvideo {what} {self.seed} {self.split} {self.kind} {index}")


def _check_names(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"Unknown {what} {name!r}; known are {', '.join(known)}.")


def _draw_body(rng: Random) -> Body:
    return Body(
        size=rng.uniform(0.88, 1.1),
        leg=rng.uniform(0.93, 1.07),
        arm=rng.uniform(0.93, 1.07),
        shoulders=rng.uniform(0.9, 1.15),
        hips=rng.uniform(0.9, 1.15),
        girth=rng.uniform(0.85, 1.2),
    )


def _draw_posture(rng: Random) -> tuple[tuple[str, float], ...]:
    spread, elbow = rng.uniform(-3, 8), rng.uniform(-6, 14)
    arms = tuple(
        (f"{s}_{name}", value) for s in "lr" for name, value in (("spread", spread), ("elbow", elbow))
    )
    return (("lean", rng.uniform(-2, 6)), ("nod", rng.uniform(-6, 8)), *arms)


def _draw_sway(rng: Random) -> tuple[tuple[str, float, float, float], ...]:
    channels = ("lean", "side", "turn", "nod", "l_spread", "r_spread", "l_swing", "r_swing")
    return tuple((name, rng.uniform(0.5, 2.0), rng.uniform(0.15, 0.5), rng.random()) for name in channels)


def _draw_step(name: str, start: float, rng: Random, *, mirrored: bool) -> Step:
    """A step of a motion; a motion with a prop keeps its full strength, to reach the floor or the stool."""
    motion = MOTIONS[name]
    return Step(
        motion=name,
        start=start,
        seconds=rng.uniform(*motion.seconds),
        mirrored=mirrored,
        warp=math.exp(rng.uniform(-0.2, 0.2)),
        cycles=rng.uniform(*motion.cycles),
        strength=rng.uniform(0.85, 1.05) if motion.prop is None else 1.0,
    )


def _draw_short(name: str, rng: Random) -> Timeline:
    action = ACTIONS[name]
    body, posture, sway = _draw_body(rng), _draw_posture(rng), _draw_sway(rng)
    heading = rng.uniform(-MAX_AZIMUTH, MAX_AZIMUTH)
    before, after = rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.5)
    steps, walks = (), ()
    if action.motion == "walk":
        seconds = rng.uniform(*MOTIONS["walk"].seconds)
        strength, cadence = rng.uniform(0.8, 1.1), rng.uniform(0.7, 1.1)
        walks = (Walk(0.0, seconds, cadence, rng.random(), strength=strength),)
    else:
        steps = (_draw_step(action.motion, before, rng, mirrored=False),)
        seconds = before + steps[0].seconds + after
    return Timeline(
        seconds,
        body,
        heading,
        steps,
        walks,
        posture,
        sway,
        mirrored=action.mirrored,
        backwards=action.backwards,
    )


def _draw_long(recipe: Sequence[str], rng: Random) -> Timeline:
    """The steps in order, each after a walk to a new heading, so that no heading tells the place."""
    body, posture, sway = _draw_body(rng), _draw_posture(rng), _draw_sway(rng)
    start = heading = rng.uniform(-MAX_AZIMUTH, MAX_AZIMUTH)
    now, steps, walks = 0.0, [], []
    for name in (*recipe, None):
        target = rng.uniform(-MAX_AZIMUTH, MAX_AZIMUTH)
        seconds, cadence = rng.uniform(1.6, 3.2), rng.uniform(0.75, 1.05)
        walks.append(
            Walk(now, seconds, cadence, 0.0, target - heading, ramp=0.4, strength=rng.uniform(0.75, 1.0))
        )
        now, heading = now + seconds + 0.1, target
        if name is not None:
            action = ACTIONS[name]
            steps.append(_draw_step(action.motion, now, rng, mirrored=action.mirrored))
            now += steps[-1].seconds + 0.1
    return Timeline(now, body, start, tuple(steps), tuple(walks), posture, sway)
