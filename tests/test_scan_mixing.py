"""Blocks as two operators which keep little, against the same blocks layer by layer.

The operators run on the plain `chunked` backend here, in any dtype; a GPU's backends run them always.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from small import SIZES, build, clip
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import flexvideo as fv
from flexvideo.errors import BackendError, UnsupportedModelError
from flexvideo.scan import chunked, mixing

LOW = torch.bfloat16


@pytest.fixture(autouse=True)
def _fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "FUSED", mixing.fused("chunked"), raising=False)


def fused(**arguments) -> fv.VideoMamba:
    return build(scan_backend="chunked", depth=3, **arguments)


def by_layers(model: fv.VideoMamba) -> fv.VideoMamba:
    """A twin on the reference backend, which has no such operators."""
    twin = copy.deepcopy(model)
    for layer in twin.layers:
        layer.mixer.scan_backend = "reference"
    return twin


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """All tokens and the gradients of clip and parameters."""
    x = x.detach().requires_grad_()
    out = model.forward_features(x, all_tokens=True)
    wanted = [x, *(p for name, p in model.named_parameters() if not name.startswith("head"))]
    return [out, *torch.autograd.grad(out.double().square().mean(), wanted)]


def error(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def assert_close(found: list[Tensor], expected: list[Tensor], forward: float, backward: float) -> None:
    assert found[0].dtype == expected[0].dtype
    assert error(found[0], expected[0]) < forward
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert error(a, b) < backward


def nodes(out: Tensor) -> set[str]:
    """Names of what the autograd graph behind a tensor is made of."""
    found, waiting = set(), [out.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return {type(node).__name__ for node in found}


# --- the numbers ---


@pytest.mark.parametrize(
    ("dtype", "forward", "backward"), [(torch.float32, 1e-5, 1e-4), (torch.float64, 1e-14, 1e-12)]
)
@pytest.mark.parametrize("size", [(4, 32, 32), (1, 8, 8), (3, 40, 24)])
def test_agrees_with_the_reference(dtype, forward, backward, size):
    model = fv.make_flexible(fused(), policy="static-patch").to(dtype)
    x = clip(*size).to(dtype).repeat(2, 1, 1, 1, 1)
    assert_close(results(model, x), results(by_layers(model), x), forward, backward)


def test_runs_as_two_operators():
    assert "AddNormBackward" in nodes(fused()(clip()))
    found = nodes(fused().forward_features(clip(), all_tokens=True))
    assert "MixerBackward" in found
    assert "BmmBackward0" not in found


def test_bfloat16_autocast_and_model_are_as_precise_as_layer_by_layer():
    model, x = fused(), clip().repeat(2, 1, 1, 1, 1)
    plain = by_layers(model)
    truth = results(copy.deepcopy(plain).double(), x.double())
    with torch.autocast("cpu", LOW):
        pairs = [(results(model, x), results(plain, x))]
    pairs += [(results(model.to(LOW), x.to(LOW)), results(plain.to(LOW), x.to(LOW)))]
    for found, other in pairs:
        for ours, layers, exact in zip(found, other, truth, strict=True):
            assert ours.dtype == layers.dtype
            assert error(ours, exact) < max(1.3 * error(layers, exact), 0.01)


def test_drop_path_and_recomputing_change_nothing():
    model = fused(drop_path_rate=0.5, use_checkpoint=True, checkpoint_num=2).train()
    plain, found = by_layers(model), []
    plain.use_checkpoint = False
    for each in (model, plain):
        torch.manual_seed(3)
        found.append(results(each, clip().repeat(4, 1, 1, 1, 1)))
    assert_close(*found, 1e-5, 1e-4)


def test_without_a_gradient_of_some_weights():
    model = fused().requires_grad_(False)
    model.layers[1].mixer.D_b.requires_grad_(True)
    model(clip()).sum().backward()
    expected = by_layers(model)
    expected.zero_grad()
    expected(clip()).sum().backward()
    assert error(model.layers[1].mixer.D_b.grad, expected.layers[1].mixer.D_b.grad) < 1e-4


def test_shapes_and_flops_of_a_model_on_no_device():
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = fv.VideoMamba(img_size=32, depth=2, embed_dim=16, num_frames=2, scan_backend="chunked").eval()
        assert model(torch.empty(2, 3, 2, 32, 32)).shape == (2, 1000)
    assert counter.get_total_flops() > 0


def test_weights_that_change_are_seen():
    model, x = fused(), clip()
    first = model(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    assert error(model(x), first) > 0.1
    assert error(model(x), by_layers(model)(x)) < 1e-5


# --- what is kept ---


def kept_by_a_block(model: fv.VideoMamba, x: Tensor) -> int:
    """Bytes that a block adds to what autograd keeps, parameters left out."""
    sizes = []
    for depth in (1, 2):
        storages: dict[int, int] = {}
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def pack(tensor: Tensor, storages: dict[int, int] = storages, own: set[int] = own) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", LOW),
        ):
            hidden, residual = x, None
            for layer in list(model.layers)[:depth]:
                hidden, residual = layer(hidden, residual)
        sizes.append(sum(storages.values()))
    return sizes[1] - sizes[0]


def closed_form(b: int, l: int, d: int) -> int:
    """Residual in float32, aligned rows of `x_proj` in 16 bits, a state in 64 in float32."""
    e, rank, n, k = 2 * d, -(-d // 128) * 8, 16, 2
    return 4 * b * l * d + 2 * k * b * l * (rank + 2 * n) + 4 * k * b * e * n * -(-l // 64)


def test_a_training_step_of_videomamba_m_fits_in_16_gib():
    model = fused(embed_dim=48).train()
    x = torch.randn(2, 129, 48, requires_grad=True)
    found = kept_by_a_block(model, x)
    assert found == closed_form(2, 129, 48)
    assert kept_by_a_block(by_layers(model), x) > 4 * found
    middle = closed_form(16, 3137, 576)  # 16 x 224 px, batch 16
    assert middle < 0.5e9
    assert 32 * middle < 8 * 2**30


def gradients(model, x):
    out = model(x)
    return [out, *torch.autograd.grad(out.square().sum(), [p for p in model.parameters() if p.requires_grad])]


def masked(module, args):
    args[0].data[:, ::2] = 0  # seen by nobody but the mixer


def test_what_a_hook_does_to_the_tokens_is_in_the_gradients():
    """The mixer then must not find its input again from what the norm gave."""
    model = fused()
    twin = by_layers(model)
    for each in (model, twin):
        each.layers[1].mixer.register_forward_pre_hook(masked)
        each.layers[2].mixer.register_forward_pre_hook(lambda module, args: (args[0] * 1.5, *args[1:]))
    for a, b in zip(gradients(model, clip()), gradients(twin, clip()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_another_forward_of_a_projection_is_heeded():
    model = fused()
    twin = by_layers(model)
    for each in (model, twin):
        layer = each.layers[1].mixer.in_proj
        layer.forward = lambda h, own=layer.forward: own(h) * 1.5
    assert error(model(clip()), twin(clip())) < 1e-5


@pytest.mark.parametrize("name", ["conv1d", "x_proj_b", "dt_proj"])
def test_layers_that_are_never_called_refuse_to_be_adapted(name):
    class Adapter(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

    for adapt in (
        lambda mixer, layer: setattr(mixer, name, Adapter(layer)),
        lambda mixer, layer: setattr(layer, "forward", lambda h: h),
        lambda mixer, layer: prune.l1_unstructured(layer, "weight", 0.5),
    ):
        model = fused()
        mixer = model.layers[0].mixer
        adapt(mixer, getattr(mixer, name))
        with pytest.raises(UnsupportedModelError, match=f"takes the weight of its {name} and never calls it"):
            model(clip())


def test_weights_of_several_dtypes():
    model = fused()
    for layer in model.layers:
        layer.mixer.in_proj.bfloat16()
    with torch.autocast("cpu", LOW):
        assert error(model(clip()), by_layers(model)(clip())) < 0.02


def test_blocks_of_another_class():
    class Wrapped(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, hidden, residual=None, use_checkpoint=False):
            return self.block(hidden, residual, use_checkpoint)

    model = fused()
    expected = model(clip())
    model.layers[2] = Wrapped(model.layers[2])
    assert error(model(clip()), expected) < 1e-5


class Kept(TorchDispatchMode):
    """Tensors that the mixers and scans inside it keep, one number a call."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function in (torch.ops.flexvideo.mixer.default, torch.ops.flexvideo.selective_scan.default):
            self.counts.append(len(out[1]))
        return out


