"""Stand-ins for the extensions of mamba-ssm and causal-conv1d, in plain torch."""

import torch
import torch.nn.functional as F

from flexvideo.scan import selective_scan


class Scan:
    """The extension `selective_scan_cuda`: one direction, sequences last."""

    def gated(self, u, delta, A, B, C, D, z, bias):
        last = (
            u.mT[None],
            delta.mT[None],
            A[None],
            B[:, 0].mT[None],
            C[:, 0].mT[None],
            D[None],
            z.mT,
            bias[None],
        )
        return selective_scan(*last, backend="reference").mT

    def fwd(self, *inputs_and_softplus):
        *inputs, softplus = inputs_and_softplus
        assert softplus
        assert all(x.stride(-1) == 1 for x in inputs)
        out = self.gated(*inputs)
        return out, torch.zeros(1), out

    def bwd(self, *arguments):
        *inputs, grad, _, _, d_z, _, _ = arguments
        assert grad.stride(-1) == 1
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in inputs]
            grads = torch.autograd.grad(self.gated(*leaves), leaves, grad)
        *first, d_z_, d_bias = grads
        if d_z is None:
            return *first, d_bias, d_z_
        d_z.copy_(d_z_)
        return *first, d_bias, d_z


class Conv:
    """The extension `causal_conv1d_cuda`."""

    def convolved(self, x, weight, bias):
        padded = F.pad(x.to(weight.dtype), (weight.shape[1] - 1, 0))
        return F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(weight)))

    def causal_conv1d_fwd(self, x, weight, bias, _1, _2, out, _3, silu):
        assert silu
        out.copy_(self.convolved(x, weight, bias))

    def causal_conv1d_bwd(self, x, weight, bias, grad, _1, _2, _3, d_x, d_weight, d_bias, _4, silu):
        with torch.enable_grad():
            leaves = [each.detach().requires_grad_() for each in (x, weight, bias)]
            grads = torch.autograd.grad(self.convolved(*leaves), leaves, grad)
        for place, each in zip((d_x, d_weight, d_bias), grads, strict=True):
            place.copy_(each)


EXTENSIONS = {"selective_scan_cuda": Scan(), "causal_conv1d_cuda": Conv()}


def add_norm(hidden, norm, residual):
    total = hidden if residual is None else hidden + residual
    return F.rms_norm(total, norm.weight.shape, norm.weight, norm.eps), total
