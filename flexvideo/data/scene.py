"""From joints and a look to what the renderer draws: capsules, a floor, a wall, a light and a camera.

Every tensor of a scene has one row per frame, so frames of different clips can be drawn in one call.
"""

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from flexvideo.data.look import COLOURS, Colour, Look
from flexvideo.data.skeleton import INDEX, JOINTS

# Points of the body as weighted sums of joints: the hand goes on from the forearm, ribs lie inside shoulders.
_POINTS: dict[str, dict[str, float]] = {name: {name: 1.0} for name in JOINTS} | {
    "Belly": {"Hips": 0.5, "Spine": 0.5},
    "Collar": {"Neck": 0.75, "Chest": 0.25},
    **{f"Rib{s}": {f"UpperArm{s}": 0.62, "Neck": 0.2, "Chest": 0.18} for s in ("_L", "_R")},
    **{f"Waist{s}": {f"UpperLeg{s}": 0.45, "Spine": 0.55} for s in ("_L", "_R")},
    **{f"Knuckle{s}": {f"Hand{s}": 1.16, f"LowerArm{s}": -0.16} for s in ("_L", "_R")},
    **{f"Finger{s}": {f"Hand{s}": 1.40, f"LowerArm{s}": -0.40} for s in ("_L", "_R")},
    **{f"Sole{s}": {f"Foot{s}": 0.9, f"Toes{s}": 0.1} for s in ("_L", "_R")},
    **{f"Tip{s}": {f"Toes{s}": 1.25, f"Foot{s}": -0.25} for s in ("_L", "_R")},
}
# Points of the head: metres to its left, up and forward from the joint at the base of the skull.
_HEAD_POINTS = {
    "Skull": (0.0, 0.115, 0.0),
    "Chin": (0.0, 0.045, 0.025),
    "Crown": (0.0, 0.14, -0.022),
    "Nape": (0.0, 0.06, -0.042),
    "Brow": (0.0, 0.09, 0.095),
    "Nose": (0.0, 0.065, 0.115),
    "Eye_L": (0.038, 0.105, 0.083),
    "Eye_R": (-0.038, 0.105, 0.083),
}


def _pair(a: str, b: str, ra: float, rb: float, colour: str) -> list[tuple[str, str, float, float, str]]:
    return [(a + s, b + s, ra, rb, colour) for s in ("_L", "_R")]


_PARTS = [
    ("Belly", "Collar", 0.105, 0.100, "shirt"),
    *_pair("Waist", "Rib", 0.092, 0.088, "shirt"),
    ("UpperArm_L", "UpperArm_R", 0.058, 0.058, "shirt"),
    ("UpperLeg_L", "UpperLeg_R", 0.098, 0.098, "trousers"),
    ("Neck", "Head", 0.048, 0.048, "skin"),
    ("Skull", "Chin", 0.094, 0.070, "skin"),
    ("Crown", "Nape", 0.100, 0.082, "hair"),
    ("Brow", "Nose", 0.012, 0.020, "skin"),
    *[(f"Eye{s}", f"Eye{s}", 0.015, 0.015, "eye") for s in ("_L", "_R")],
    *_pair("UpperArm", "LowerArm", 0.056, 0.043, "shirt"),
    *_pair("LowerArm", "Hand", 0.042, 0.031, "sleeve"),
    *_pair("Knuckle", "Finger", 0.042, 0.034, "skin"),
    *_pair("UpperLeg", "LowerLeg", 0.090, 0.060, "trousers"),
    *_pair("LowerLeg", "Foot", 0.058, 0.042, "shin"),
    *_pair("Sole", "Tip", 0.046, 0.034, "shoes"),
]
_ROW = {name: row for row, name in enumerate((*_POINTS, *_HEAD_POINTS))}
TORSO = 4  # the first parts run into one another as one shirt
_PROPS = 5  # the stool's seat (two), its legs (two), the ball
CAPSULES = len(_PARTS) + _PROPS
NO_SHADOW = [i for i, part in enumerate(_PARTS) if part[4] in ("eye", "hair") or part[1] == "Nose"]
CASTING = [i for i in range(CAPSULES) if i not in NO_SHADOW]


