"""The bidirectional Mamba mixer of VideoMamba, channel-last and without flips.

Shapes: B batch, L tokens, D width, E = 2 D inner width, N state, R rank of the step size, K = 2 directions.
"""

import math
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flexvideo.devices import products_dtype
from flexvideo.errors import UnsupportedModelError
from flexvideo.scan import (
    Fused,
    Normed,
    accumulation_dtype,
    causal_conv,
    check_name,
    fused_operators,
    selective_scan,
)

STATE, TAPS, EXPAND = 16, 4, 2
LAYERS = ("conv1d", "x_proj", "dt_proj")  # that each direction has for itself
BOTH = ("", "_b")  # ends of their names
READ = (nn.Linear, nn.Conv1d)


class BiMamba(nn.Module):
    """Mamba over a token sequence in both directions, which share the projections in and out.

    The directions are summed, not averaged, as in the official VideoMamba. Parameters have the official
    names: those of the backward direction end in `_b`.

    Args:
        dim: width of the tokens.
        scan_backend: "auto" or a name of `flexvideo.scan.available_backends()`.
        device: as in torch.
        dtype: as in torch; `A_log` and `D` are float32 whatever it is.

    Raises:
        ConfigError: an unknown `scan_backend`.

    Example:
        >>> import torch
        >>> from flexvideo.models.mixer import BiMamba
        >>> BiMamba(32)(torch.zeros(1, 5, 32)).shape
        torch.Size([1, 5, 32])

    Source: VideoMamba (arXiv 2403.06977); Mamba (arXiv 2312.00752).
    """

    in_proj: nn.Linear
    out_proj: nn.Linear
    conv1d: nn.Conv1d
    conv1d_b: nn.Conv1d
    x_proj: nn.Linear
    x_proj_b: nn.Linear
    dt_proj: nn.Linear
    dt_proj_b: nn.Linear
    A_log: nn.Parameter
    A_b_log: nn.Parameter
    D: nn.Parameter
    D_b: nn.Parameter

    def __init__(
        self,
        dim: int,
        *,
        scan_backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_name(scan_backend)
        inner, rank = EXPAND * dim, math.ceil(dim / 16)
        self.scan_backend = scan_backend
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False, device=device, dtype=dtype)
        self.out_proj = nn.Linear(inner, dim, bias=False, device=device, dtype=dtype)
        for end in BOTH:
            conv = nn.Conv1d(inner, inner, TAPS, groups=inner, device=device, dtype=dtype)
            x_proj = nn.Linear(inner, rank + 2 * STATE, bias=False, device=device, dtype=dtype)
            dt_proj = nn.Linear(rank, inner, device=device, dtype=dtype)
            decay = torch.arange(1, STATE + 1, dtype=torch.float32, device=device).log().repeat(inner, 1)
            skip = torch.ones(inner, dtype=torch.float32, device=device)
            init_step_size(dt_proj)
            self.add_module(f"conv1d{end}", conv)
            self.add_module(f"x_proj{end}", x_proj)
            self.add_module(f"dt_proj{end}", dt_proj)
            self.register_parameter(f"A{end}_log", nn.Parameter(decay))
            self.register_parameter(f"D{end}", nn.Parameter(skip))

    def forward(
        self, hidden: Float[Tensor, "b l d"], source: Normed | None = None, *, first: bool = False
    ) -> Float[Tensor, "b l d"] | Float[Tensor, "b 1 d"]:
        """Mix the tokens.

        Args:
            hidden: tokens.
            source: what they were made of by normalising; then they need not be kept for the backward pass.
            first: return the first token alone, and compute only what it depends on, if nothing is attached
                to the projections.
        """
        if first and self._bare():
            return self._first(hidden)
        fused = self.fused(hidden)
        if fused is not None:
            projections = [tensor(layer, "weight") for layer in (self.in_proj, self.out_proj)]
            weights = [*projections, *chain.from_iterable(self._paired(BOTH))]
            dtype = products_dtype(hidden)
            return fused.mixer(hidden if hidden.dtype == dtype else hidden.to(dtype), weights, source)
        x, z = self.in_proj(hidden).chunk(2, dim=-1)  # (B, L, E) each
        return self.out_proj(self._scanned(x, z, BOTH))

    def fused(self, hidden: Float[Tensor, "b l d"]) -> Fused | None:
        """What runs a block as two operators; None without any, or if a projection is not a plain one."""
        return fused_operators(hidden, backend=self.scan_backend) if self._bare() else None

    def _bare(self) -> bool:
        into, out = self.in_proj, self.out_proj
        return bare(into, nn.Linear) and bare(out, nn.Linear) and into.bias is None and out.bias is None

    def _first(self, hidden: Float[Tensor, "b l d"]) -> Float[Tensor, "b 1 d"]:
        """The first token: one step of the forward direction, and the last of the backward one."""
        into, gate = self.in_proj.weight.chunk(2)
        x = F.linear(hidden.flip(1), into)  # (B, L, E), last token first
        z = F.linear(hidden[:, :1], gate)  # (B, 1, E)
        ahead = self._scanned(x[:, -1:], z, ("",))
        back = self._scanned(x, z.expand_as(x), ("_b",))[:, -1:]
        return self.out_proj(ahead + back)

    def _scanned(
        self, x: Float[Tensor, "b l e"], z: Float[Tensor, "b l e"], ends: tuple[str, ...]
    ) -> Float[Tensor, "b l e"]:
        """Between the projections, layer by layer; the sum over directions, by the ends of their names."""
        wide, backend, tokens = accumulation_dtype(x), self.scan_backend, x.shape[:2]
        filters, bias, x_proj, dt_proj, dt_bias, A_log, D = (
            torch.stack(weights) if len(weights) > 1 else weights[0].unsqueeze(0)
            for weights in self._paired(ends)
        )
        u = causal_conv(x, filters.squeeze(2), bias, backend=backend)
        rows = torch.bmm(u.flatten(1, 2), x_proj.mT)  # (K, B * L, R + 2 N)
        low, B, C = rows.split((self.dt_proj.in_features, STATE, STATE), dim=-1)
        delta = torch.bmm(low, dt_proj.mT)  # (K, B * L, E)
        return selective_scan(
            u,
            delta.unflatten(1, tokens),
            -A_log.to(wide).exp(),
            B.unflatten(1, tokens),
            C.unflatten(1, tokens),
            D.to(wide),
            z,
            dt_bias.to(wide),
            backend=backend,
        )

    def _paired(self, ends: tuple[str, ...]) -> list[list[Tensor]]:
        """The weights between the projections, of the directions with these ends of names."""
        convs, rows, steps = ([self._read(name + end) for end in ends] for name in LAYERS)
        pairs = [(convs, "weight"), (convs, "bias"), (rows, "weight"), (steps, "weight"), (steps, "bias")]
        found = [[tensor(layer, name) for layer in layers] for layers, name in pairs]
        return found + [[tensor(self, name.format(end)) for end in ends] for name in ("A{}_log", "D{}")]

    def _read(self, name: str) -> Any:
        """A layer of which the weights are taken, and which is never called."""
        layer: Any = self._modules[name]
        # pruning and the old weight_norm make the weight anew in a hook; hooks that look on do no harm
        own = isinstance(layer, READ) and "forward" not in layer.__dict__
        if own and ("weight" in layer._parameters or not layer._forward_pre_hooks):
            return layer
        raise UnsupportedModelError(
            f"{type(self).__name__} takes the weight of its {name} and never calls it, so that what this "
            f"{type(layer).__name__} does to its input, output or weight would have no effect: adapt "
            "in_proj or out_proj, use torch.nn.utils.parametrize, or merge the change into the weight."
        )


