"""The bidirectional Mamba mixer of VideoMamba, channel-last and without flips.

Shapes: B batch, L tokens, D width, E = 2 D inner width, N state, R rank of the step size, K = 2 directions.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flexvideo.scan import accumulation_dtype, causal_conv, selective_scan

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

    Example:
        >>> import torch
        >>> from flexvideo.models.mixer import BiMamba
        >>> BiMamba(32)(torch.zeros(1, 5, 32)).shape
        torch.Size([1, 5, 32])

    Source: VideoMamba (arXiv 2403.06977); Mamba (arXiv 2312.00752).
    """

    def __init__(
        self,
        dim: int,
        *,
        scan_backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        inner, rank = EXPAND * dim, math.ceil(dim / 16)
        like = {"device": device, "dtype": dtype}
        self.scan_backend = scan_backend
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False, **like)
        self.out_proj = nn.Linear(inner, dim, bias=False, **like)
        for end in ("", "_b"):
            setattr(self, f"conv1d{end}", nn.Conv1d(inner, inner, TAPS, groups=inner, **like))
            setattr(self, f"x_proj{end}", nn.Linear(inner, rank + 2 * STATE, bias=False, **like))
            setattr(self, f"dt_proj{end}", nn.Linear(rank, inner, **like))
            decay = torch.arange(1, STATE + 1, dtype=torch.float32, device=device).log()
            setattr(self, f"A{end}_log", nn.Parameter(decay.repeat(inner, 1)))
            setattr(self, f"D{end}", nn.Parameter(torch.ones(inner, dtype=torch.float32, device=device)))
            init_step_size(getattr(self, f"dt_proj{end}"))

    def forward(self, hidden: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Mix the tokens."""
        x, z = self.in_proj(hidden).chunk(2, dim=-1)  # (B, L, E) each
        conv, conv_b = self.conv1d, self.conv1d_b
        u = causal_conv(
            x,
            torch.stack((conv.weight, conv_b.weight)).squeeze(2),
            torch.stack((conv.bias, conv_b.bias)),
            backend=self.scan_backend,
        )  # (K, B, L, E)
        rows = u.flatten(1, 2)  # (K, B * L, E)
        projected = torch.bmm(rows, torch.stack((self.x_proj.weight, self.x_proj_b.weight)).mT)
        low, B, C = projected.split((self.dt_proj.in_features, STATE, STATE), dim=-1)
        delta = torch.bmm(low, torch.stack((self.dt_proj.weight, self.dt_proj_b.weight)).mT)
        tokens, wide = x.shape[:2], accumulation_dtype(x)
        y = selective_scan(
            u,
            delta.unflatten(1, tokens),
            -torch.stack((self.A_log, self.A_b_log)).to(wide).exp(),
            B.unflatten(1, tokens),
            C.unflatten(1, tokens),
            torch.stack((self.D, self.D_b)).to(wide),
            z,
            torch.stack((self.dt_proj.bias, self.dt_proj_b.bias)).to(wide),
            backend=self.scan_backend,
        )
        return self.out_proj(y)


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
