"""How fast the scan kernels and whole models are on a GPU, beside the official path and a transformer.

    python benchmarks/speed.py [--models middle] [--clips 16x224x16 16x224x1] [--skip official vit]

A clip is frames x pixels x batch. Everything is bfloat16 autocast. Columns:

official    mamba-ssm's and causal-conv1d's kernels as the official model calls them: flips, two scans, add
padded      the same, each direction padded to a multiple of 2048 tokens, which those kernels work off anyway
ours        VideoMamba with the Triton kernels, eager
graphed     ours, replayed as a CUDA graph (forward only)
vit         a transformer of the same size (18 x 576, 9 heads, MLP 4) with PyTorch's fused attention
floor       the least time for the bytes, FLOPs and exponentials of ours (see `floor`), forward only
"""

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _results import write_results
from torch import Tensor, nn

import flexvideo as fv
from flexvideo.models.mixer import BiMamba
from flexvideo.scan import selective_scan

BUILDERS = {"tiny": fv.videomamba_tiny, "small": fv.videomamba_small, "middle": fv.videomamba_middle}
BYTES, FLOPS, EXPS = (
    3.0e12,
    790e12,
    3.59e12,
)  # an H100's, a second: measured copy, measured product, 16 x 132 SMs
CHUNK = 2048


