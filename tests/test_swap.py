"""Where resampled tensors end up: coordinates, strange layouts, wrapped hosts, baked models, bad clips."""

import copy
import inspect
import operator
import subprocess
import sys
import warnings

import pytest
import torch
from hosts import (
    BASE,
    HOSTS,
    SIZES,
    ImageMamba,
    Recogniser,
    Stranger,
    VisionMamba,
    clip,
    randomised,
    stranger_plan,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import flexvideo as fv
from flexvideo.errors import GeometryError, UnsupportedModelError
from flexvideo.hosts import flexible_class
from flexvideo.layers import FlexibleConv3d

POLICIES = ("temporal", "static-patch", "static-tokens", "flexivit", "flex-all")


def centres(count: int) -> Tensor:
    """Where the middle of each cell lies on an axis from 0 to 1."""
    return (torch.arange(count) + 0.5) / count


def ramps(*axes: Tensor) -> Tensor:
    """(t, row, column) of every token of a clip, in order."""
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def assert_own_coordinate(
    tokens: Tensor, base: tuple[int, ...], geometry: fv.Geometry, *, antialias: bool
) -> None:
    """Every token has the coordinate that torch interpolates for its place, axis by axis."""
    modes = ("bilinear", "bicubic", "bicubic")
    axes = []
    for old, new, mode in zip(base, (geometry.steps, *geometry.grid), modes, strict=True):
        line = centres(old).double().expand(1, 1, 2, -1)
        resized = nn.functional.interpolate(line, (2, new), mode=mode, antialias=antialias)[0, 0, 0]
        assert (resized - centres(new)).abs().max() <= 0.5 / min(old, new)
        assert (resized.diff() > -1e-12).all()
        axes.append(resized.float())
    torch.testing.assert_close(tokens, ramps(*axes), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["auto", "paper"])
@pytest.mark.parametrize("size", [(8, 96, 64), (6, 48, 128), (16, 72, 104)])
def test_every_token_receives_its_own_coordinate(size: tuple[int, int, int], rule: str) -> None:
    model = VisionMamba(img_size=64, num_frames=8)
    with torch.no_grad():
        for parameter in (model.patch_embed.proj.weight, model.patch_embed.proj.bias, model.cls_token):
            parameter.zero_()
        space, time = ramps(torch.zeros(1), centres(8), centres(8)), centres(8)
        model.pos_embed.zero_()
        model.pos_embed[0, 1:, 1:3] = space[:, 1:]
        model.pos_embed[0, 0] = 7
        model.temporal_pos_embedding.zero_()
        model.temporal_pos_embedding[0, :, 0] = time
    fv.make_flexible(model, policy="static-patch", rule=rule)
    seen = []
    model.layers[0].register_forward_hook(lambda _, args, output: seen.append(args[0]))
    model(clip(size))
    geometry = fv.Geometry(*size, patch=(8, 8))
    for tokens in seen[0]:
        assert (tokens[0] == 7).all()  # the class token's row, untouched, and no temporal embedding
        assert_own_coordinate(tokens[1:, :3], (8, 8, 8), geometry, antialias=rule == "auto")
        assert (tokens[1:, 3:] == 0).all()


@pytest.mark.parametrize("class_row", ["first", "middle", "last"])
@pytest.mark.parametrize("table", ["frame_table", "joint_table", "image_table", "fixed_table"])
@pytest.mark.parametrize("size", [(8, 48, 32), (3, 24, 56), (6, 64, 40)])
def test_every_layout_of_a_table(table: str, class_row: str, size: tuple[int, int, int]) -> None:
    model = Stranger(class_row=class_row)
    at = {"first": 0, "middle": 8, "last": 16}[class_row]
    with torch.no_grad():
        tensors = {name: getattr(model, name) for name in ("frame_table", "image_table", "fixed_table")}
        for parameter in [*model.parameters(), model.buffer_table, model.fixed_table]:
            parameter.zero_()
        space = ramps(torch.zeros(1), centres(4), centres(4))[:, 1:]
        if table == "joint_table":
            model.joint_table[0, :, :3] = ramps(*[centres(4)] * 3)
        elif table == "frame_table":
            tensors[table][0, :, 1:3] = torch.cat((space[:at], torch.full((1, 2), 7.0), space[at:]))
        elif table == "image_table":
            tensors[table][0, 1:3] = space.T.unflatten(1, (4, 4))
        else:
            tensors[table][:, 1:3] = space
        model.buffer_table[:, 0] = 0 if table == "joint_table" else centres(4)
    fv.make_flexible(model, policy="static-patch", plan=stranger_plan(class_row=class_row))
    seen = []
    model.blocks[0].register_forward_hook(lambda _, args, output: seen.append(args[0]))
    model(clip(size).transpose(1, 2))
    geometry = fv.Geometry(*size, patch=(8, 8))
    count = geometry.tokens // geometry.steps
    frames = seen[0][0].unflatten(0, (geometry.steps, count + 1))
    row = {"first": 0, "middle": count // 2, "last": count}[class_row]
    cls, tokens = frames[:, row], torch.cat((frames[:, :row], frames[:, row + 1 :]), dim=1)
    assert (cls[:, 1:3] == (7 if table == "frame_table" else 0)).all()
    assert_own_coordinate(tokens[..., :3].flatten(0, 1), (4, 4, 4), geometry, antialias=True)


@pytest.mark.parametrize("order", ["chw", "hwc"])
@pytest.mark.parametrize("rule", ["paper", "area", "pi", "adjoint", "auto"])
def test_linear_patch_embedding_equals_a_convolution(order: str, rule: str) -> None:
    model = Stranger(order=order)
    plan = stranger_plan(order)
    conv = nn.Conv2d(3, 12, 8, stride=8)
    with torch.no_grad():
        weight = conv.weight if order == "chw" else conv.weight.permute(0, 2, 3, 1)
        model.stem.weight.copy_(weight.flatten(1))
        model.stem.bias.copy_(conv.bias)
    fv.make_flexible(model, policy="flex-all", rule=rule, plan=plan)
    seen = []
    model.stem.register_forward_hook(lambda _, args, output: seen.append(output))
    x = clip((2, 24, 36)).transpose(1, 2)
    model(x, patch=6)
    kernel = fv.resample.resample_kernel(conv.weight, (6, 6), fv.resample.Rule.of(rule))
    expected = nn.functional.conv2d(x.flatten(0, 1), kernel, conv.bias, stride=6).unflatten(0, (2, 2))
    torch.testing.assert_close(seen[0], expected.permute(0, 1, 3, 4, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_stranger_trains_bakes_and_restores(size: tuple[int, int, int]) -> None:
    plain = Stranger()
    x, base = clip(size).transpose(1, 2), clip(BASE).transpose(1, 2)
    expected, kinds = plain(base), [type(module) for module in plain.modules()]
    model = fv.make_flexible(plain, policy="static-patch", plan=stranger_plan())
    assert torch.equal(model(base), expected)
    output = model(x)
    output.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    assert model.config.num_frames == 4
    assert model.blocks[0].steps == 4
    with pytest.warns(UserWarning, match=r"state dict of the baked model lacks \w+, .* save"):
        baked = fv.bake(model, frames=size[0], size=size[1:])
    assert torch.equal(baked(x), output)
    assert [type(module) for module in baked.modules()] == kinds
    assert baked.config.num_frames == baked.blocks[1].steps == size[0]
    assert torch.equal(copy.deepcopy(model)(x), output)
    fv.restore(model)
    assert [type(module) for module in plain.modules()] == kinds
    assert torch.equal(plain(base), expected)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # inner reentrant, as in torch
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_a_part_that_follows_and_the_whole(reentrant: bool) -> None:
    model = fv.make_flexible(Stranger(), policy="static-patch", plan=stranger_plan())
    clips = [clip(size).transpose(1, 2).requires_grad_() for size in SIZES]

    def gradients() -> list[Tensor]:
        model.zero_grad()
        sum(model(x).square().mean() for x in clips).backward()  # one backward pass for three geometries
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    for block in model.blocks:
        block.forward = lambda x, forward=block.forward: checkpoint(forward, x, use_reentrant=reentrant)
    torch.testing.assert_close(gradients(), expected)
    assert model.blocks[0].steps == 4
    model.forward = lambda x, forward=model.forward: checkpoint(forward, x, use_reentrant=reentrant)
    torch.testing.assert_close(gradients(), expected)


def test_checkpointing_a_part_called_outside_of_any_forward_is_an_error() -> None:
    model = fv.make_flexible(Stranger(), policy="static-patch", plan=stranger_plan())
    block = model.blocks[0]
    tokens = torch.rand(1, 4 * 17, 12, requires_grad=True)
    output = checkpoint(lambda x: block(x).square(), tokens, use_reentrant=False)
    with pytest.raises(
        GeometryError, match="is read in a backward pass that cannot tell by which clip: acti"
    ):
        output.sum().backward()


@pytest.mark.parametrize("size", [(48, 32), (24, 40)])
def test_image_host_whose_patch_embedding_asserts(size: tuple[int, int]) -> None:
    plain = randomised(ImageMamba())
    base = clip(BASE)[:, :, 0]
    expected = plain(base)
    model = fv.make_flexible(plain, policy="static-patch")
    assert torch.equal(model(base), expected)
    x = clip((1, *size))[:, :, 0]
    output = model(x)
    assert torch.equal(fv.bake(model, frames=1, size=size)(x), output)
    with pytest.raises(AssertionError):
        fv.restore(model)(x)
    fv.make_flexible(model, policy="static-tokens")
    assert model(x).shape == (2, 5)
    assert model(clip((1, 39, 50))[:, :, 0]).shape == (2, 5)  # resized inside: an image has no time axis


def test_tubelets() -> None:
    plain = randomised(VisionMamba(kernel_size=2))
    expected = plain(clip(BASE))
    model = fv.make_flexible(plain)
    assert torch.equal(model(clip(BASE)), expected)
    x = clip((6, 48, 32))
    assert torch.equal(fv.bake(model, frames=6, size=(48, 32))(x), model(x))
    with pytest.raises(GeometryError, match="5 frames cannot be cut into tubelets of 2 frames: use 4 or 6"):
        model(clip((5, 32, 32)))


class TestModelAroundAModel:
    def test_patch_reaches_the_model_inside(self) -> None:
        outer = Recogniser(randomised(VisionMamba()))
        expected = outer(clip(BASE))
        model = fv.make_flexible(outer, policy="flex-all")
        assert torch.equal(model(clip(BASE)), expected)
        x = clip((4, 48, 48))
        assert torch.equal(model(x), model.backbone(x / 2) * model.scale)
        assert torch.equal(model(x, patch=12), model.backbone(x / 2, patch=12) * model.scale)
        assert not torch.equal(model(x, patch=12), model(x))
        assert "backbone.pos_embed" in fv.plan_for(model).parameters

    def test_whole_or_part(self) -> None:
        outer = Recogniser(randomised(VisionMamba()))
        model = fv.make_flexible(outer)
        x = clip((4, 48, 48))
        assert torch.equal(fv.bake(model, frames=4, size=48)(x), model(x))
        with pytest.raises(UnsupportedModelError, match="is a part of the model that was made flexible"):
            fv.restore(model.backbone)
        fv.make_flexible(model.backbone, policy="flex-all")
        assert fv.flex_config(model)["policy"]["name"] == "flex-all"
        assert type(fv.restore(model)) is Recogniser
        assert type(outer.backbone) is VisionMamba

    def test_made_flexible_before_it_was_put_inside(self) -> None:
        outer = Recogniser(fv.make_flexible(VisionMamba()))
        fv.make_flexible(outer, rule="pi")
        assert type(outer) is Recogniser
        assert fv.flex_config(outer)["rule"]["kernel"] == "pi"
        fv.restore(outer)
        assert type(outer.backbone) is VisionMamba

    def test_a_part_without_its_tables(self) -> None:
        for outer, path in (
            (VisionMamba(), "patch_embed"),
            (Recogniser(VisionMamba()), "backbone.patch_embed"),
        ):
            fv.make_flexible(outer.get_submodule(path))
            message = (
                rf"`{path}` of {type(outer).__name__} was made flexible by itself, and (backbone\.)?pos_em"
            )
            with pytest.raises(UnsupportedModelError, match=message + ".*: restore.model. first, then make"):
                fv.make_flexible(outer, policy="static-patch")
            assert fv.flex_config(outer)["policy"]["name"] == "static-tokens"
            assert fv.make_flexible(fv.restore(outer))(clip((8, 48, 48))).shape == (2, 5)

    def test_two_of_them(self) -> None:
        both = nn.ModuleList([fv.make_flexible(VisionMamba()), fv.make_flexible(VisionMamba())])
        with pytest.raises(
            UnsupportedModelError, match="ModuleList holds 2 flexible models: call this on each"
        ):
            fv.restore(both)


class TestOtherClipInsideAnEntryPoint:
    """A host that runs itself at two scales."""

    class TwoScales(VisionMamba):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.forward_features(x) + self.forward_features(x[..., ::2, ::2]))

    def test_each_call_has_its_own_geometry(self) -> None:
        model = randomised(self.TwoScales())
        fv.make_flexible(model, policy="static-patch")
        x = clip((4, 64, 48))
        parts = model.forward_features(x) + model.forward_features(x[..., ::2, ::2])
        assert torch.equal(model(x), model.head(parts))
        parts = model.forward_features(x, patch=4) + model.forward_features(x[..., ::2, ::2], patch=4)
        assert torch.equal(model(x, patch=4), model.head(parts))


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [*SIZES, BASE])
def test_bake(host: str, policy: str, size: tuple[int, int, int]) -> None:
    frames, height, width = size
    model = fv.make_flexible(randomised(HOSTS[host]()), policy=policy).eval()
    base = fv.plan_for(model).base
    geometry = fv.policy_of(policy).geometry(base, frames, height, width)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        baked = fv.bake(model, frames=frames, size=(height, width))
    seen = fv.resample.resize_clip(clip(size), (geometry.height, geometry.width))
    assert torch.equal(baked(seen), model(clip(size)))
    assert type(baked).__name__ in ("VisionMamba", "VideoMamba")
    assert not baked.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all("_flex" not in name for module in baked.modules() for name in module.__dict__)
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in baked.parameters())
    for a, b in zip(baked.parameters(), model.parameters(), strict=True):
        assert a.data_ptr() != b.data_ptr()


class Beside(nn.Module):
    """Reaches a part of the model by another, shorter path too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.proj, self.inside = model.patch_embed.proj, model

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x)


HOLDERS = {
    "sequence": nn.Sequential,
    "average": lambda model: torch.optim.swa_utils.AveragedModel(model).eval(),
    "holder of a holder": lambda model: nn.Sequential(nn.Identity(), Recogniser(model)),
    "data parallel inside": lambda model: nn.Sequential(nn.DataParallel(model)),
    "beside a part of it": Beside,
}


@pytest.mark.parametrize("what", HOLDERS)
def test_bake_of_what_holds_a_flexible_model(what: str) -> None:
    model = HOLDERS[what](fv.make_flexible(randomised(VisionMamba()).eval()))
    x = clip((6, 48, 32))
    expected = model(x)
    baked = fv.bake(model, frames=6, size=(48, 32))
    assert type(baked) is type(model)
    assert torch.equal(baked(x), expected)
    assert all("_flex" not in vars(module) for module in baked.modules())
    assert torch.equal(model(x), expected)


@pytest.mark.unchecked
def test_undoing_says_which_model_to_give() -> None:
    model = fv.make_flexible(randomised(VisionMamba()).eval())
    wrapped = {".module": nn.DataParallel(model), "._orig_mod": torch.compile(model, backend="eager")}
    for name, wrapper in wrapped.items():
        for undo in (fv.restore, lambda given: fv.bake(given, frames=4, size=48)):
            with pytest.raises(UnsupportedModelError, match=rf"give the model inside \(`{name}`\)\.$"):
                undo(wrapper)
        inside = operator.attrgetter(name[1:])(wrapper)
        assert type(fv.bake(inside, frames=4, size=48)) is VisionMamba


def test_baked_state_loads_into_a_model_built_for_that_geometry() -> None:
    model = fv.make_flexible(randomised(VisionMamba()), policy="static-tokens")
    baked = fv.bake(model, frames=6, size=64)
    fresh = VisionMamba(img_size=64, patch_size=16, num_frames=6)
    fresh.load_state_dict(baked.state_dict(), strict=True)
    x = clip((6, 64, 64))
    assert torch.equal(fresh(x), model(x))
    for a, b in ((fresh.patch_embed, baked.patch_embed), (fresh.patch_embed.proj, baked.patch_embed.proj)):
        assert {k: v for k, v in a.__dict__.items() if isinstance(v, int | tuple)} == {
            k: v for k, v in b.__dict__.items() if isinstance(v, int | tuple)
        }
    ours = fv.make_flexible(randomised(HOSTS["ours"]()), policy="static-patch")
    baked = fv.bake(ours, frames=2, size=(24, 40))
    fresh = fv.VideoMamba(**baked.config)
    fresh.load_state_dict(baked.state_dict(), strict=True)
    assert fresh.config == baked.config
    assert torch.equal(fresh(clip((2, 24, 40))), ours(clip((2, 24, 40))))
    fresh(clip((2, 24, 40))).sum().backward()


def test_bake_says_which_clip_the_model_takes() -> None:
    model = fv.make_flexible(VisionMamba(img_size=112, patch_size=8))
    with pytest.warns(
        UserWarning, match="takes clips of 4 frames of 98 x 98 px: at 96 x 96 px the policy 'st"
    ):
        baked = fv.bake(model, frames=4, size=96)
    x = clip((4, 96, 96))
    assert torch.equal(baked(fv.resample.resize_clip(x, (98, 98))), model(x))
    assert fv.bake(model, frames=4, size=98, patch=7).patch_embed.img_size == (98, 98)


@pytest.mark.unchecked
@pytest.mark.parametrize("frames", [2.5, True, "8"])
def test_bake_of_no_whole_number_of_frames(frames: object) -> None:
    with pytest.raises(GeometryError, match=f"`frames` must be a whole number, got {frames!r}"):
        fv.bake(fv.make_flexible(VisionMamba()), frames=frames, size=32)


def test_warning_of_bake_points_at_its_caller() -> None:
    code = """
import warnings, flexvideo as fv
model = fv.make_flexible(fv.VideoMamba(img_size=56, patch_size=4, depth=1, embed_dim=8, num_frames=2))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    fv.bake(model, frames=2, size=24)  # in line 6
print([(warning.filename, warning.lineno) for warning in caught])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[('<string>', 6)]\n"


def test_frozen_parameters_stay_frozen() -> None:
    model = fv.make_flexible(VisionMamba(), policy="flex-all")
    model.pos_embed.requires_grad_(False)
    baked = fv.bake(model, frames=4, size=48, patch=8)
    assert not baked.pos_embed.requires_grad
    model(clip((4, 64, 64))).sum().backward()
    assert model.pos_embed.grad is None


def test_prewarm_builds_what_the_policy_draws() -> None:
    model = fv.make_flexible(VisionMamba(), policy=fv.FlexAll(frames=(2, 6), sizes=(48, (24, 96))))
    cache = fv.products._CACHE
    cache.clear()
    fv.prewarm(model)
    built = set(cache)
    assert built
    for spec in model._flex.policy.specs(fv.plan_for(model).base):
        model(clip((spec.frames, spec.height, spec.width)), patch=spec.patch)
    assert set(cache) == built
    fv.prewarm(model, [fv.ClipSpec(3, 20, 20, (8, 8))])
    after = set(cache)
    model(clip((3, 20, 20)), patch=8)
    assert set(cache) == after > built


def test_not_flexible() -> None:
    model = VisionMamba()
    for call in (fv.restore, fv.flex_config, fv.prewarm):
        with pytest.raises(UnsupportedModelError, match=r"VisionMamba is not flexible: call make_flexible\("):
            call(model)
    with pytest.raises(UnsupportedModelError, match="VisionMamba is not flexible"):
        fv.bake(model, frames=4, size=32)


BAD_CLIPS = {
    "one channel": (
        torch.rand(1, 1, 4, 32, 32),
        r"with 3 channels, got shape \(1, 1, 4, 32, 32\), which has 1\. Grey frames in colour are clip\."
        r"expand\(-1, 3, -1, -1, -1\)\.$",
    ),
    "four channels": (
        torch.rand(1, 4, 4, 32, 32),
        r"which has 4\. Without the fourth, such as the alpha of RGBA, it is clip\[:, :3\]\.$",
    ),
    "two channels": (torch.rand(1, 2, 4, 32, 32), r"which has 2\.$"),
    "channels after time": (torch.rand(1, 4, 3, 32, 32), "For btchw give a plan with layout='btchw'"),
    "four dimensions": (
        torch.rand(3, 4, 32, 32),
        r"takes clips as \(batch, channels, frames, height, width\), got shape \(3, 4, 32, 32\)\. "
        r"One clip is a batch of one: clip\[None\]\.$",
    ),
    "three dimensions": (torch.rand(3, 32, 32), r"got shape \(3, 32, 32\)\.$"),
    "no tensor": ([1, 2], "height, width\\), got list"),
    "zero frames": (
        torch.rand(1, 3, 0, 32, 32),
        "at least one frame of 1 x 1 px, got 0 frames of 32 x 32 px",
    ),
    "smaller than the grid": (
        torch.rand(1, 3, 4, 3, 32),
        "side of 3 px is smaller than the model's grid of 4",
    ),
}


@pytest.mark.parametrize("what", BAD_CLIPS)
def test_bad_clips(what: str) -> None:
    model = fv.make_flexible(VisionMamba())
    x, message = BAD_CLIPS[what]
    with pytest.raises(GeometryError, match=message):
        model(x)
    assert model._flex.active.geometry is None
    assert model(clip(BASE)).shape == (2, 5)


@pytest.mark.parametrize("patch", [0, -8, (8, 0), (8, 8, 8)])
def test_bad_patch(patch: object) -> None:
    model = fv.make_flexible(VisionMamba())
    with pytest.raises(Exception, match="patch") as caught:
        model(clip(BASE), patch=patch)
    assert model._flex.active.geometry is None
    if not isinstance(patch, tuple) or len(patch) == 2:
        assert isinstance(caught.value, GeometryError)


@pytest.mark.unchecked
@pytest.mark.parametrize("call", [fv.make_flexible, fv.plan_for, fv.restore, fv.flex_config])
def test_not_a_model(call) -> None:
    with pytest.raises(UnsupportedModelError, match=r"Give a model, a torch.nn.Module; got None\.$"):
        call(None)
    with pytest.raises(
        UnsupportedModelError, match=r"got 'some/path' \(flexvideo.load reads a model from a p"
    ):
        call("some/path")


def test_missing_clip_is_pythons_own_error() -> None:
    model = fv.make_flexible(VisionMamba())
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        model(patch=4)


def test_signature_shows_patch() -> None:
    model = fv.make_flexible(VisionMamba())
    assert list(inspect.signature(model.forward).parameters) == ["x", "inference_params", "patch"]
    assert model.forward.__doc__ == VisionMamba.forward.__doc__


def test_names_of_classes() -> None:
    model = fv.make_flexible(VisionMamba())
    assert type(model).__name__ == "FlexibleVisionMamba"
    assert type(model) is flexible_class(
        VisionMamba, ("pos_embed", "temporal_pos_embedding"), ("forward", "forward_features"), ()
    )
    assert type(model.patch_embed.proj) is FlexibleConv3d


@pytest.mark.parametrize("host", HOSTS)
def test_the_class_of_a_flexible_model_builds_plain_ones(host: str) -> None:
    plain = HOSTS[host]()
    kind, options = type(plain), plain.config if host == "ours" else {}
    model = fv.make_flexible(plain)
    fresh = type(model)(**options)
    assert type(fresh) is kind
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(clip(BASE)), model(clip(BASE)))
    assert fv.make_flexible(fresh)(clip((2, 48, 40))).shape == (2, 5)
    assert inspect.signature(type(model)) == inspect.signature(kind)


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("call", [fv.make_flexible, fv.plan_for, fv.verify])
@pytest.mark.parametrize("scripted", [torch.jit.script, lambda conv: torch.jit.trace(conv, clip(BASE))])
def test_scripted_models(scripted, call) -> None:
    with pytest.raises(UnsupportedModelError, match=r"call make_flexible on the model before torch.jit.scri"):
        call(scripted(nn.Conv3d(3, 8, (1, 8, 8), (1, 8, 8))))


