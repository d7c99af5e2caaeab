"""A clip's motion as a pure function of time: steps and walks laid on a line, evaluated at any instant."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flexvideo.data.actions import MOTIONS, STRIDE, curve, gait_deviation, motion_deviation, rest_pose
from flexvideo.data.skeleton import CHANNEL, CHANNELS, INDEX, Body, mirror, place, pose_joints

_TICKS = 60  # per second: the grid on which the walked path is summed up
BALL_RADIUS = 0.13
_SIDED = ("side", "turn", "yaw", "plant")


@dataclass(frozen=True)
class Step:
    """One motion placed in time; `warp` bends its phase (phase ** warp), 1 is even."""

    motion: str
    start: float
    seconds: float
    mirrored: bool = False
    warp: float = 1.0
    cycles: float = 0.0
    strength: float = 1.0


@dataclass(frozen=True)
class Walk:
    """Walking: `cadence` in double steps a second, `yaw` the turn in degrees made on the way.

    `ramp` is the time in seconds to start and to stop, 0 for a walk that goes on beyond the clip.
    """

    start: float
    seconds: float
    cadence: float
    phase: float
    yaw: float = 0.0
    ramp: float = 0.0
    strength: float = 1.0


@dataclass(frozen=True)
class Timeline:
    """Everything that moves in one clip; plain data, drawn once from (seed, index).

    `posture` holds lasting offsets from rest (channel, degrees), `sway` slow oscillations (channel, degrees,
    hertz, phase). `mirrored` and `backwards` act on the finished clip.
    """

    seconds: float
    body: Body
    heading: float = 0.0
    steps: tuple[Step, ...] = ()
    walks: tuple[Walk, ...] = ()
    posture: tuple[tuple[str, float], ...] = ()
    sway: tuple[tuple[str, float, float, float], ...] = ()
    mirrored: bool = False
    backwards: bool = False

    def joints(self, times: Float[Tensor, " t"]) -> Float[Tensor, "t 21 3"]:
        """Joint positions in metres at times in seconds."""
        out = self._figure(self._inner(times))
        return mirror(out) if self.mirrored else out

    def focus(self, times: Float[Tensor, " t"]) -> Float[Tensor, "t 3"]:
        """The point on the floor which the camera follows: the walked path, without the body's bobbing."""
        return self._side(self._path(self._inner(times)))

    def ball(self, times: Float[Tensor, " t"]) -> Float[Tensor, "t 3"] | None:
        """Centre of the ball, which lies on the floor until it is grasped; None in a clip without one."""
        step = self._with_prop("ball")
        if step is None:
            return None
        inner = self._inner(times)
        grasp = step.start + step.seconds * MOTIONS[step.motion].grasp ** (1 / step.warp)
        hands = self._hands(torch.cat([inner, inner.new_tensor([grasp])]))
        lying = hands[-1].clone()
        lying[1] = BALL_RADIUS
        carried = hands[:-1] + (lying - hands[-1])
        return self._side(torch.where((inner < grasp)[:, None], lying, carried))

    def stool(self, times: Float[Tensor, " t"]) -> Float[Tensor, "t 2 3"] | None:
        """Middle of the stool's seat and the direction of its front edge; None in a clip without one."""
        step = self._with_prop("stool")
        if step is None:
            return None
        seated = self._figure(times.new_tensor([step.start + step.seconds]))[0]
        left, right = seated[INDEX["UpperLeg_L"]], seated[INDEX["UpperLeg_R"]]
        seat, along = (left + right) / 2, (left - right) / (left - right).norm()
        seat[1] -= 0.115 * self.body.size * self.body.girth
        return self._side(torch.stack([seat, along]).expand(len(times), 2, 3))

    def _inner(self, times: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        times = times.to(torch.float64)
        return self.seconds - times if self.backwards else times

    def _side(self, points: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return points * points.new_tensor([-1.0, 1.0, 1.0]) if self.mirrored else points

    def _with_prop(self, prop: str) -> Step | None:
        return next((step for step in self.steps if MOTIONS[step.motion].prop == prop), None)

    def _hands(self, times: Float[Tensor, " t"]) -> Float[Tensor, "t 3"]:
        joints = self._figure(times)
        hands, elbows = (joints[:, [INDEX[f"{n}_L"], INDEX[f"{n}_R"]]] for n in ("Hand", "LowerArm"))
        return (hands + 0.3 * (hands - elbows)).mean(dim=1)

    def _figure(self, times: Float[Tensor, " t"]) -> Float[Tensor, "t 21 3"]:
        pose = self._pose(times)
        return place(pose_joints(pose, self.body), pose[:, CHANNEL["yaw"]], self._path(times))

    def _pose(self, times: Float[Tensor, " t"]) -> Float[Tensor, "t c"]:
        pose = rest_pose().repeat(len(times), 1)
        for name, offset in self.posture:
            pose[:, CHANNEL[name]] += offset
        for name, amplitude, hertz, phase in self.sway:
            pose[:, CHANNEL[name]] += amplitude * torch.sin(2 * math.pi * (hertz * times + phase))
        for step in self.steps:
            pose += _step_deviation(step, times)
        for walk in self.walks:
            angle = 2 * math.pi * (walk.cadence * (times - walk.start) + walk.phase)
            pose += gait_deviation(angle, walk.strength * _going(walk, times))
        pose[:, CHANNEL["yaw"]] += self._yaw(times)
        return pose

    def _yaw(self, times: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        yaw = torch.full_like(times, self.heading)
        for walk in self.walks:
            yaw += curve(((0.0, 0.0), (1.0, walk.yaw)), (times - walk.start) / walk.seconds)
        return yaw

    def _path(self, times: Float[Tensor, " t"]) -> Float[Tensor, "t 3"]:
        path = times.new_zeros(len(times), 3)
        if not self.walks:
            return path
        ticks = torch.arange(int(self.seconds * _TICKS) + 2, dtype=torch.float64) / _TICKS
        speed = torch.zeros_like(ticks)
        for walk in self.walks:
            stride = STRIDE * self.body.leg * self.body.size * walk.strength
            speed += 2 * stride * walk.cadence * _going(walk, ticks)
        yaw = torch.deg2rad(self._yaw(ticks))
        steps = torch.stack([speed * yaw.sin(), speed * yaw.cos()], dim=1) / _TICKS
        walked = torch.cat([steps.new_zeros(1, 2), steps.cumsum(0)])
        at = times.clamp(0, self.seconds) * _TICKS
        low = at.floor().long()
        path[:, [0, 2]] = torch.lerp(walked[low], walked[low + 1], (at - low)[:, None])
        return path


def _step_deviation(step: Step, times: Float[Tensor, " t"]) -> Float[Tensor, "t c"]:
    phase = ((times - step.start) / step.seconds).clamp(0, 1) ** step.warp
    out = motion_deviation(MOTIONS[step.motion], phase, cycles=step.cycles, strength=step.strength)
    return mirror_pose(out) if step.mirrored else out


def mirror_pose(pose: Float[Tensor, "t c"]) -> Float[Tensor, "t c"]:
    """The pose seen in a mirror: left and right limbs change places, sideways channels change sign."""
    swap = {"l": "r_", "r": "l_"}
    order = [CHANNEL[swap[n[0]] + n[2:]] if n[1] == "_" else CHANNEL[n] for n in CHANNELS]
    return pose[:, order] * pose.new_tensor([-1.0 if n in _SIDED else 1.0 for n in CHANNELS])


def _going(walk: Walk, times: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """1 while walking, eased in and out over `ramp` seconds."""
    if not walk.ramp:
        return torch.ones_like(times)
    begin, end = walk.start, walk.start + walk.seconds
    keys = ((begin, 0.0), (begin + walk.ramp, 1.0), (end - walk.ramp, 1.0), (end, 0.0))
    return curve(keys, times)
