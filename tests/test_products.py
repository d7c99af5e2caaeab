"""Resampling where tensors are traced, cast, batched or shared: the cache of matrices is never poisoned."""

import copy
import io
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

from flexvideo import products
from flexvideo.resample import RULES, Rule, prewarm, resample_kernel, resample_table, resize_clip

# Dynamo instantiates the base class of autograd functions while it traces one.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _cold_cache() -> Iterator[None]:
    torch._dynamo.reset()
    products._CACHE.clear()
    yield
    assert not any(map(poisoned, products._CACHE.values()))
    products._CACHE.clear()


def poisoned(matrix: Tensor) -> bool:
    """Whether a matrix belongs to a mode or transform that may have ended."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(matrix)
    return type(matrix) is not Tensor or matrix.is_inference() or matrix.requires_grad or wrapped


class Embed(nn.Module):
    """A patch kernel, a spatial table with a class token and a temporal table, resampled to fit the clip."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.kernel = nn.Parameter(torch.randn(6, 3, 1, 8, 8, generator=generator).to(dtype))
        self.space = nn.Parameter(torch.randn(1, 17, 6, generator=generator).to(dtype))
        self.time = nn.Parameter(torch.randn(1, 4, 6, generator=generator).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        rule = RULES["auto"]
        frames, size = x.shape[2], x.shape[3] // 4
        x = resize_clip(x, (4 * size, 4 * size))
        kernel = resample_kernel(self.kernel, (1, size, size), rule)
        tokens = nn.functional.conv3d(x, kernel, stride=(1, size, size)).flatten(3).permute(0, 2, 3, 1)
        space = resample_table(
            self.space, dim=1, old=(4, 4), new=(2, 8), kinds=("bicubic",) * 2, extra_old=(0,), extra_new=(8,)
        )
        time = resample_table(self.time, dim=1, old=(4,), new=(frames,), kinds=("linear-aa",))
        return tokens + space[:, :16] + time[:, :, None]


def clip(frames: int = 3, size: int = 21) -> Tensor:
    return torch.randn(2, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


def run(model: Callable[[Tensor], Tensor], module: Embed, x: Tensor) -> list[Tensor]:
    """The output and the gradients, all of them."""
    out = model(x)
    return [out, *torch.autograd.grad(out.square().sum(), list(module.parameters()))]


def close(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert (a - e).norm() <= tolerance * e.norm()


def resampled(weight: Tensor) -> Tensor:
    return resample_kernel(weight, (1, 5, 5), RULES["auto"])


# Compile and export ---------------------------------------------------------------------------------------


@pytest.mark.unchecked
@pytest.mark.parametrize("dynamic", [None, False, True])
def test_compiles_to_one_graph_with_a_cold_cache(dynamic: bool | None) -> None:
    module = Embed()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=graphs, fullgraph=True, dynamic=dynamic)
    actual = run(compiled, module, clip())
    assert graphs.frame_count == 1
    close(actual, run(module, module, clip()))


@pytest.mark.unchecked
def test_each_geometry_compiles_once() -> None:
    module = Embed()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=graphs, fullgraph=True, dynamic=False)
    clips = [clip(3, 21), clip(5, 21), clip(2, 40)]
    for x in clips * 2:
        close(run(compiled, module, x), run(module, module, x))
    assert graphs.frame_count == len(clips)


@pytest.mark.unchecked
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # inductor's own
def test_inductor() -> None:
    weight = torch.randn(6, 3, 1, 8, 8, requires_grad=True)
    compiled = torch.compile(resampled, fullgraph=True)
    actual, expected = compiled(weight), resampled(weight)
    gradients = [torch.autograd.grad(out.square().sum(), weight)[0] for out in (actual, expected)]
    close([actual, gradients[0]], [expected, gradients[1]])


@pytest.mark.unchecked
@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
def test_autocast_touches_neither_result_nor_gradient(backend: str | None) -> None:
    weight = torch.randn(6, 3, 1, 8, 8, requires_grad=True)
    model = resampled if backend is None else torch.compile(resampled, backend=backend, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model(weight)
        expected = resampled(weight.double())
    assert actual.dtype == torch.float32
    cotangent = torch.randn_like(actual)
    (exact,) = torch.autograd.grad(expected, weight, cotangent.double())
    for backward_too in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=backward_too):
            (gradient,) = torch.autograd.grad(actual, weight, cotangent, retain_graph=True)
        close([actual.double(), gradient], [expected, exact], 1e-6)


def test_autocast_first_does_not_poison_the_cache() -> None:
    weight = torch.randn(6, 3, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        first = resampled(weight)
    assert torch.equal(first, resampled(weight))
    assert {m.dtype for m in products._CACHE.values()} == {torch.float32}


@pytest.mark.unchecked
@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_a_cold_cache(strict: bool) -> None:
    module = Embed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # strict export announces its own retirement
        program = torch.export.export(module, (clip(),), strict=strict)
    assert not products._CACHE
    expected = module(clip())
    close([program.module()(clip())], [expected])
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    close([torch.export.load(file).module()(clip())], [expected])


@pytest.mark.unchecked
@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_a_warm_cache(strict: bool) -> None:
    module = Embed()
    expected = module(clip())
    program = torch.export.export(module, (clip(),), strict=strict)
    close([program.module()(clip())], [expected])
    close([module(clip())], [expected], 0.0)


# Tensors without values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [False, True])
def test_fake_tensors(warm: bool) -> None:
    if warm:
        Embed()(clip())
    with FakeTensorMode():
        out = Embed()(clip())
        out.sum().backward()
    assert out.shape == (2, 3, 16, 6)
    assert Embed()(clip()).isfinite().all()


@pytest.mark.parametrize("warm", [False, True])
def test_meta_device(warm: bool) -> None:
    if warm:
        Embed()(clip())
    with torch.device("meta"):
        module = Embed()
        out = module(torch.empty(2, 3, 3, 21, 21))
    assert out.shape == (2, 3, 16, 6)
    out.sum().backward()
    assert module.kernel.grad.device.type == "meta"
    assert Embed()(clip()).isfinite().all()


def test_default_device_of_the_caller_does_not_matter() -> None:
    weight = torch.randn(6, 3, 1, 8, 8)
    with torch.device("meta"):
        under = resampled(weight)
    assert torch.equal(under, resampled(weight))


# Modes of autograd ----------------------------------------------------------------------------------------


def test_inference_first_then_training() -> None:
    module = Embed()
    with torch.inference_mode():
        first = module(clip())
    actual = run(module, module, clip())
    assert torch.equal(actual[0], first)
    close(actual, run(module, module, clip()), 0.0)


@pytest.mark.parametrize("warm", [False, True])
def test_per_sample_gradients(warm: bool) -> None:
    module = Embed()
    if warm:
        module(clip())
    parameters = dict(module.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (x[None],)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, clip())
    for i, x in enumerate(clip()):
        close([per_sample[n][i] for n in parameters], run(module, module, x[None])[1:])


def test_many_kernels_at_once() -> None:
    weights = torch.randn(5, 6, 3, 1, 8, 8)
    batched = torch.func.vmap(resampled, in_dims=0)(weights)
    close([batched], [torch.stack([resampled(w) for w in weights])])


def test_checkpointing_matches() -> None:
    module = Embed()

    def checkpointed(x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)

    close(run(checkpointed, module, clip()), run(module, module, clip()), 0.0)


def test_strict_determinism_is_accepted_and_kept() -> None:
    module = Embed()
    torch.use_deterministic_algorithms(True)
    try:
        close(run(module, module, clip()), run(module, module, clip()), 0.0)
    finally:
        torch.use_deterministic_algorithms(False)


# The cache ------------------------------------------------------------------------------------------------


def test_cold_and_warm_give_the_same_bits() -> None:
    module = Embed()
    close(run(module, module, clip()), run(module, module, clip()), 0.0)


def test_two_threads_at_two_sizes() -> None:
    module = Embed()
    sizes = [17, 21, 26, 40]
    expected = {size: module(clip(size=size)) for size in sizes}
    products._CACHE.clear()
    wrong: list[int] = []

    def work(size: int) -> None:
        wrong.extend(size for _ in range(20) if not torch.equal(module(clip(size=size)), expected[size]))

    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_models_carry_no_matrices() -> None:
    module = Embed()
    module(clip())
    cached = dict(products._CACHE)
    assert list(module.state_dict()) == ["kernel", "space", "time"]
    for clone in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.deepcopy(module).double()):
        assert list(clone.state_dict()) == ["kernel", "space", "time"]
    assert cached == products._CACHE
    module.to(torch.float64)(clip().double())
    assert {key[3] for key in products._CACHE} == {torch.float32, torch.float64}


def test_model_made_on_the_meta_device_and_filled_later() -> None:
    with torch.device("meta"):
        module = Embed()
    module(torch.empty(2, 3, 3, 21, 21, device="meta"))
    module.to_empty(device="cpu").load_state_dict(Embed().state_dict())
    assert torch.equal(module(clip()), Embed()(clip()))


def test_low_precision_shares_the_float32_matrices() -> None:
    Embed()(clip())
    count = len(products._CACHE)
    Embed(torch.bfloat16)(clip().bfloat16())
    assert len(products._CACHE) == count


def test_matrices_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Embed()
    module(clip())
    monkeypatch.setattr(products, "axis_matrix", lambda *_: pytest.fail("built again"))
    module(clip())


def test_prewarm_leaves_nothing_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(6, 3, 1, 8, 8, dtype=torch.bfloat16)
    prewarm([("auto", 8, 5)], dtype=weight.dtype, device="cpu")
    monkeypatch.setattr(products, "axis_matrix", lambda *_: pytest.fail("built again"))
    resampled(weight)


def test_cache_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def matrices() -> dict[int, int]:
        return {key[2]: matrix.nbytes for key, matrix in products._CACHE.items()}

    monkeypatch.setattr(products, "_CACHE_BYTES", 1000)
    for size in range(1, 99):
        resample_kernel(torch.ones(1, 1, 4, 4), (size, size), Rule.of("paper"))
        assert sum(matrices().values()) <= 1000
    resample_kernel(torch.ones(1, 1, 4, 4), (7, 7), Rule.of("paper"))
    assert matrices() == {7: 7 * 4 * 4}
    large = resample_kernel(torch.ones(1, 1, 4, 4), (98, 98), Rule.of("paper"))
    assert torch.equal(resample_kernel(torch.ones(1, 1, 4, 4), (98, 98), Rule.of("paper")), large)
    assert 98 not in matrices()  # it does not fit


def test_operator_passes_torchs_own_checks() -> None:
    arguments = ("auto", 8, 5, torch.float32, torch.device("cpu"))
    torch.library.opcheck(torch.ops.flexvideo.resize_matrix.default, arguments)


@pytest.mark.gpu
def test_cuda_equals_cpu_deterministically(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch demands it of deterministic matmuls
    module, x = Embed(torch.float64), clip().double()
    expected = run(module, module, x)
    module.cuda()
    torch.use_deterministic_algorithms(True)
    try:
        resampled_twice = [resampled(module.kernel) for _ in range(2)]
        assert torch.equal(*resampled_twice)
        resampled_twice[0].square().sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    close([out.cpu() for out in run(module, module, x.cuda())], expected, 1e-12)


@pytest.mark.gpu
def test_a_device_and_its_index_share_their_matrices() -> None:
    prewarm([("auto", 8, 5)], dtype=torch.float32, device="cuda")
    resampled(torch.randn(6, 3, 1, 8, 8, device="cuda:0"))
    assert len(products._CACHE) == 1