def counts_of(function: Callable[[], object]) -> list[int]:
    with Kept() as kept:
        function()
    return kept.counts


def test_results_are_the_same_whoever_looks_on():
    model, x = fused(drop_path_rate=0.0), clip().repeat(2, 1, 1, 1, 1)
    expected = results(model, x)
    with Kept() as kept:
        found = results(model, x)
    assert kept.counts
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_nothing_is_kept_where_no_gradient_is_wanted():
    model = fused()
    assert counts_of(lambda: model(clip())) == [2, 2, 1, 1]  # the last block runs its directions apart
    with torch.no_grad():
        assert counts_of(lambda: model(clip())) == [0, 0, 0, 0]
    with torch.inference_mode():
        assert counts_of(lambda: model(clip())) == [0, 0, 0, 0]
    model.requires_grad_(False)
    assert counts_of(lambda: model(clip())) == [0, 0, 0, 0]
    assert counts_of(lambda: model(clip().requires_grad_())) == [2, 2, 1, 1]
    model.layers[1].mixer.D.requires_grad_(True)
    assert counts_of(lambda: model(clip())) == [0, 2, 1, 1]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputed_blocks_keep_the_second_time(use_reentrant):
    block, x = fused().layers[1], torch.randn(1, 9, 32, requires_grad=True)
    (expected,) = torch.autograd.grad(block(x, x)[0].square().sum(), x)
    with Kept() as kept:
        out = checkpoint(lambda x: block(x, x)[0], x, use_reentrant=use_reentrant)
        out.square().sum().backward()
    assert kept.counts == ([0, 2] if use_reentrant else [2, 2])
    assert error(x.grad, expected) < 1e-5


