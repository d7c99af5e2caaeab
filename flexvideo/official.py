"""The weight files that the authors of VideoMamba have published, and what is known about each of them."""

from dataclasses import dataclass

REPOSITORY = "OpenGVLab/VideoMamba"
CLASSES = {"in1k": 1000, "k400": 400, "ssv2": 174, "breakfast": 10, "coin": 180}
VARIANTS = {"t": "tiny", "s": "small", "m": "middle", "b": "base"}

_VIDEO = [
    *(f"{size}16_k400_{frames}" for size in "tsm" for frames in ("f8", "f16", "f32", "f64", "f64to384")),
    *(f"m16_k400_mask_ft_{frames}" for frames in ("f8", "f16", "f32", "f64", "f64to384")),
    *(f"{size}16_ssv2_{frames}" for size in "tsm" for frames in ("f8", "f16", "f16to288")),
    *(f"m16_ssv2_mask_ft_{frames}" for frames in ("f8", "f16", "f16to288")),
    *(
        f"{model}_{frames}"
        for data in ("breakfast", "coin")
        for model in (f"t16_{data}", f"s16_{data}", f"m16_{data}", f"m16_{data}_mask_ft")
        for frames in ("f32", "f64")
    ),
    "m16_k400_mask_pt_f8",
    "m16_ssv2_mask_pt_f8",
]
_IMAGE = [
    *(f"{size}16_in1k" for size in "tsmb"),
    *(f"{size}16_in1k{end}" for size in "tsm" for end in ("to448", "to448to576")),
]
_MULTIMODAL = ["m16_5M_f8", "m16_17M_f8", "m16_25M_f8"]

KNOWN_DEFECTS = {
    "m16_breakfast_mask_ft_f64_res224": "holds a temporal table of 32 frames, not 64 (upstream issue 97)",
}
WRONG_LINKS = {
    "m16_k400_mask_ft_f16_res224": "the ImageNet-initialised file (upstream issue 70)",
    "m16_ssv2_mask_ft_f16_res224": "the ImageNet-initialised file",
    "t16_in1k_res224to448": "the middle model at 224",
}
TRUE_FRAMES = {"m16_breakfast_mask_ft_f64_res224": 32}


@dataclass(frozen=True)
class PretrainedFile:
    """One published weight file.

    Args:
        name: what `flexvideo.load` takes for it.
        repo_id: repository on the Hugging Face Hub.
        filename: the file there.
        variant: "tiny", "small", "middle" or "base".
        data: what it was trained on last: in1k, k400, ssv2, breakfast, coin, or pairs of video and text.
        frames: frames of its temporal table, as they are in the file; None for image weights.
        size: side of its frames in pixels.
        classes: rows of its head; 0 without one.
        kind: "image", "video", "masked fine-tuning", "masked pretraining" or "multimodal".
        defect: what is wrong with the file; empty when nothing is known.
        linked: what the official table of models links in place of the file; empty where the link is right.
    """

    name: str
    repo_id: str
    filename: str
    variant: str
    data: str
    frames: int | None
    size: int
    classes: int
    kind: str
    defect: str
    linked: str

    def __str__(self) -> str:
        frames = f"{self.frames} x " if self.frames else ""
        classes = f"{self.classes} classes" if self.classes else "no head"
        facts = [f"{frames}{self.size} x {self.size}", classes, self.kind]
        if self.defect:
            facts.append(self.defect)
        if self.linked:
            facts.append(f"in its place the official table links {self.linked}")
        return f"{self.name:<33} {self.variant:<7} {', '.join(facts)}"


class _Lines(tuple[PretrainedFile, ...]):
    """Shown one file a line."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n".join(map(str, self))


def list_pretrained() -> tuple[PretrainedFile, ...]:
    """Return the published VideoMamba files: names to load, what is in them, known defects.

    Shown or printed, it is a line for each.

    Example:
        >>> [file.name for file in list_pretrained() if file.kind == "masked pretraining"]
        ['m16_k400_mask_pt_f8_res224', 'm16_ssv2_mask_pt_f8_res224']

    Source: the MODEL_ZOO.md files of OpenGVLab/VideoMamba, its issues, and public code that loads them.
    """
    return _Lines(_entry(stem) for stem in (*_VIDEO, *_IMAGE, *_MULTIMODAL))


def pretrained(name: str) -> PretrainedFile | None:
    """The published file of this name, if there is one: short or its own, with its ending or without.

    Example:
        >>> pretrained("videomamba_t16_k400_f8_res224") == pretrained("t16_k400_f8_res224")
        True
    """
    short = name.removeprefix("videomamba_").removesuffix(".pth")
    return next((file for file in list_pretrained() if file.name == short), None)


def _entry(stem: str) -> PretrainedFile:
    """Everything that the naming scheme tells, put right where the file is known to differ."""
    head, _, grown = stem.partition("to")
    name = f"{head}_res224" + (f"to{grown}" if grown else "")
    model, data, *rest = head.split("_")
    frames = int(rest[-1][1:]) if rest else None
    kind = _kind(data, rest)
    return PretrainedFile(
        name=name,
        repo_id=REPOSITORY,
        filename=f"videomamba_{name}.pth",
        variant=VARIANTS[model[0]],
        data=data,
        frames=TRUE_FRAMES.get(name, frames),
        size=int(grown.rpartition("to")[2]) if grown else 224,
        classes=0 if kind in ("masked pretraining", "multimodal") else CLASSES[data],
        kind=kind,
        defect=KNOWN_DEFECTS.get(name, ""),
        linked=WRONG_LINKS.get(name, ""),
    )


def _kind(data: str, rest: list[str]) -> str:
    if data == "in1k":
        return "image"
    if data not in CLASSES:
        return "multimodal"
    masked = {"pt": "masked pretraining", "ft": "masked fine-tuning"}
    return masked[rest[1]] if rest[0] == "mask" else "video"
