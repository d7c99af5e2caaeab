"""The actions of the procedural figure as keyframed joint angles, each written once.

`wave_right` is the mirror image of `wave_left`; `stand_up` is `sit_down` run backwards in time. So the
members of a pair hold the same poses equally often: only the side or the order tells them apart.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from flexvideo.data.skeleton import CHANNEL, CHANNELS

Number = int | float
Keys = tuple[tuple[Number, Number], ...]

REST = {"l_swing": 2.0, "l_spread": 9.0, "l_elbow": 14.0, "l_splay": 3.0, "l_knee": 3.0, "hold": 1.0}
REST |= {name.replace("l_", "r_"): value for name, value in REST.items() if name.startswith("l_")}


@dataclass(frozen=True)
class Motion:
    """One movement: its length, its curves (channel -> (phase, value) keys) and its oscillations.

    `waves` oscillate (channel -> amplitude in degrees) while the pose is held between phases .3 and .7;
    `steps` lets the legs step on the spot (degrees of knee lift); `prop` is what the movement needs, and
    `grasp` the phase at which the hands take it.
    """

    seconds: tuple[float, float]
    curves: Mapping[str, Keys]
    waves: Mapping[str, float] = field(default_factory=dict)
    cycles: tuple[float, float] = (0.0, 0.0)
    steps: float = 0.0
    prop: str | None = None
    grasp: float = 0.5


@dataclass(frozen=True)
class Action:
    """A class of the data set: a motion, possibly mirrored or run backwards."""

    motion: str
    mirrored: bool = False
    backwards: bool = False


def _there_and_back(rest: Number, value: Number, *, rise: float = 0.3, fall: float = 0.7) -> Keys:
    return ((0.0, rest), (rise, value), (fall, value), (1.0, rest))


def _arms(**values: Keys) -> dict[str, Keys]:
    return {f"{side}_{name}": keys for side in "lr" for name, keys in values.items()}


MOTIONS = {
    "wave": Motion(
        seconds=(1.8, 2.8),
        curves={
            "l_spread": _there_and_back(9, 108),
            "l_twist": _there_and_back(0, 88),
            "l_elbow": _there_and_back(14, 72),
            "side": _there_and_back(0, -4),
        },
        waves={"l_elbow": 38.0, "l_spread": 6.0},
        cycles=(2.0, 4.0),
    ),
    "raise": Motion(
        seconds=(1.6, 2.6),
        curves={
            "l_swing": _there_and_back(2, 172, rise=0.35, fall=0.6),
            "l_spread": _there_and_back(9, 4),
            "l_elbow": _there_and_back(14, 6, rise=0.4),
            "side": _there_and_back(0, -5),
        },
    ),
    "kick": Motion(
        seconds=(1.1, 1.8),
        curves={
            "l_thigh": ((0, 0), (0.1, 0), (0.24, -30), (0.46, 92), (0.64, 86), (0.9, 0), (1, 0)),
            "l_knee": (
                (0, 3),
                (0.1, 3),
                (0.24, 68),
                (0.36, 55),
                (0.46, 8),
                (0.64, 16),
                (0.77, 34),
                (0.9, 3),
                (1, 3),
            ),
            "l_foot": ((0, 0), (0.1, 0), (0.24, 55), (0.46, -60), (0.64, -50), (0.9, 0), (1, 0)),
            "l_splay": ((0, 3), (0.1, 3), (0.46, 14), (0.64, 14), (0.9, 3), (1, 3)),
            "r_knee": ((0, 3), (0.3, 14), (0.7, 10), (1, 3)),
            "r_thigh": ((0, 0), (0.3, 8), (0.7, 5), (1, 0)),
            "lean": ((0, 0), (0.25, 12), (0.5, -14), (1, 0)),
            "plant": ((0, 0), (0.1, -1), (0.9, -1), (1, 0)),
            "side": ((0, 0), (0.3, 5), (0.7, 5), (1, 0)),
            "r_swing": ((0, 2), (0.25, -25), (0.5, 50), (1, 2)),
            "l_swing": ((0, 2), (0.25, 30), (0.5, -35), (1, 2)),
            "l_spread": ((0, 9), (0.4, 28), (0.7, 24), (1, 9)),
            "r_spread": ((0, 9), (0.4, 32), (0.7, 28), (1, 9)),
        },
    ),
    "sit": Motion(
        seconds=(1.2, 2.0),
        curves={
            **_arms(
                thigh=((0, 0), (0.5, 55), (1, 88)),
                knee=((0, 3), (0.5, 68), (1, 92)),
                swing=((0, 2), (0.5, 45), (1, 34)),
                elbow=((0, 14), (0.5, 25), (1, 42)),
                spread=((0, 9), (1, 6)),
            ),
            "lean": ((0, 0), (0.55, 42), (1, 4)),
            "nod": ((0, 0), (0.55, -18), (1, 0)),
        },
        prop="stool",
    ),
    "pick": Motion(
        seconds=(1.6, 2.6),
        curves={
            **_arms(
                thigh=((0, 0), (0.45, 92), (0.55, 92), (1, 0)),
                knee=((0, 3), (0.45, 104), (0.55, 104), (1, 3)),
                swing=((0, 2), (0.45, 103), (0.55, 103), (1, 32)),
                spread=((0, 9), (0.45, 0), (1, -3)),
                elbow=((0, 14), (0.45, 14), (0.55, 14), (1, 68)),
                twist=((0, 0), (0.45, -25), (1, -10)),
            ),
            "lean": ((0, 0), (0.45, 76), (0.55, 76), (1, -3)),
            "nod": ((0, 0), (0.5, -8), (1, 0)),
        },
        prop="ball",
    ),
    "turn": Motion(
        seconds=(1.4, 2.2),
        curves={"yaw": ((0, -50), (0.12, -50), (0.88, 50), (1, 50))},
        steps=34.0,
        cycles=(2.0, 2.0),
    ),
    "bow": Motion(
        seconds=(1.5, 2.4),
        curves={
            "lean": _there_and_back(0, 86, rise=0.38, fall=0.6),
            "nod": _there_and_back(0, 16),
            **_arms(swing=_there_and_back(2, 14, rise=0.38, fall=0.6)),
        },
    ),
    "jump": Motion(
        seconds=(1.1, 1.6),
        curves={
            "lift": ((0, 0), (0.38, 0), (0.44, 0.11), (0.56, 0.32), (0.68, 0.11), (0.74, 0), (1, 0)),
            "lean": ((0, 0), (0.26, 38), (0.42, 0), (0.7, 4), (0.82, 26), (1, 0)),
            **_arms(
                thigh=((0, 0), (0.26, 62), (0.42, 0), (0.56, 14), (0.7, 8), (0.82, 46), (1, 0)),
                knee=((0, 3), (0.26, 84), (0.42, 4), (0.56, 34), (0.7, 12), (0.82, 66), (1, 3)),
                foot=((0, 0), (0.38, 0), (0.46, 45), (0.66, 30), (0.74, 0), (1, 0)),
                swing=((0, 2), (0.26, -48), (0.5, 125), (0.62, 118), (0.85, 20), (1, 2)),
                spread=((0, 9), (0.26, 12), (0.5, 22), (1, 9)),
            ),
        },
    ),
    "squat": Motion(
        seconds=(1.6, 2.6),
        curves={
            "lean": _there_and_back(0, 34, rise=0.42, fall=0.58),
            **_arms(
                thigh=_there_and_back(0, 98, rise=0.42, fall=0.58),
                knee=_there_and_back(3, 112, rise=0.42, fall=0.58),
                swing=_there_and_back(2, 98, rise=0.42, fall=0.58),
                elbow=_there_and_back(14, 4, rise=0.42, fall=0.58),
                splay=_there_and_back(3, 12, rise=0.42, fall=0.58),
            ),
        },
    ),
    "clap": Motion(
        seconds=(1.6, 2.6),
        curves=_arms(
            spread=_there_and_back(9, 136), twist=_there_and_back(0, 86), elbow=_there_and_back(14, 34)
        ),
        waves={"l_spread": 36.0, "r_spread": 36.0, "l_elbow": 34.0, "r_elbow": 34.0},
        cycles=(3.0, 5.0),
    ),
    "walk": Motion(seconds=(2.0, 3.4), curves={}),
}

ACTIONS = {
    "wave_left": Action("wave"),
    "wave_right": Action("wave", mirrored=True),
    "raise_left": Action("raise"),
    "raise_right": Action("raise", mirrored=True),
    "kick_left": Action("kick"),
    "kick_right": Action("kick", mirrored=True),
    "turn_left": Action("turn"),
    "turn_right": Action("turn", backwards=True),
    "sit_down": Action("sit"),
    "stand_up": Action("sit", backwards=True),
    "pick_up": Action("pick"),
    "put_down": Action("pick", backwards=True),
    "walk_forward": Action("walk"),
    "walk_backward": Action("walk", backwards=True),
    "bow": Action("bow"),
    "jump": Action("jump"),
    "squat": Action("squat"),
    "clap": Action("clap"),
}


def rest_pose() -> Float[Tensor, " c"]:
    """Standing at ease, as one row of channels."""
    return torch.tensor([REST.get(name, 0.0) for name in CHANNELS], dtype=torch.float64)


def curve(keys: Keys, x: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """Monotone cubic through the keys (flat at turning points and at both ends), held outside them.

    Source: Fritsch and Butland (1984), harmonic mean of the neighbouring slopes.
    """
    at, value = torch.tensor(keys, dtype=x.dtype).T.contiguous()
    step, slope = at.diff(), value.diff() / at.diff()
    inner = 2 * slope[1:] * slope[:-1] / (slope[1:] + slope[:-1])
    inner = torch.where(slope[1:] * slope[:-1] > 0, inner, torch.zeros_like(inner))
    tangent = torch.cat([inner.new_zeros(1), inner, inner.new_zeros(1)])
    i = torch.searchsorted(at, x, right=True).clamp(1, len(keys) - 1) - 1
    s = ((x - at[i]) / step[i]).clamp(0, 1)
    bend = s * (1 - s) * step[i] * ((1 - s) * tangent[i] - s * tangent[i + 1])
    return value[i] + s * s * (3 - 2 * s) * (value[i + 1] - value[i]) + bend


def motion_deviation(
    motion: Motion, phase: Float[Tensor, " t"], *, cycles: float = 0.0, strength: float = 1.0
) -> Float[Tensor, "t c"]:
    """How far a motion moves each channel from rest at phases in [0, 1] (held outside).

    Args:
        motion: the movement.
        phase: 0 at its start, 1 at its end.
        cycles: oscillations of its `waves`, or pairs of steps.
        strength: factor on angles; props need 1, since the floor and the stool do not scale.
    """
    phase = phase.clamp(0, 1)
    out = torch.zeros(len(phase), len(CHANNELS), dtype=phase.dtype)
    for name, keys in motion.curves.items():
        out[:, CHANNEL[name]] = curve(keys, phase) - REST.get(name, 0.0)
    envelope = curve(((0.1, 0.0), (0.3, 1.0), (0.7, 1.0), (0.9, 0.0)), phase)
    beat = torch.sin(2 * math.pi * cycles * (phase - 0.2) / 0.6)
    for name, amplitude in motion.waves.items():
        out[:, CHANNEL[name]] += amplitude * envelope * beat
    out *= strength
    if motion.steps:
        _add_steps(out, motion.steps * envelope.clamp(min=0), 2 * math.pi * cycles * phase)
    return out


def _add_steps(out: Float[Tensor, "t c"], lift: Float[Tensor, " t"], angle: Float[Tensor, " t"]) -> None:
    for side, sign in (("l", 1.0), ("r", -1.0)):
        up = (sign * angle.sin()).clamp(min=0) * lift
        out[:, CHANNEL[f"{side}_thigh"]] += 0.8 * up
        out[:, CHANNEL[f"{side}_knee"]] += 1.6 * up


STRIDE, THIGH = 0.88, 27.0  # metres that a step of THIGH degrees covers, for legs 0.83 m long
_STEADY = 0.96  # how near the legs come to an even speed, at which a foot on the floor keeps its place


def gait_deviation(angle: Float[Tensor, " t"], strength: Float[Tensor, " t"]) -> Float[Tensor, "t c"]:
    """Walking: deviations from rest at gait angles in radians (a turn is two steps), faded by `strength`."""
    out = torch.zeros(len(angle), len(CHANNELS), dtype=angle.dtype)
    for side, phase in (("l", angle), ("r", angle + math.pi)):
        sin, cos = phase.sin(), phase.cos()
        out[:, CHANNEL[f"{side}_thigh"]] = THIGH / math.asin(_STEADY) * torch.asin(_STEADY * sin) + 3
        out[:, CHANNEL[f"{side}_knee"]] = 4 + 54 * cos.clamp(min=0) ** 1.5 + 6 * (-cos).clamp(min=0)
        out[:, CHANNEL[f"{side}_foot"]] = 30 * (-sin).clamp(min=0) ** 2 - 18 * sin.clamp(min=0) ** 3
        out[:, CHANNEL[f"{side}_swing"]] = -24 * sin
        out[:, CHANNEL[f"{side}_elbow"]] = 12 - 10 * sin
    out[:, CHANNEL["turn"]] = 7 * angle.sin()
    out[:, CHANNEL["lean"]] = 4.0
    out[:, CHANNEL["hold"]] = -1.0
    return out * strength[:, None]
