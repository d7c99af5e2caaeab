"""Whole models, a column each: what is built, and what one call of a step is."""

from collections.abc import Callable

import torch
from _speed_floor import model_floor
from _speed_official import OfficialVideoMamba, official_add_norm
from _speed_plan import BASELINES, Case
from _speed_timing import Run, capture
from _speed_vit import VisionTransformer, fastest_attention
from torch import Tensor, nn

import flexvideo as fv

SIZES = {"tiny": (24, 192), "small": (24, 384), "middle": (32, 576), "toy": (2, 64)}  # depth, width
VIT_SIZES = {"middle": (18, 576), "toy": (2, 64)}
CLASSES = 400


class Subject:
    """A column's model with its clips; keeps them until it is dropped."""

    calls = 1

    def __init__(self, case: Case, device: torch.device) -> None:
        self.notes: dict[str, object] = {}
        self.case, self.device = case, device
        self.model = build(case, device)
        if isinstance(self.model, VisionTransformer) and device.type == "cuda":
            self.model.attention = fastest_attention(case, self.model.heads, device)
            self.notes["attention"] = self.model.attention.name
        if case.column.endswith("compiled"):
            self.notes.clear()  # blocks compiled for any length keep the attention of the first ones
            compile_layers(self.model, device)
        self.clip = torch.randn(case.batch, 3, case.frames, case.size, case.size, device=device)

    def run(self, step: str) -> Run:
        """One forward pass or training step."""
        if step == "train":
            return self.train_step()
        self.model.eval()
        if self.case.column == "ours graphed" and hasattr(fv, "graphed"):
            return self.inference(fv.graphed(self.model))
        forward = self.inference(self.model)
        return capture(forward) if "graphed" in self.case.column else forward

    def inference(self, model: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def forward() -> Tensor:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16):
                return model(self.clip)

        return forward

    def train_step(self) -> Run:
        model = self.model.train()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)

        def step() -> None:
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = model(self.clip).float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step


def build(case: Case, device: torch.device) -> nn.Module:
    """The model of a column, drawn anew on the device."""
    if case.column.startswith("vit"):
        depth, width = VIT_SIZES[case.what]
        return VisionTransformer(case.tokens, depth=depth, width=width, device=device)
    depth, width = SIZES[case.what]
    named = case.column.removeprefix("ours ")
    model = fv.VideoMamba(
        depth=depth,
        embed_dim=width,
        img_size=case.size,
        num_frames=case.frames,
        num_classes=CLASSES,
        drop_path_rate=0.0,
        scan_backend="auto" if named in ("compiled", "graphed", *BASELINES) else named,
        device=device,
    )
    if case.column in BASELINES:
        return OfficialVideoMamba(model, padded=case.column == "padded", add_norm=official_add_norm())
    return model


def compile_layers(model: nn.Module, device: torch.device) -> None:
    """Compile the blocks, which share their code: seconds, where a whole model takes minutes.

    Every geometry, mode and kind of block is a compilation of the same function, of which torch allows few
    before it silently stops.
    """
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for layer in model.layers:
        layer.compile(backend="inductor" if device.type == "cuda" else "eager")


def floor_of(case: Case) -> float:
    """Milliseconds below which no VideoMamba of this size goes."""
    depth, width = SIZES[case.what]
    model = fv.VideoMamba(
        depth=depth,
        embed_dim=width,
        num_classes=CLASSES,
        img_size=case.size,
        num_frames=case.frames,
        device="meta",
    )
    weights = sum(parameter.numel() for parameter in model.parameters())
    train = case.step == "train"
    return model_floor(
        width=width, depth=depth, weights=weights, batch=case.batch, tokens=case.tokens, train=train
    )
