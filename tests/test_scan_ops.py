"""What the operators of the scan refuse, and who sees them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flexvideo import VideoMamba
from flexvideo.errors import BackendError
from flexvideo.scan import available_backends
from flexvideo.scan.entry import seen

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


class Onlooker(TorchDispatchMode):
    """Does nothing, and keeps the names of the operators that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__)
        return function(*args, **(kwargs or {}))


class Other(torch.Tensor):
    """A tensor of another class."""


def gradients(model: VideoMamba) -> list[torch.Tensor]:
    clip = torch.rand(2, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    out = model(clip)
    return [out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))]


@pytest.mark.parametrize("backend", HERE)
def test_results_are_the_same_whoever_looks_on(backend: str) -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_frames": 2}
    model = VideoMamba(**sizes, drop_path_rate=0.0, scan_backend=backend)
    expected = gradients(model)
    with Onlooker() as onlooker:
        found = gradients(model)
    assert {"selective_scan.default", "selective_scan_backward.default"} <= onlooker.names
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
def test_only_plain_tensors_that_nobody_looks_at_pass_by_the_dispatcher() -> None:
    plain = torch.ones(2, 3)
    assert not seen((plain, None, [plain, torch.nn.Parameter(plain)], 1e-5, True, "cpu", torch.float32))
    assert seen((plain, [plain, plain.as_subclass(Other)]))
    assert seen((plain.as_subclass(Other),))
    assert seen((plain.to("meta"),))
    with Onlooker():
        assert seen((plain,))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert seen((plain,))
    found = []
    torch.func.vmap(lambda x: found.append(seen((x,))) or x)(plain)
    with torch.autograd.forward_ad.dual_level():
        found.append(seen((plain,)))
    torch.jit.trace(lambda x: found.append(seen((x,))) or x + 1, plain, check_trace=False)
    assert all(found)
