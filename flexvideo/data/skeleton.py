"""The skeleton of the motion data: 21 joints, body proportions, and forward kinematics from joint angles.

Axes: x to the figure's left, y up, z the way it faces, metres. Angles are degrees. A pose is one row of
`CHANNELS`; the legs hang from a level pelvis, so leaning forward does not swing them, and a foot's pitch is
measured from the floor, so a foot stays flat unless told otherwise.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

JOINTS = (
    "Hips", "Spine", "Chest", "Neck", "Head",
    "Shoulder_L", "UpperArm_L", "LowerArm_L", "Hand_L",
    "Shoulder_R", "UpperArm_R", "LowerArm_R", "Hand_R",
    "UpperLeg_L", "LowerLeg_L", "Foot_L", "Toes_L",
    "UpperLeg_R", "LowerLeg_R", "Foot_R", "Toes_R",
)  # fmt: skip
PARENTS = (-1, 0, 1, 2, 3, 2, 5, 6, 7, 2, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19)
INDEX = {name: i for i, name in enumerate(JOINTS)}
MIRROR = tuple(
    INDEX[n[:-1] + {"L": "R", "R": "L"}[n[-1]]] if n[-2:] in ("_L", "_R") else INDEX[n] for n in JOINTS
)

_TRUNK = ("lean", "side", "turn", "nod", "yaw", "lift", "plant", "hold", "speed")
_LIMBS = ("swing", "spread", "twist", "elbow", "thigh", "splay", "knee", "foot")
CHANNELS = _TRUNK + tuple(f"{side}_{limb}" for side in "lr" for limb in _LIMBS)
CHANNEL = {name: i for i, name in enumerate(CHANNELS)}
ANKLE, TOE = 0.08, 0.025  # rest heights of the ankle and of the toe joint above the floor
_STANCE = 0.83 * math.sin(math.radians(3.0))  # how far the legs at rest, splayed by 3 degrees, reach outwards


@dataclass(frozen=True)
class Body:
    """Proportions as factors of an adult 1.71 m tall; girth scales the thickness of the drawn limbs."""

    size: float = 1.0
    leg: float = 1.0
    arm: float = 1.0
    shoulders: float = 1.0
    hips: float = 1.0
    girth: float = 1.0


def rest_offsets(body: Body) -> Float[Tensor, "21 3"]:
    """Bone vectors from parent to joint with the arms hanging down; the hips' row is their height."""
    thigh, shin = 0.42 * body.leg, 0.41 * body.leg
    arm, half = [(0.0, -0.27 * body.arm, 0.0), (0.0, -0.25 * body.arm, 0.0)], 0.095 * body.hips
    leg = [(0.0, -thigh, 0.0), (0.0, -shin, 0.0), (0.0, TOE - ANKLE, 0.14)]
    rows = [(0.0, ANKLE + thigh + shin + 0.04, 0.0)]
    rows += [(0.0, 0.12, 0.0), (0.0, 0.12, 0.0), (0.0, 0.21, 0.0), (0.0, 0.08, 0.01)]
    for side in (1, -1):
        rows += [(side * 0.05, 0.17, 0.0), (side * 0.13 * body.shoulders, 0.0, 0.0), *arm]
    for side in (1, -1):
        rows += [(side * half, -0.04, 0.0), *leg]
    return body.size * torch.tensor(rows, dtype=torch.float64)


def rotation(axis: int, degrees: Float[Tensor, " t"]) -> Float[Tensor, "t 3 3"]:
    """Right-handed rotations about one axis (0: x, 1: y, 2: z)."""
    angle = torch.deg2rad(degrees)
    cos, sin = angle.cos(), angle.sin()
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out = torch.zeros(len(angle), 3, 3, dtype=angle.dtype)
    out[:, axis, axis] = 1.0
    out[:, i, i] = out[:, j, j] = cos
    out[:, j, i], out[:, i, j] = sin, -sin
    return out


def _trunk_rotations(pose: Float[Tensor, "t c"]) -> dict[str, Float[Tensor, "t 3 3"]]:
    lean, side, turn, nod = (pose[:, CHANNEL[name]] for name in ("lean", "side", "turn", "nod"))
    return {
        "Hips": rotation(2, -0.3 * side) @ rotation(0, 0.45 * lean),
        "Spine": rotation(1, 0.5 * turn) @ rotation(2, -0.4 * side) @ rotation(0, 0.3 * lean),
        "Chest": rotation(1, 0.5 * turn) @ rotation(2, -0.3 * side) @ rotation(0, 0.25 * lean),
        "Neck": rotation(0, nod),
    }


