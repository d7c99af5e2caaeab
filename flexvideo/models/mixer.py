"""The bidirectional Mamba mixer of VideoMamba, channel-last and without flips.

Shapes: B batch, L tokens, D width, E = 2 D inner width, N state, R rank of the step size, K = 2 directions.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flexvideo.scan import accumulation_dtype, causal_conv, check_name, selective_scan

STATE, TAPS, EXPAND = 16, 4, 2


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
        for end in ("", "_b"):
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

    def forward(self, hidden: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Mix the tokens."""
        wide, backend = accumulation_dtype(hidden), self.scan_backend
        x, z = self.in_proj(hidden).chunk(2, dim=-1)  # (B, L, E) each
        u = causal_conv(
            x,
            _both("weight", self.conv1d, self.conv1d_b).squeeze(2),
            _both("bias", self.conv1d, self.conv1d_b),
            backend=backend,
        )
        rows = torch.bmm(
            u.flatten(1, 2), _both("weight", self.x_proj, self.x_proj_b).mT
        )  # (K, B * L, R + 2 N)
        low, B, C = rows.split((self.dt_proj.in_features, STATE, STATE), dim=-1)
        delta = torch.bmm(low, _both("weight", self.dt_proj, self.dt_proj_b).mT)  # (K, B * L, E)
        tokens = x.shape[:2]
        y = selective_scan(
            u,
            delta.unflatten(1, tokens),
            -torch.stack((self.A_log, self.A_b_log)).to(wide).exp(),
            B.unflatten(1, tokens),
            C.unflatten(1, tokens),
            torch.stack((self.D, self.D_b)).to(wide),
            z,
            _both("bias", self.dt_proj, self.dt_proj_b).to(wide),
            backend=backend,
        )
        return self.out_proj(y)


def _both(name: str, forward: nn.Module, backward: nn.Module) -> Tensor:
    return torch.stack((getattr(forward, name), getattr(backward, name)))


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