def tensor(module: nn.Module, name: str) -> Tensor:
    """An attribute, which is a parameter but for parametrizations, pruning and functional calls.

    torch finds parameters as the last thing it tries, in Python, and a block has sixteen.
    """
    parameters: Any = module._parameters  # to be indexed, for that is when those of DeepSpeed are gathered
    return parameters[name] if name in parameters else getattr(module, name)


def bare(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is of this very class and nothing is attached to it, so that its weight says it all."""
    return type(layer) is kind and not _attached(layer)


def _attached(layer: nn.Module) -> bool:
    """Whether calling a layer does more than its class says."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
    return bool(hooks or layer._backward_pre_hooks) or "forward" in vars(layer)


@torch.no_grad()
def init_step_size(dt_proj: nn.Linear, *, low: float = 1e-3, high: float = 0.1) -> None:
    """Draw the biases so that the step sizes softplus(bias) are log-uniform in [low, high].

    Source: Mamba (arXiv 2312.00752), section 3.6.
    """
    bound = dt_proj.in_features**-0.5
    nn.init.uniform_(dt_proj.weight, -bound, bound)
    log_step = torch.empty_like(dt_proj.bias, dtype=torch.float32).uniform_(math.log(low), math.log(high))
    step = log_step.exp().clamp(min=1e-4)
    dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