# --- with the rest of torch ---


def test_what_is_attached_to_a_layer_is_heeded():
    x, seen = clip(), []
    for name in ("norm", "mixer.in_proj", "mixer.out_proj"):
        model = fused()
        model.layers[0].get_submodule(name).register_forward_hook(lambda *_: seen.append(1))
        assert error(model(x), by_layers(model)(x)) < 1e-5
    assert len(seen) == 6
    model = fused()
    for layer in model.layers:
        layer.mixer.out_proj = nn.Sequential(layer.mixer.out_proj, nn.Tanh())
    assert error(model(x), by_layers(model)(x)) < 1e-5
    model = fused()
    nn.utils.parametrize.register_parametrization(model.layers[0].mixer.in_proj, "weight", nn.Tanh())
    nn.utils.parametrize.register_parametrization(model.layers[0].mixer.x_proj_b, "weight", nn.Tanh())
    assert error(model(x), by_layers(model)(x)) < 1e-5


def inputs_of_the_operators() -> tuple[list, list]:
    mixer = fused().layers[0].mixer
    weights = [mixer.in_proj.weight, mixer.out_proj.weight]
    weights += [weight for pair in mixer._paired(("", "_b")) for weight in pair]
    total, scale = torch.randn(2, 9, 32, requires_grad=True), torch.rand(32, requires_grad=True)
    hidden = torch.nn.functional.rms_norm(total, (32,), scale, 1e-5).detach().requires_grad_()
    added = torch.randn(2, 9, 32, dtype=LOW, requires_grad=True)
    return (
        [hidden, total, scale, weights, 1e-5, True, "chunked"],
        [added, total, scale, 1e-5, LOW, "chunked"],
    )


@pytest.mark.unchecked
def test_opcheck():
    mixer, add_norm = inputs_of_the_operators()
    torch.library.opcheck(torch.ops.flexvideo.mixer.default, mixer)
    torch.library.opcheck(torch.ops.flexvideo.mixer.default, [mixer[0], None, None, *mixer[3:]])
    plain = [x.detach() for x in mixer[:3]], [x.detach() for x in mixer[3]]
    torch.library.opcheck(torch.ops.flexvideo.mixer.default, [*plain[0], plain[1], 1e-5, False, "chunked"])
    torch.library.opcheck(torch.ops.flexvideo.add_norm.default, add_norm)
    torch.library.opcheck(torch.ops.flexvideo.add_norm.default, [add_norm[0], None, *add_norm[2:]])
    torch.library.opcheck(torch.ops.flexvideo.add_norm.default, [add_norm[1], *add_norm[1:4], LOW, "chunked"])