def test_a_table_parametrized_afterwards_is_refused() -> None:
    """At as many tokens as at the base its shape would fit, and its positions would be wrong."""
    model = fv.make_flexible(
        fv.VideoMamba(img_size=32, patch_size=8, depth=1, embed_dim=16, num_frames=4), policy="static-patch"
    )
    parametrize.register_parametrization(model, "cls_token", nn.Identity())
    model(torch.randn(1, 3, 4, 16, 64))  # which has no place, may be
    parametrize.register_parametrization(model, "pos_embed", nn.Identity())
    with pytest.raises(UnsupportedModelError, match="`pos_embed` was parametrized after make_flexible, and"):
        model(torch.randn(1, 3, 4, 16, 64))


@pytest.mark.parametrize("policy", ["static-tokens", "static-patch", "temporal"])
def test_a_part_replaced_afterwards_is_named(policy: str) -> None:
    """Whether it is resampled at that size or not."""
    parts = {
        "patch_embed.proj": nn.Conv3d(3, 16, (1, 4, 4), (1, 4, 4)),
        "pos_embed": nn.Parameter(torch.zeros(1, 10, 16)),
        "temporal_pos_embedding": nn.Parameter(torch.zeros(1, 8, 16)),
    }
    for name, part in parts.items():
        model = fv.VideoMamba(img_size=32, patch_size=8, depth=1, embed_dim=16, num_frames=4)
        fv.make_flexible(model, policy=policy)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, part)
        for size in ((4, 48, 48), (8, 32, 32)):
            with pytest.raises(
                UnsupportedModelError, match=rf"`{name}` .* restore\(model\), replace it, and"
            ):
                model(torch.zeros(1, 3, *size))


@pytest.mark.unchecked
def test_compiled_in_place_before() -> None:
    model = randomised(VisionMamba()).eval()
    expected = fv.make_flexible(copy.deepcopy(model), policy="static-patch")
    model.compile(backend="eager")
    model(clip(BASE))
    fv.make_flexible(model, policy="static-patch")
    for size in (BASE, (2, 48, 40)):
        torch.testing.assert_close(model(clip(size)), expected(clip(size)))