@dataclass(frozen=True)
class Scene:
    """What to draw, one row per frame: see `build_scene` for the units."""

    ends: Float[Tensor, "n k 2 3"]
    radii: Float[Tensor, "n k 2"]
    colours: Float[Tensor, "n k 3"]
    eye: Float[Tensor, "n 3"]
    angles: Float[Tensor, "n 2"]
    focal: Float[Tensor, " n"]
    light: Float[Tensor, "n 3"]
    floor: Float[Tensor, "n 2 3"]
    tiles: Float[Tensor, "n 4"]
    backdrop: Float[Tensor, "n 3"]
    wave: Float[Tensor, "n v 4"]
    wave_colour: Float[Tensor, "n v 3"]
    wall: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, frames: slice) -> "Scene":
        return Scene(*(getattr(self, f.name)[frames] for f in fields(self)))

    def to(self, device: torch.device | str) -> "Scene":
        """The scene in float32 on a device."""
        moved = (getattr(self, f.name).to(device=device, dtype=torch.float32) for f in fields(self))
        return Scene(*moved)

    @classmethod
    def cat(cls, scenes: "list[Scene]") -> "Scene":
        """Frames of several scenes one after another."""
        return Scene(*(torch.cat([getattr(scene, f.name) for scene in scenes]) for f in fields(cls)))


def build_scene(
    joints: Float[Tensor, "n 21 3"],
    look: Look,
    *,
    focus: Float[Tensor, "n 3"],
    times: Float[Tensor, " n"],
    ball: Float[Tensor, "n 3"] | None = None,
    stool: Float[Tensor, "n 2 3"] | None = None,
) -> Scene:
    """The scene of a moving figure.

    Args:
        joints: positions in metres, y up, in the order of `skeleton.JOINTS`.
        look: colours, light and camera.
        focus: point on the floor that the camera follows, metres.
        times: seconds, for the slow motion of the camera.
        ball: centre of a ball.
        stool: middle of a stool's seat, and the direction of its front edge.
    """
    n = len(joints)
    ends, radii = _body_capsules(joints, look.girth)
    props, prop_radii = _prop_capsules(joints, ball, stool)
    table: dict[str, Colour] = dict(zip(COLOURS, look.colours, strict=True))
    colours = [table[part[4]] for part in _PARTS] + [table["prop"]] * _PROPS
    eye, angles = _camera(look, focus, times)
    rows = {
        "focal": look.camera.distance / look.camera.view,
        "light": look.light,
        "floor": look.floor,
        "tiles": look.tiles,
        "backdrop": look.backdrop,
        "wave": [wave[:4] for wave in look.wall],
        "wave_colour": [wave[4] for wave in look.wall],
        "wall": look.wall_distance + look.camera.distance,
        "colours": colours,
    }
    still = {
        name: torch.tensor(v, dtype=joints.dtype).expand(n, *torch.tensor(v).shape)
        for name, v in rows.items()
    }
    return Scene(
        ends=torch.cat([ends, props], dim=1),
        radii=torch.cat([radii, prop_radii], dim=1),
        eye=eye,
        angles=angles,
        **still,
    )


def _head_frame(joints: Float[Tensor, "n 21 3"]) -> Float[Tensor, "n 3 3"]:
    """Rows: the head's left, up and forward, from neck, skull and shoulders (joints carry no rotation)."""
    up = joints[:, INDEX["Head"]] - joints[:, INDEX["Neck"]]
    up = up / up.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    across = joints[:, INDEX["UpperArm_L"]] - joints[:, INDEX["UpperArm_R"]]
    forward = torch.linalg.cross(across, up)
    forward = forward / forward.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return torch.stack([torch.linalg.cross(up, forward), up, forward], dim=1)


