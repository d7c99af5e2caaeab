"""What the operators of the scan refuse."""

import pytest
import torch

from flexvideo import VideoMamba
from flexvideo.errors import BackendError
from flexvideo.scan import available_backends

HERE = [name for name in ("chunked", "cpu") if available_backends()[name] is None]


def second_derivative(backend: str) -> torch.Tensor:
    """Gradient of the squared gradient of a model with respect to its clip."""
    torch.manual_seed(0)
    model = VideoMamba(img_size=16, patch_size=8, depth=1, embed_dim=16, num_frames=2, scan_backend=backend)
    clip = torch.rand(1, 3, 2, 16, 16, requires_grad=True)
    (first,) = torch.autograd.grad(model(clip).square().sum(), clip, create_graph=True)
    return torch.autograd.grad(first.square().sum(), clip)[0]


@pytest.mark.parametrize("backend", HERE)
def test_second_derivatives_are_refused_by_kernels_without_them(backend: str) -> None:
    with pytest.raises(BackendError, match=f"backend '{backend}' has first derivatives only.*'reference'"):
        second_derivative(backend)


def test_the_reference_has_second_derivatives() -> None:
    assert second_derivative("reference").abs().max() > 0
