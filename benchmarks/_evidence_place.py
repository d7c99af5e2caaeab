"""Where an evidence run works, and the start that all of its arms share."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from _evidence_data import TensorSource, drawn
from _evidence_scale import Kind, Scale, drawn_set
from torch import Tensor

import flexvideo as fv
from flexvideo.data.motion import MotionSet, RenderedSet
from flexvideo.data.posed import posed_clips
from flexvideo.errors import ConfigError
from flexvideo.train.pretrain import pretrain
from flexvideo.weights import write_atomically


@dataclass(frozen=True)
class Place:
    """Where a run works, and for how long.

    Args:
        scale: how large it is.
        out: folder of results and of the shared start.
        work: folder of drawn clips and of trainings.
        mocap: file of motion capture, None for the procedural set.
        device: to run on.
        left: seconds that are left.
        say: tells the user.
        sets: that have been opened.
        held: their clips on the device: reading them from a file took half of the time of training.
    """

    scale: Scale
    out: Path
    work: Path
    mocap: Path | None
    device: str
    left: Callable[[], float]
    say: Callable[[str], object]
    sets: dict[tuple[str, str], RenderedSet] = field(default_factory=dict)
    held: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def clips(self, kind: Kind, split: str) -> RenderedSet:
        key = kind.name, split
        if key not in self.sets:
            self.sets[key] = drawn_set(self.scale, kind, split, self.mocap)
        return self.sets[key]

    def source(self, kind: Kind, split: str, most: int | None = None) -> TensorSource:
        clips, held = self.clips(kind, split), self.hold(kind, split)
        return TensorSource(held, clips.labels, clips.classes, name=kind.name, split=split, most=most)

    def hold(self, kind: Kind, split: str) -> Tensor:
        """The clips of a split on the device."""
        key = kind.name, split
        if key not in self.held:
            self.held[key] = self.draw(kind, split).to(self.device)
        return self.held[key]

    def draw(self, kind: Kind, split: str) -> Tensor:
        """The clips of a split in a file, drawn where they are not there yet."""
        path = self.work / "clips" / f"{kind.name}-{split}.bin"
        size = self.scale.native
        return drawn(path, self.clips(kind, split), frames=kind.held, size=size, device=self.device)

    def over(self) -> bool:
        return self.left() <= 0


def claim(place: Place) -> None:
    """Say in both folders what they are of; one that says nothing yet takes what comes first.

    Raises:
        ConfigError: a folder of another set or scale.
    """
    mocap = "procedural" if place.mocap is None else hashlib.sha256(place.mocap.read_bytes()).hexdigest()
    own = json.loads(json.dumps({"set": mocap, "scale": asdict(place.scale)}))
    files = [folder / "made-of.json" for folder in (place.out, place.work)]
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else own
        parts = " and ".join(part for part in own if found[part] != own[part])
        if parts:
            raise ConfigError(
                f"{file.parent} is of another {parts} than asked for ({file.name}), and what it holds cannot "
                "be used: name another folder, or call with what it was made of."
            )
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, (json.dumps(own, indent=1) + "\n").encode())


def build(place: Place, *, seed: int) -> fv.VideoMamba:
    """A model of random weights."""
    torch.manual_seed(seed)
    model = fv.VideoMamba(**place.scale.model, num_classes=0, drop_path_rate=0.0, init="mamba")
    return model.to(place.device)


def make_start(place: Place) -> bool:
    """Train the shared start at vanilla's own geometry, on train and procedural clips; whether it is done."""
    done, run, scale = place.out / "start", place.work / "start", place.scale
    if (done / "model.safetensors").exists():
        return True
    sets = [place.clips(kind, "train") for kind in scale.kinds]
    sets += [
        MotionSet("train", seed=1, kind=kind, per_class=per_class)
        for kind, per_class in zip(("short", "long"), scale.procedural, strict=True)
    ]
    frames = 2 * scale.model["num_frames"]
    clips = posed_clips(sets, frames=frames, size=scale.native, device=place.device)
    place.say(f"start: {len(clips):,} clips with the places of their joints")

    def report(record: Any) -> None:
        place.say(" ".join(f"{name} {value:.4g}" for name, value in record.items()))

    model = build(place, seed=0)
    if not pretrain(model, clips, config=scale.start, out=run, report=report, stop=place.over):
        return False
    done.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(run / name, done / name)
    return True