def main() -> None:
    arguments = parse()
    rows: list[dict[str, object]] = []
    for batch in (16, 1):
        rows += kernel_rows(batch, arguments)
    for name in arguments.models:
        for clip in arguments.clips:
            rows += model_rows(name, *(int(part) for part in clip.split("x")), arguments)
    print(write_results("speed", rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=["middle"], choices=list(BUILDERS))
    parser.add_argument("--clips", nargs="*", default=["16x224x16", "16x224x1"])
    parser.add_argument("--skip", nargs="*", default=[], choices=["official", "padded", "vit", "train"])
    parser.add_argument("--repeats", type=int, default=10)
    return parser.parse_args()


def measure(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median milliseconds by CUDA events, and the peak of allocated GiB."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times), torch.cuda.max_memory_allocated() / 2**30


def record(arguments: argparse.Namespace, run: Callable[[], object], **what: object) -> dict[str, object]:
    """One row, printed as it comes; running out of memory is a result."""
    try:
        milliseconds, peak = measure(run, arguments.repeats)
        row = {**what, "ms": round(milliseconds, 4), "peak_gib": round(peak, 2)}
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        row = {**what, "ms": None, "peak_gib": None}
    print("  ".join(f"{value}" for value in row.values()), flush=True)
    return row


def graphed(run: Callable[[], Tensor]) -> Callable[[], None]:
    """The same work as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


# ---------------------------------------------------------------------------------------------- kernels


def kernel_rows(batch: int, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """The scan of VideoMamba-M at 16 x 224, both directions."""
    tokens, width, states = 3137, 1152, 16
    inputs = scan_inputs(batch, tokens, width, states)
    upstream = torch.randn(batch, tokens, width, device="cuda", dtype=torch.bfloat16)
    rows = []
    backends = ["triton"] if "official" in arguments.skip else ["triton", "mamba-ssm"]
    for backend in backends:
        what = {"what": "scan", "batch": batch, "tokens": tokens, "column": backend}

        def forward(backend: str = backend) -> Tensor:
            with torch.no_grad():
                return selective_scan(*inputs, backend=backend)

        out = selective_scan(*inputs, backend=backend)

        def backward(out: Tensor = out) -> None:
            torch.autograd.grad(out, inputs, upstream, retain_graph=True)

        rows.append(record(arguments, forward, **what, step="forward"))
        rows.append(record(arguments, backward, **what, step="backward"))
        if backend == "triton":
            rows.append(record(arguments, graphed(forward), **what, step="forward graphed"))
    exps = 2 * batch * tokens * width * (states + 1) + 2 * batch * tokens * width
    rows.append(
        {"what": "scan", "batch": batch, "column": "floor", "step": "forward", "ms": exps / EXPS * 1e3}
    )
    return rows


def scan_inputs(b: int, l: int, d: int, n: int) -> list[Tensor]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    A = -torch.arange(1, n + 1, device="cuda", dtype=torch.float32).repeat(2, d, 1)
    wide = [torch.randn(2, d, device="cuda") for _ in range(2)]
    inputs = [draw(2, b, l, d), draw(2, b, l, d) * 0.5, A, draw(2, b, l, n), draw(2, b, l, n), wide[0]]
    inputs += [draw(b, l, 2 * d)[..., d:], wide[1] - 3]
    return [x.requires_grad_() for x in inputs]


# ----------------------------------------------------------------------------------------------- models


def model_rows(
    name: str, frames: int, size: int, batch: int, arguments: argparse.Namespace
) -> list[dict[str, object]]:
    """Forward and training step of every column on one kind of clip."""
    clip = torch.randn(batch, 3, frames, size, size, device="cuda")
    model = BUILDERS[name](num_frames=frames, img_size=size, num_classes=400).cuda()
    models = {"ours": model}
    if "official" not in arguments.skip:
        models["official"] = official(model, padded=False)
    if "padded" not in arguments.skip:
        models["padded"] = official(model, padded=True)
    if "vit" not in arguments.skip and name == "middle":
        models["vit"] = VisionTransformer(frames * (size // 16) ** 2 + 1).cuda()
    tokens = frames * (size // 16) ** 2 + 1
    rows = [{"what": name, "clip": f"{frames}x{size}", "batch": batch, "tokens": tokens, "column": "floor",
             "step": "forward", "ms": floor(model, batch, tokens)}]  # fmt: skip
    for column, each in models.items():
        what = {"what": name, "clip": f"{frames}x{size}", "batch": batch, "tokens": tokens, "column": column}

        def forward(each: nn.Module = each) -> Tensor:
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
                return each(clip)

        each.eval()
        rows.append(record(arguments, forward, **what, step="forward"))
        if column in ("ours", "vit"):
            rows.append(record(arguments, graphed(forward), **what, step="forward graphed"))
        if "train" not in arguments.skip:
            each.train()
            optimizer = torch.optim.AdamW(each.parameters(), fused=True)

            def step(each: nn.Module = each, optimizer: torch.optim.Optimizer = optimizer) -> None:
                with torch.autocast("cuda", torch.bfloat16):
                    loss = each(clip).float().square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            rows.append(record(arguments, step, **what, step="train"))
            del optimizer
        torch.cuda.empty_cache()
    return rows


def floor(model: nn.Module, batch: int, tokens: int) -> float:
    """Milliseconds of a forward pass: per block norm, projections, convolution and scan, each at its bound.

    Norm 12 bytes a number; projections FLOPs; convolution with x_proj reads x once; the scan 39 exponentials
    (and such) a channel and token of both directions, 16 + 2 + 1 each and the gate's.
    """
    m, width = batch * tokens, model.embed_dim
    inner, rank = 2 * width, -(-width // 16)
    norm = 12 * m * width / BYTES
    products = 2 * m * width * 3 * inner / FLOPS
    small = (2 * m * inner * (2 * rank + 2 * 32) + 2 * m * 2 * rank * inner) / FLOPS
    conv = max(small, 2 * m * inner / BYTES)
    scan = 39 * m * inner / EXPS
    return len(model.layers) * (norm + products + conv + scan) * 1e3


def official(model: nn.Module, *, padded: bool) -> nn.Module:
    """A model of the same weights whose mixers call mamba-ssm as the official code does."""
    import copy

    twin = copy.deepcopy(model)
    for block in twin.layers:
        block.mixer.__class__ = PaddedMixer if padded else OfficialMixer
    return twin


class OfficialMixer(BiMamba):
    """Sequences last, a flipped copy for the backward direction, two scans, one addition."""

    padded = False

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, _ = hidden.shape
        # as the official code: the product itself leaves sequences last
        xz = (self.in_proj.weight @ hidden.flatten(0, 1).t()).unflatten(1, (batch, length)).transpose(0, 1)
        extra = -length % CHUNK if self.padded else 0
        flipped = xz.flip(-1)
        if extra:
            xz, flipped = F.pad(xz, (0, extra)), F.pad(flipped, (0, extra))
        out = self.direction(xz, "")[..., :length]
        back = self.direction(flipped, "_b")[..., :length]
        return self.out_proj((out + back.flip(-1)).transpose(1, 2))

    def direction(self, xz: Tensor, end: str) -> Tensor:
        from causal_conv1d import causal_conv1d_fn
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        x, z = xz.chunk(2, dim=1)
        conv, x_proj, dt_proj = (getattr(self, name + end) for name in ("conv1d", "x_proj", "dt_proj"))
        weight = conv.weight.squeeze(1).to(x.dtype)
        x = causal_conv1d_fn(x, weight, conv.bias.to(x.dtype), activation="silu")
        rows = x_proj(x.transpose(1, 2).reshape(-1, x.shape[1]))
        low, B, C = rows.split((dt_proj.in_features, 16, 16), dim=-1)
        delta = (dt_proj.weight.to(low.dtype) @ low.t()).unflatten(1, (x.shape[0], -1)).transpose(0, 1)
        B, C = (y.unflatten(0, (x.shape[0], -1)).transpose(1, 2).contiguous() for y in (B, C))
        A = -getattr(self, f"A{end}_log").exp()
        bias = dt_proj.bias.float()
        skip = getattr(self, f"D{end}")
        return selective_scan_fn(x, delta, A, B, C, skip, z, bias, delta_softplus=True)


class PaddedMixer(OfficialMixer):
    """The same, padded to whole chunks."""

    padded = True


class VisionTransformer(nn.Module):
    """18 blocks of width 576 with 9 heads on the tokens of a clip: the size of VideoMamba-M."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 576, 16, 16)
        self.position = nn.Parameter(torch.zeros(1, tokens, 576))
        self.blocks = nn.ModuleList(TransformerBlock() for _ in range(18))
        self.norm, self.head = nn.LayerNorm(576), nn.Linear(576, 400)

    def forward(self, clip: Tensor) -> Tensor:
        frames = self.embed(clip.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2)
        x = F.pad(frames.reshape(clip.shape[0], -1, 576), (0, 0, 1, 0)) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(576), nn.LayerNorm(576)
        self.qkv, self.out = nn.Linear(576, 3 * 576), nn.Linear(576, 576)
        self.mlp = nn.Sequential(nn.Linear(576, 4 * 576), nn.GELU(), nn.Linear(4 * 576, 576))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_1(x)).unflatten(-1, (3, 9, 64)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_2(x))


if __name__ == "__main__":
    main()
