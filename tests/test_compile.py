"""Flexible models under torch.compile and torch.export."""

import copy
import io
from collections.abc import Callable, Iterator

import pytest
import torch
from hosts import BASE, HOSTS, SIZES, VisionMamba, clip, ours, randomised
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import flexvideo as fv

pytestmark = pytest.mark.unchecked


@pytest.fixture(autouse=True)
def _cold() -> Iterator[None]:
    """No graph and no matrix is left from another test."""
    torch._dynamo.reset()
    fv.products._CACHE.clear()
    yield
    torch._dynamo.reset()


def make(host: str = "official", policy: str = "static-tokens") -> nn.Module:
    plain = ours(scan_backend="auto") if host == "ours" else VisionMamba()
    return fv.make_flexible(randomised(plain), policy=policy)


def gradients(model: nn.Module, output: Tensor) -> list[Tensor]:
    model.zero_grad()
    output.square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def schedule(count: int) -> list[tuple[int, int, int]]:
    """So many different geometries."""
    sizes = [(frames, 8 * h, 8 * w) for frames in (2, 3, 4, 6) for h in (2, 4, 5, 6) for w in (3, 4, 6, 7)]
    assert len(set(sizes)) >= count
    return sizes[:count]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("policy", ["static-tokens", "static-patch"])
@pytest.mark.parametrize("size", [BASE, SIZES[1]])
def test_fullgraph_at_one_geometry_with_a_cold_cache(
    host: str, policy: str, size: tuple[int, int, int]
) -> None:
    model = make(host, policy)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    output = compiled(clip(size))
    found = gradients(model, output)
    assert counter.frame_count == 1
    expected = model(clip(size))
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(found, gradients(model, expected))
    compiled(clip(size))
    assert counter.frame_count == 1
    assert model._flex.active.geometry is None


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
@pytest.mark.parametrize("host", HOSTS)
def test_blocks_as_one_graph_for_64_geometries(host: str) -> None:
    model = make(host, "static-patch")
    plain = copy.deepcopy(model)
    counter = CompileCounter()
    for block in model.layers:
        block.compile(dynamic=True, backend=counter, fullgraph=True)
    for size in schedule(64):
        output, expected = model(clip(size)), plain(clip(size))
        torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients(model, output), gradients(plain, expected))
    assert counter.frame_count == len(model.layers) == 2  # the first block has no residual


def test_whole_model_has_a_graph_for_each_geometry() -> None:
    model = make()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    sizes = [BASE, *SIZES]
    for size in sizes * 2:
        torch.testing.assert_close(compiled(clip(size)), model(clip(size)))
    assert counter.frame_count == len(sizes)


def test_patch_for_one_call() -> None:
    model = make(policy="flex-all")
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for patch in (4, 8, (4, 8), None):
        assert torch.allclose(compiled(clip(BASE), patch=patch), model(clip(BASE), patch=patch), atol=1e-6)


def test_made_flexible_after_it_was_compiled() -> None:
    plain = randomised(VisionMamba())
    compiled = torch.compile(plain, backend="eager")
    expected = compiled(clip(BASE))
    fv.make_flexible(plain)
    torch.testing.assert_close(compiled(clip(BASE)), expected)
    torch.testing.assert_close(compiled(clip(SIZES[0])), plain(clip(SIZES[0])))
    fv.restore(plain)
    torch.testing.assert_close(compiled(clip(BASE)), expected)


def test_exception_resets_the_geometry() -> None:
    model = make(policy="static-patch")
    compiled = torch.compile(model, backend="eager")
    compiled(clip(SIZES[0]))
    with pytest.raises(fv.errors.GeometryError, match="3 channels"):
        compiled(clip(SIZES[0])[:, :1])
    assert model._flex.active.geometry is None
    assert model.pos_embed is dict(model.named_parameters())["pos_embed"]


@pytest.mark.slow
def test_inductor() -> None:
    model = make()
    size = SIZES[0]
    expected = model(clip(size))
    wanted = gradients(model, expected)
    compiled = torch.compile(model, fullgraph=True)
    output = compiled(clip(size))
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients(model, output), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: fv.bake(m, frames=6, size=(48, 32))])
def test_copies_of_a_model_that_compiled_itself_use_their_own_weights(copied: Callable) -> None:
    model = make()
    x = clip(SIZES[0])
    expected = model(x)
    model.compile(backend="eager")
    torch.testing.assert_close(model(x), expected)
    twin = copied(model)
    assert twin._compiled_call_impl is None
    with torch.no_grad():
        model.pos_embed.zero_()
        model.head.weight.zero_()
    torch.testing.assert_close(twin(x), expected)
    buffer = io.BytesIO()
    torch.save(model, buffer)


def test_autocast_outside_a_compiled_model_keeps_gradients_exact() -> None:
    """The gradients of the resampled tensors, from gradients at the new sizes that hold bfloat16 exactly."""

    class Tables(VisionMamba):
        def forward(self, x: Tensor) -> Tensor:
            return self.pos_embed.sum(0), self.temporal_pos_embedding.sum(0)

    model = fv.make_flexible(randomised(Tables()), policy="static-patch")
    x = clip((6, 48, 40))

    def run(function: Callable) -> list[Tensor]:
        model.zero_grad()
        tables = function(x)
        weights = [torch.linspace(-1, 1, table.numel()).view_as(table) for table in tables]
        sum((table * weight).sum() for table, weight in zip(tables, weights, strict=True)).backward()
        return [*tables, model.pos_embed.grad.clone(), model.temporal_pos_embedding.grad.clone()]

    expected = run(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(compiled)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*certain side effects.*_flex.active")  # set, and set back
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("host", HOSTS)
def test_export_with_a_dynamic_batch(strict: bool, host: str) -> None:
    model = make(host, "static-patch").eval()
    x = clip(SIZES[0])
    program = torch.export.export(
        model, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1, max=64)}}, strict=strict
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for batch in (2, 5):
        torch.testing.assert_close(loaded(clip(SIZES[0], batch)), model(clip(SIZES[0], batch)))
    torch.testing.assert_close(model(clip(SIZES[1])), fv.bake(model, frames=2, size=(24, 40))(clip(SIZES[1])))


def test_export_without_gradients_under_autocast_keeps_the_resampling_exact() -> None:
    """There is no autograd function then that would turn autocast off by itself."""
    model, x = make(policy="static-patch").eval(), clip(SIZES[0])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        program = torch.export.export(model, (x,))
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(program.module()(x), expected)
    torch.testing.assert_close(compiled, expected)


def test_export_of_a_baked_model_holds_no_operator_of_ours() -> None:
    model = make().eval()
    program = torch.export.export(fv.bake(model, frames=6, size=(48, 32)), (clip(SIZES[0]),))
    assert "flexvideo" not in str(program.graph)
    torch.testing.assert_close(program.module()(clip(SIZES[0])), model(clip(SIZES[0])))


def test_export_of_a_dynamic_frame_count_says_no() -> None:
    with pytest.raises(torch._dynamo.exc.UserError, match="time"):
        torch.export.export(
            make(policy="static-patch"),
            (clip(SIZES[0]),),
            dynamic_shapes={"x": {2: torch.export.Dim("time")}},
        )


def test_meta_and_fake_tensors_leave_nothing_behind() -> None:
    model = make()
    with torch.device("meta"):
        hollow = fv.make_flexible(VisionMamba())
        assert hollow(torch.empty(2, 3, *SIZES[0])).shape == (2, 5)
    mode = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        assert model(mode.from_tensor(clip(SIZES[0]))).shape == (2, 5)
    assert model(clip(SIZES[0])).isfinite().all()
