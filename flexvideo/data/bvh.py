"""BVH motion capture files: parsing, forward kinematics, conversion of a folder to one safetensors file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from flexvideo.data.skeleton import JOINTS, rotation
from flexvideo.errors import MotionError

_AXES = {"X": 0, "Y": 1, "Z": 2}


@dataclass(frozen=True)
class Bvh:
    """A parsed file: per joint its name, parent, offset and channels, and per frame all channel values."""

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: Float[Tensor, "j 3"]
    channels: tuple[tuple[str, ...], ...]
    values: Float[Tensor, "t v"]
    frame_seconds: float


def read_bvh(path: str | Path) -> Bvh:
    """Parse one BVH file.

    Args:
        path: the file.

    Raises:
        MotionError: not a BVH file, or one that is cut off.
    """
    head, found, tail = Path(path).read_text(encoding="utf-8", errors="replace").partition("MOTION")
    if not found or not head.lstrip().startswith("HIERARCHY"):
        raise MotionError(f"{path} is not a BVH file: it must hold HIERARCHY and MOTION.")
    try:
        return _parse(head.split(), tail)
    except (ValueError, IndexError) as error:
        raise MotionError(f"{path} is damaged or cut off: {error}.") from error


def _parse(words: list[str], tail: str) -> Bvh:
    names, parents, offsets, channels = _parse_hierarchy(words)
    lines = tail.split("\n")
    lines = [line for line in lines if line.strip()]
    frames = int(lines[0].split(":")[1])
    seconds = float(lines[1].split(":")[1])
    width = sum(len(channel) for channel in channels)
    numbers = [float(word) for line in lines[2:] for word in line.split()]
    if frames < 1 or len(numbers) != frames * width:
        raise ValueError(
            f"{frames} frames of {width} channels need {frames * width} numbers, found {len(numbers)}"
        )
    values = torch.tensor(numbers, dtype=torch.float64).reshape(frames, width)
    return Bvh(
        tuple(names),
        tuple(parents),
        torch.tensor(offsets, dtype=torch.float64),
        tuple(channels),
        values,
        seconds,
    )


def _parse_hierarchy(
    words: list[str],
) -> tuple[list[str], list[int], list[tuple[float, ...]], list[tuple[str, ...]]]:
    names, parents, offsets, channels, open_joints = [], [], [], [], []
    at, current = 1, -1
    while at < len(words):
        word = words[at]
        if word in ("ROOT", "JOINT", "End"):
            current = -1 if word == "End" else len(names)
            if word != "End":
                names.append(words[at + 1])
                parents.append(next((j for j in reversed(open_joints) if j >= 0), -1))
                offsets.append((0.0, 0.0, 0.0))
                channels.append(())
            at += 2
        elif word == "{":
            open_joints.append(current)
            at += 1
        elif word == "}":
            open_joints.pop()
            at += 1
        elif word == "OFFSET":
            if open_joints[-1] >= 0:
                offsets[open_joints[-1]] = tuple(float(x) for x in words[at + 1 : at + 4])
            at += 4
        elif word == "CHANNELS":
            count = int(words[at + 1])
            channels[open_joints[-1]] = tuple(words[at + 2 : at + 2 + count])
            at += 2 + count
        else:
            raise ValueError(f"unexpected word {word!r}")
    return names, parents, offsets, channels


def bvh_positions(bvh: Bvh) -> Float[Tensor, "t j 3"]:
    """Joint positions in the file's unit.

    Position channels replace the joint's offset (exporters write the whole local translation there);
    rotations are multiplied in the order in which the channels are listed.
    """
    frames, at = len(bvh.values), 0
    places, turned = [], []
    for joint, names in enumerate(bvh.channels):
        place = bvh.offsets[joint].repeat(frames, 1)
        turn = torch.eye(3, dtype=torch.float64).repeat(frames, 1, 1)
        for name in names:
            axis, value = _AXES[name[0].upper()], bvh.values[:, at]
            at += 1
            if name[1:].lower() == "position":
                place[:, axis] = value
            else:
                turn = turn @ rotation(axis, value)
        parent = bvh.parents[joint]
        if parent >= 0:
            place = places[parent] + (turned[parent] @ place[..., None])[..., 0]
            turn = turned[parent] @ turn
        places.append(place)
        turned.append(turn)
    return torch.stack(places, dim=1)


def resample(positions: Float[Tensor, "t j 3"], seconds: float, fps: float) -> Float[Tensor, "f j 3"]:
    """Positions at a new rate, linear between frames that lie `seconds` apart."""
    last = len(positions) - 1
    at = torch.arange(int(last * seconds * fps + 1e-3) + 1, dtype=torch.float64) / (fps * seconds)
    low = at.floor().long().clamp(max=max(last - 1, 0))
    return torch.lerp(positions[low], positions[(low + 1).clamp(max=last)], (at - low)[:, None, None])


def convert_bvh(
    root: str | Path,
    output: str | Path,
    *,
    fps: float = 15.0,
    metres: float = 0.01,
    joints: Sequence[str] = JOINTS,
) -> int:
    """Convert every BVH file below a folder to one file for `MocapSet`; returns the number of clips.

    A file name `<source>_<action>_<style>_<take>.bvh`, as in the Bandai-Namco-Research motion data set, gives
    each clip its action and style.

    Args:
        root: folder with BVH files, such as a clone of that data set.
        output: the safetensors file to write.
        fps: frames a second in the output.
        metres: length of the file's unit (0.01: centimetres).
        joints: the file's names for the joints of `skeleton.JOINTS`, in that order.

    Raises:
        MotionError: no BVH file found, a damaged one, a name of another form, or a missing joint.
    """
    paths = sorted(Path(root).rglob("*.bvh"))
    if not paths:
        raise MotionError(
            f"No .bvh file lies below {root}; pass the folder of a clone of the motion data set."
        )
    clips, about = [], []
    for path in paths:
        parts = path.stem.split("_")
        if len(parts) < 4:
            raise MotionError(
                f"{path.name} does not tell its action: <source>_<action>_<style>_<take>.bvh is read."
            )
        clips.append(_clip(path, fps, metres, joints))
        about.append({"source": parts[0], "action": parts[1], "style": parts[2], "take": parts[3]})
    lengths = torch.tensor([len(clip) for clip in clips])
    tensors = {"joints": torch.cat(clips).float(), "lengths": lengths}
    save_file(tensors, output, metadata={"fps": str(float(fps)), "clips": json.dumps(about)})
    return len(clips)


def _clip(path: Path, fps: float, metres: float, joints: Sequence[str]) -> Float[Tensor, "t 21 3"]:
    bvh = read_bvh(path)
    missing = [name for name in joints if name not in bvh.names]
    if missing:
        raise MotionError(
            f"{path.name} has no joint {missing[0]!r}; it has {', '.join(bvh.names)}. Pass joints=."
        )
    picked = bvh_positions(bvh)[:, [bvh.names.index(name) for name in joints]]
    return metres * resample(picked, bvh.frame_seconds, fps)