def body_scale(joints: Float[Tensor, "n 21 3"]) -> Float[Tensor, ""]:
    """Size of the body against an adult of 1.71 m, from the mean length of thighs and shins."""
    bones = [
        (joints[:, INDEX[a + s]] - joints[:, INDEX[b + s]]).norm(dim=-1).mean()
        for s in ("_L", "_R")
        for a, b in (("UpperLeg", "LowerLeg"), ("LowerLeg", "Foot"))
    ]
    return torch.stack(bones).sum() / 1.66


def _body_capsules(
    joints: Float[Tensor, "n 21 3"], girth: float
) -> tuple[Float[Tensor, "n b 2 3"], Float[Tensor, "n b 2"]]:
    mix = joints.new_zeros(len(_POINTS), len(JOINTS))
    for row, weights in enumerate(_POINTS.values()):
        for name, weight in weights.items():
            mix[row, INDEX[name]] = weight
    scale = body_scale(joints)
    offsets = joints.new_tensor(list(_HEAD_POINTS.values())) * scale
    head = joints[:, None, INDEX["Head"]] + torch.einsum("pa,nax->npx", offsets, _head_frame(joints))
    points = torch.cat([torch.einsum("pj,njx->npx", mix, joints), head], dim=1)
    pairs = torch.tensor([[_ROW[part[0]], _ROW[part[1]]] for part in _PARTS])
    thick = [girth if part[0] not in _HEAD_POINTS else 1.0 for part in _PARTS]
    radii = joints.new_tensor([[g * part[2], g * part[3]] for g, part in zip(thick, _PARTS, strict=True)])
    return points[:, pairs], (radii * scale).expand(len(joints), -1, -1)


def _prop_capsules(
    joints: Float[Tensor, "n 21 3"], ball: Float[Tensor, "n 3"] | None, stool: Float[Tensor, "n 2 3"] | None
) -> tuple[Float[Tensor, "n p 2 3"], Float[Tensor, "n p 2"]]:
    """Props; an absent one has a negative radius and covers nothing."""
    ends = joints[:, :1, None].repeat(1, _PROPS, 2, 1)
    radii = joints.new_full((len(joints), _PROPS, 2), -1.0)
    if stool is not None:
        seat, along = stool.unbind(1)
        back = torch.linalg.cross(along, along.new_tensor([0.0, 1.0, 0.0]).expand_as(along))
        seat = seat - along.new_tensor([0.0, 0.055, 0.0])
        for i, depth in enumerate((0.07, -0.07)):
            ends[:, i] = torch.stack([seat + depth * back + s * 0.14 * along for s in (1, -1)], dim=1)
            foot = seat + 2 * depth * back
            foot = foot * foot.new_tensor([1.0, 0.0, 1.0]) + foot.new_tensor([0.0, 0.03, 0.0])
            ends[:, 2 + i] = torch.stack([seat + depth * back, foot], dim=1)
        radii[:, :2], radii[:, 2:4] = 0.055, 0.03
    if ball is not None:
        ends[:, 4] = ball[:, None]
        radii[:, 4] = 0.13
    return ends, radii


def _camera(
    look: Look, focus: Float[Tensor, "n 3"], times: Float[Tensor, " n"]
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 2"]]:
    """Position, and yaw and downward pitch in radians, drifting slowly."""
    camera = look.camera
    turn, sideways, up, hertz, phase = camera.drift
    angle = 2 * math.pi * (hertz * times + phase)
    yaw = math.radians(turn) * angle.sin()
    pitch = torch.full_like(yaw, math.atan2(camera.height - camera.target, camera.distance))
    eye = focus.clone()
    eye[:, 0] += camera.distance * yaw.sin() + sideways * (1.7 * angle).cos()
    eye[:, 1] = camera.height + up * (1.3 * angle).sin()
    eye[:, 2] += camera.distance * yaw.cos()
    return eye, torch.stack([yaw, pitch], dim=1)
