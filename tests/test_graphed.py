"""Inference as CUDA graphs: what is refused, which graphs are kept, and on a GPU the numbers."""

import sys

import pytest
import torch
from small import SIZES, build, clip
from torch import Tensor, nn

import flexvideo as fv
from flexvideo.errors import BackendError, ConfigError, UnsupportedModelError
from flexvideo.graphed import Graphed, _Captured

gpu = pytest.mark.gpu


# --- without a GPU ---


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list:
    """On the CPU a `graph` is a list of one: the model run again on the clip that it was recorded with."""
    kinds = []

    def capture(self: Graphed, clip: Tensor, options: dict, low: torch.dtype | None) -> _Captured:
        kinds.append((tuple(clip.shape), *options.values()))
        still, output = clip.clone(), self.model(clip, **options)
        return _Captured(lambda: output.copy_(self.model(still, **options)), still, output, ())

    monkeypatch.setattr(Graphed, "_capture", capture)
    module = sys.modules["flexvideo.graphed"]  # the package has the function under this name
    monkeypatch.setattr(module, "_check", lambda model, clip: None)
    monkeypatch.setattr(module, "_check_model", lambda model: None)
    return kinds


def test_a_graph_for_each_kind_of_clip(recorded):
    model = fv.make_flexible(build(), policy="flex-all")
    fast = fv.graphed(model)
    for _ in range(2):
        for size, patch in ((SIZES[0], None), (SIZES[1], 8), (SIZES[1], 6), (SIZES[1], [6, 6])):
            with torch.no_grad():
                expected = model(clip(*size), patch=patch)
            assert torch.equal(fast(clip(*size), patch=patch), expected)
    assert recorded == [
        ((1, 3, 4, 32, 32),),
        ((1, 3, 3, 48, 48), 8),
        ((1, 3, 3, 48, 48), 6),
        ((1, 3, 3, 48, 48), [6, 6]),
    ]


def test_the_output_is_the_callers_own(recorded):
    fast = fv.graphed(build())
    first = fast(clip())
    copy = first.clone()
    assert not torch.equal(fast(clip() + 1), first)
    assert torch.equal(first, copy)


def test_the_kinds_used_last_are_kept(recorded):
    fast = fv.graphed(fv.make_flexible(build()), kinds=2)
    for frames in (4, 3, 4, 6, 4, 3):
        fast(clip(frames))
    assert [shape[2] for (shape,) in recorded] == [4, 3, 6, 3]


def test_weights_that_moved_are_recorded_again(recorded):
    model = build()
    fast = fv.graphed(model)
    with torch.no_grad():
        fast(clip())
        model.head.weight.mul_(2)
        assert torch.equal(fast(clip()), model(clip()))
        assert len(recorded) == 1
        model.load_state_dict({key: x.clone() for key, x in model.state_dict().items()}, assign=True)
        assert torch.equal(fast(clip()), model(clip()))
    assert len(recorded) == 2


def test_another_head_or_policy_is_recorded_again(recorded):
    model = build()
    fast = fv.graphed(model)
    changes = (
        lambda: setattr(model, "head", nn.Linear(32, 7)),
        lambda: fv.make_flexible(model, policy="static-patch"),
        lambda: fv.make_flexible(model, policy="static-tokens"),
        lambda: fv.make_flexible(model, rule="paper"),
        lambda: fv.restore(model),
    )
    for count, change in enumerate(changes, start=1):
        fast(clip())
        change()
        with torch.no_grad():
            assert torch.equal(fast(clip()), model(clip()))
        assert len(recorded) == 1 + count


class Outputs(nn.Module):
    def __init__(self, wrap) -> None:
        super().__init__()
        self.weight, self.wrap = nn.Parameter(torch.ones(1)), wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(x * self.weight)


def test_nested_outputs_and_others(recorded, monkeypatch):
    monkeypatch.setattr(
        Graphed, "_capture", lambda self, clip, *_: _Captured(lambda: None, clip, self.model(clip), ())
    )
    out = fv.graphed(Outputs(lambda x: {"a": (x, None, "b")}))(torch.ones(2))
    assert torch.equal(out["a"][0], torch.ones(2))
    assert out["a"][1:] == (None, "b")
    with pytest.raises(UnsupportedModelError, match=r"output holds \{tensor.*return tensors, or lists"):
        fv.graphed(Outputs(lambda x: {x}))(torch.ones(2))


@pytest.mark.unchecked
def test_not_a_model():
    with pytest.raises(UnsupportedModelError, match=r"Give a model, a torch\.nn\.Module; got 3\.$"):
        fv.graphed(3)


def test_refusals_without_a_gpu(monkeypatch):
    needs = "need a model on a CUDA device, and this VideoMamba is on cpu: "
    for there, remedy in ((True, r"move it with model\.cuda\(\), or call"), (False, "torch finds none here")):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        with pytest.raises(BackendError, match=needs + remedy):
            fv.graphed(build())
    with pytest.raises(ConfigError, match="kinds=0: at least one graph"):
        fv.graphed(build(), kinds=0)


# --- on a GPU ---


def error(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@gpu
def test_refusals_on_a_gpu():
    model = build().cuda()
    with pytest.raises(UnsupportedModelError, match=r"is in training mode: call model.eval\(\) first"):
        fv.graphed(model.train())
    fast = fv.graphed(model.eval())
    with pytest.raises(UnsupportedModelError, match=r"call it under torch.inference_mode\(\)"):
        fast(clip().cuda())
    with torch.inference_mode(), pytest.raises(BackendError, match="this one is on cpu"):
        fast(clip())
    model.train()
    with torch.inference_mode(), pytest.raises(UnsupportedModelError, match="in training mode"):
        fast(clip().cuda())


@gpu
@pytest.mark.parametrize("low", [None, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_many_geometries_on_a_gpu(low, mode):
    model = fv.make_flexible(build().cuda(), policy="flex-all")
    fast = fv.graphed(model, kinds=3)
    with mode(), torch.autocast("cuda", low or torch.bfloat16, enabled=low is not None):
        for _ in range(3):
            for size in SIZES:
                for patch in (None, 6):
                    x = clip(*size).cuda()
                    assert error(fast(x, patch=patch), model(x, patch=patch)) < (1e-2 if low else 1e-5)
                fv.products._CACHE.clear()  # as it does when it is full
                torch.full((2**22,), float("nan"), device="cuda")  # over memory that was freed


@gpu
def test_changed_and_moved_weights_on_a_gpu():
    model = build().cuda()
    fast, x = fv.graphed(model), clip().cuda()
    with torch.inference_mode():
        fast(x)
    for change in (
        lambda: model.load_state_dict(build(num_classes=5).state_dict()),
        lambda: model.cpu().cuda(),
        lambda: model.load_state_dict({k: 2 * v for k, v in model.state_dict().items()}, assign=True),
    ):
        change()
        with torch.inference_mode():
            assert error(fast(x), model(x)) < 1e-5


@gpu
def test_graphs_are_faster_at_batch_1():
    model = fv.videomamba_tiny(num_frames=8, num_classes=10).cuda().eval()
    fast, x = fv.graphed(model), torch.randn(1, 3, 8, 224, 224, device="cuda")

    def milliseconds(run) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(3):
            run(x)
        start.record()
        for _ in range(10):
            run(x)
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 10

    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        assert error(fast(x), model(x)) < 0.02
        assert milliseconds(fast) < milliseconds(model)