def _limb_rotations(
    pose: Float[Tensor, "t c"], pelvis: Float[Tensor, "t 3 3"]
) -> dict[str, Float[Tensor, "t 3 3"]]:
    out = {}
    for side, sign, tag in (("l", 1, "_L"), ("r", -1, "_R")):
        swing, spread, twist, elbow, thigh, splay, knee, foot = (
            pose[:, CHANNEL[f"{side}_{name}"]] for name in _LIMBS
        )
        out["UpperArm" + tag] = rotation(2, sign * spread) @ rotation(0, -swing) @ rotation(1, sign * twist)
        out["LowerArm" + tag] = rotation(0, -elbow)
        leg = rotation(2, sign * splay) @ rotation(0, -thigh)
        out["UpperLeg" + tag] = pelvis.mT @ leg
        out["LowerLeg" + tag] = rotation(0, knee)
        out["Foot" + tag] = (
            (leg @ rotation(0, knee)).mT @ rotation(1, sign * 12 + 0 * foot) @ rotation(0, foot)
        )
    return out


def forward_kinematics(
    offsets: Float[Tensor, "21 3"], rotations: dict[str, Float[Tensor, "t 3 3"]]
) -> Float[Tensor, "t 21 3"]:
    """Joint positions relative to the hips from local rotations (joints that are not named keep still)."""
    turned = [rotations["Hips"]]
    places = [torch.zeros_like(turned[0][:, 0])]
    for joint in range(1, len(JOINTS)):
        parent = PARENTS[joint]
        places.append(places[parent] + turned[parent] @ offsets[joint])
        local = rotations.get(JOINTS[joint])
        turned.append(turned[parent] if local is None else turned[parent] @ local)
    return torch.stack(places, dim=1)


def pose_joints(pose: Float[Tensor, "t c"], body: Body) -> Float[Tensor, "t 21 3"]:
    """Joints of poses standing on the floor, facing +z, before heading and travel.

    The lowest sole touches the floor, raised by `lift`. `plant` (-1 right foot, 0 both, 1 left foot) says
    which foot keeps its place while the rest moves; `hold` fades that out (0 while walking).

    Args:
        pose: one row of `CHANNELS` per time, degrees and metres.
        body: proportions.

    Example:
        >>> pose_joints(torch.zeros(2, len(CHANNELS), dtype=torch.float64), Body()).shape
        torch.Size([2, 21, 3])
    """
    offsets = rest_offsets(body)
    trunk = _trunk_rotations(pose)
    joints = forward_kinematics(offsets, trunk | _limb_rotations(pose, trunk["Hips"]))
    feet = joints[:, [INDEX["Foot_L"], INDEX["Foot_R"]]]
    left = 0.5 + 0.5 * pose[:, CHANNEL["plant"], None]
    rest = body.size * (0.095 * body.hips + _STANCE * body.leg) * (2 * left - 1)
    shift = -(left * feet[:, 0] + (1 - left) * feet[:, 1])
    shift[:, 0] += rest[:, 0]
    shift *= pose[:, CHANNEL["hold"], None]
    toes = joints[:, [INDEX["Toes_L"], INDEX["Toes_R"]], 1]
    soles = torch.cat([feet[:, :, 1] - ANKLE * body.size, toes - TOE * body.size], dim=1)
    shift[:, 1] = pose[:, CHANNEL["lift"]] - soles.amin(dim=1)
    return joints + shift[:, None]


def place(
    points: Float[Tensor, "t p 3"], yaw: Float[Tensor, " t"], path: Float[Tensor, "t 3"]
) -> Float[Tensor, "t p 3"]:
    """Turn points about the vertical by `yaw` degrees and carry them along `path`."""
    return torch.einsum("tij,tpj->tpi", rotation(1, yaw), points) + path[:, None]


def mirror(joints: Float[Tensor, "t 21 3"]) -> Float[Tensor, "t 21 3"]:
    """The same motion seen in a mirror: x changes sign, left and right joints change places."""
    return joints[:, list(MIRROR)] * joints.new_tensor([-1.0, 1.0, 1.0])