class Ignored(torch.autograd.Function):
    """Passes nothing back, as DDP does for an output that the loss has no use for."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_an_output_that_nothing_comes_of_has_no_gradient():
    x = torch.randn(1, 9, 32, requires_grad=True)
    mixer = fused().layers[0].mixer
    (x.sum() + Ignored.apply(mixer(x)).sum()).backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert all(weight.grad is None for weight in mixer.parameters())


def test_second_derivatives_are_refused():
    x = clip().requires_grad_()
    (first,) = torch.autograd.grad(fused()(x).square().sum(), x, create_graph=True)
    with pytest.raises(BackendError, match=r"'chunked' has first derivatives only.*'reference'"):
        first.sum().backward()


def test_flops_are_those_of_the_layers():
    counts = []
    for model in (fused(), by_layers(fused())):
        for layer in model.layers:  # both by operators that know their FLOPs
            layer.mixer.scan_backend = "chunked"
        if counts:
            for layer in model.layers:
                layer.mixer.in_proj.register_forward_hook(lambda *_: None)
        with FlopCounterMode(display=False) as counter:
            out = model.forward_features(clip().requires_grad_(), all_tokens=True)
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            out.sum().backward()
        counts.append((forward, counter.get_total_flops()))
    assert counts[0] == counts[1]


@pytest.fixture
def _cold() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.unchecked
@pytest.mark.usefixtures("_cold")
@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_whole(autocast):
    model = fused()
    compiled = torch.compile(model.forward_features, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", LOW, enabled=autocast):
        out, expected = compiled(clip(), all_tokens=True), model.forward_features(clip(), all_tokens=True)
    torch.testing.assert_close(out, expected)
    grads = [torch.autograd.grad(x.sum(), list(model.layers.parameters())) for x in (out, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
@pytest.mark.unchecked
@pytest.mark.usefixtures("_cold")
def test_blocks_as_one_graph_for_64_geometries():
    model = fv.make_flexible(fused(), policy="static-patch")
    plain, counter = copy.deepcopy(model), CompileCounter()
    for block in model.layers:
        block.compile(dynamic=True, backend=counter, fullgraph=True)
    for frames in (2, 3, 4, 6):
        for height in (2, 4, 5, 6):
            for width in (3, 4, 6, 7):
                x = clip(frames, 8 * height, 8 * width)
                torch.testing.assert_close(model(x), plain(x))
    assert counter.frame_count == 3  # the first block has no residual, and the last mixes one token


@pytest.mark.unchecked
@pytest.mark.parametrize("strict", [pytest.param(True, marks=pytest.mark.slow), False])
def test_exports(strict, tmp_path):
    model = fused()
    dynamic = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    x = clip().repeat(2, 1, 1, 1, 1)
    program = torch.export.export(model, (x,), dynamic_shapes=dynamic, strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(loaded(clip().repeat(3, 1, 1, 1, 1)), model(clip().repeat(3, 1, 1, 1, 1)))


@pytest.mark.unchecked
def test_exported_for_inference_says_so_in_a_backward_pass():
    model = fused()
    with torch.no_grad():
        program = torch.export.export(model, (clip(),)).module()
    assert counts_of(lambda: program(clip())) == [0, 0, 0, 0]
    torch.testing.assert_close(program(clip()), model(clip()))
    with pytest.raises(BackendError, match=r"exported for inference.*with gradients on, outside of"):
        program(clip()).sum().backward()


@pytest.mark.unchecked
@pytest.mark.usefixtures("_cold")
def test_compiled_for_inference_and_then_for_training():
    block, x = fused().layers[1], torch.randn(1, 9, 32)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, x), block(x, x))
    out = compiled(x, x)[0]
    grads = [torch.autograd.grad(y.sum(), list(block.mixer.parameters())) for y in (out, block(x, x)[0])]
    torch.testing.assert_close(*grads)


@pytest.mark.gpu
def test_peak_of_a_training_step_of_videomamba_m():
    model = fv.videomamba_middle(num_frames=16, num_classes=400).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters())
    x, labels = torch.randn(16, 3, 16, 224, 224, device="cuda"), torch.arange(16, device="cuda")
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", LOW):
            out = model(x)
        nn.functional.cross_entropy(out.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.cuda.max_memory_allocated() < 16 * 2**30


@pytest.mark.gpu
@pytest.mark.unchecked
@pytest.mark.usefixtures("_cold")
def test_inductor_on_a_gpu():
    model, x = build(depth=3, scan_backend="auto").cuda(), clip().cuda()
    compiled = torch.compile(model.forward_features, fullgraph=True)
    with torch.autocast("cuda", LOW):
        out, expected = compiled(x, all_tokens=True), model.forward_features(x, all_tokens=True)
    assert error(out, expected) < 0.02
    grads = [
        torch.autograd.grad(y.float().square().sum(), list(model.layers.parameters()))
        for y in (out, expected)
    ]
    assert all(error(a, b) < 0.03 for a, b in zip(*grads, strict=True))


def loss(model: nn.Module, size: tuple[int, int, int]) -> Tensor:
    return model(clip(*size)).square().mean()


def with_ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def with_fsdp(model: nn.Module) -> nn.Module:
    for block in model.layers:
        fully_shard(block)
    return fully_shard(model)


def _process(rank: int, wrap: Callable[[nn.Module], nn.Module], store: str) -> None:
    torch.set_num_threads(1)
    chunked.FUSED = mixing.fused("chunked")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = fv.make_flexible(fused(), policy="static-patch")
    alone = by_layers(model)
    (sum(loss(alone, size) for size in SIZES[:2]) / 2).backward()
    wrapped = wrap(model)
    loss(wrapped, SIZES[rank]).backward()
    for parameter, expected in zip(model.parameters(), alone.parameters(), strict=True):
        grad = parameter.grad
        grad = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        torch.testing.assert_close(grad, expected.grad, rtol=1e-4, atol=1e-6)
    dist.destroy_process_group()


@pytest.mark.parametrize("wrap", [with_ddp, pytest.param(with_fsdp, marks=pytest.mark.slow)])
def test_two_processes(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path):
    torch.multiprocessing.spawn(_process, (wrap, str(tmp_path / "store")), nprocs=2)
