"""Every family on its stand-in: what make_flexible promises, and which coordinate each token receives."""

import copy
import math
import pickle
from dataclasses import replace
from typing import Any

import hosts
import pytest
import torch
from cases import Case, Probe, centres
from cases_ssm import CASES, DIM, SIZE_FREE, resampled
from standins import video, vim
from torch import Tensor, nn

import flexvideo as fv
from flexvideo.errors import GeometryError, NothingToFlexError, PlanError, UnsupportedModelError
from flexvideo.families import FAMILIES
from flexvideo.plan import Plan

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that a model stores beside its modules, tensors by value, and its classes."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        found[f"{path}:class"] = type(module)
        own = {name: value for name, value in module.__dict__.items() if not name.startswith("_flex")}
        for name, value in (own | module._buffers | module._parameters).items():
            if not isinstance(value, dict | nn.Module) and not callable(value):
                found[f"{path}.{name}"] = value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
    return found


def assert_same_state(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, Tensor) else value == b[name]
        assert same, f"{name}: {value} became {b[name]}"
        assert type(value) is type(b[name]), name


@every_case
def test_recognised_by_one_family(case: Case) -> None:
    model = case.build()
    found = [name for name, family in FAMILIES.items() if family(model) is not None]
    assert found == [case.family]
    outer = nn.Sequential(nn.Sequential(model))
    assert fv.plan_for(outer).patch_embeds == tuple(f"0.0.{path}" for path in fv.plan_for(model).patch_embeds)
    assert fv.plan_for(model).unknown == ()


@every_case
def test_bitwise_identity_at_the_base(case: Case) -> None:
    model, x = case.build(), case.clip(case.base)
    expected, before = case.call(model, x), snapshot(model)
    keys = list(model.state_dict())
    for policy in fv.plan_for(model).policies:
        fv.make_flexible(model, policy=policy)
        assert torch.equal(case.call(model, x), expected)
        assert list(model.state_dict()) == keys
        fv.restore(model)
        assert_same_state(snapshot(model), before)
    assert torch.equal(case.call(model, x), expected)


@every_case
def test_gradients_at_original_shapes(case: Case) -> None:
    for size in case.sizes:
        model = case.build()
        plan = fv.plan_for(model)
        fv.make_flexible(model, policy="static-patch")
        output = case.call(model, case.clip(size))
        (output * torch.arange(output.numel()).view_as(output).cos()).sum().backward()
        # Tables of sines may be parameters that are not trained.
        parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        for name in set(plan.parameters) & parameters.keys():
            gradient = parameters[name].grad
            assert gradient.shape == parameters[name].shape, name
            assert gradient.isfinite().all(), name
            assert gradient.abs().max() > 0, name


def last_to_run(case: Case, model: nn.Module) -> nn.Module:
    ran: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: ran.append(module))
        for module in model.modules()
        if not list(module.children())
    ]
    case.call(model, case.clip(case.base))
    for hook in hooks:
        hook.remove()
    return ran[-1]


@every_case
def test_host_state_is_put_back(case: Case) -> None:
    model = fv.make_flexible(case.build(), policy="static-patch")
    before, x = snapshot(model), case.clip(case.sizes[0])
    expected = case.call(model, x)
    assert_same_state(snapshot(model), before)

    def fail(*_: object) -> None:
        raise RuntimeError("stop")

    hook = last_to_run(case, model).register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        case.call(model, x)
    hook.remove()
    assert_same_state(snapshot(model), before)
    assert torch.equal(case.call(model, x), expected)


@pytest.mark.filterwarnings("ignore:A state dict of the baked model lacks")
@every_case
def test_bake_and_pickle(case: Case) -> None:
    model = fv.make_flexible(case.build(), policy="static-patch")
    size = case.sizes[1]
    x = case.clip(size)
    expected = case.call(model, x)
    assert torch.equal(case.call(pickle.loads(pickle.dumps(model)), x), expected)
    baked = fv.bake(model, frames=size[0], size=size[1:])
    if "masking" not in case.name and "masked" not in case.name and "multimodal" not in case.name:
        assert torch.equal(case.call(baked, x), expected)
    assert type(baked) is type(case.make())


@every_case
def test_patch_for_one_call(case: Case) -> None:
    model = fv.make_flexible(case.build(), policy="static-patch")
    x = case.clip(case.sizes[0])
    expected = case.call(model, x)
    if case.patch is None:
        with pytest.raises(GeometryError, match="The patch of this model cannot change: it stays 4 x 4 px"):
            case.call(model, x, patch=8)
    else:
        assert not torch.equal(case.call(model, x, patch=case.patch).flatten()[:4], expected.flatten()[:4])
    assert torch.equal(case.call(model, x), expected)


def zeroed(model: nn.Module, probe: Probe) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name in ("clip_pos_embed", "clip_img_pos_embed"):
            if hasattr(model, name):
                getattr(model, name).zero_()
        probe.fill(model)
    return model


def own_coordinates(case: Case, geometry: fv.Geometry, axes: str) -> Tensor:
    """(t, row, column) of each token, as torch interpolates a ramp; 0 for an axis that no table holds."""
    base = fv.plan_for(case.build()).base
    lines = [
        resampled(old, new, mode) if axis in axes else torch.zeros(new)
        for axis, old, new, mode in (
            ("t", base.steps or 1, geometry.steps, "bilinear"),
            ("r", base.grid[0], geometry.grid[0], "bicubic"),
            ("c", base.grid[1], geometry.grid[1], "bicubic"),
        )
    ]
    assert all((line.diff() > -1e-9).all() for line in lines)
    grid = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)
    return grid.flatten(0, 2)


PROBES = [(case, probe) for case in CASES for probe in case.probes]


@pytest.mark.parametrize(("case", "probe"), PROBES, ids=[f"{case.name}-{probe.at}" for case, probe in PROBES])
@pytest.mark.parametrize("index", range(3))
def test_every_token_receives_its_own_coordinate(case: Case, probe: Probe, index: int) -> None:
    size = case.sizes[index]
    model = zeroed(case.build(), probe)
    fv.make_flexible(model, policy="static-patch")
    seen: list[Tensor] = []
    model.get_submodule(probe.at).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    case.call(model, case.clip(size))
    frames = size[0] if "t" in case.layout else 1
    geometry = fv.StaticPatch().geometry(fv.plan_for(model).base, frames, *size[1:])
    expected = own_coordinates(case, geometry, probe.axes)
    assert len(seen[0]) == 2
    for tokens in seen[0]:
        coordinates, cls = probe.read(tokens, geometry)
        torch.testing.assert_close(coordinates[:, :3], expected, rtol=1e-5, atol=1e-5)
        assert (coordinates[:, 3:] == 0).all()
        torch.testing.assert_close(cls[:, :4], probe.cls(geometry), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [(6, 4), (3, 8), (8, 8)])
@pytest.mark.parametrize("make", [lambda: vim.Vim(if_rope=True), vim.LocalVim])
def test_rotary_tables_are_those_of_a_model_built_for_that_grid(make: Any, grid: tuple[int, int]) -> None:
    model = fv.make_flexible(make(), policy="static-patch")
    seen = []
    model.rope.register_forward_hook(lambda rope, *_: seen.append((rope.freqs_cos, rope.freqs_sin)))
    model(torch.rand(1, 3, 8 * grid[0], 8 * grid[1]))
    half = DIM // 4
    freqs = (1 / 10000 ** (torch.arange(half) / half)).repeat_interleave(2)
    row, column = (torch.arange(count) / count * 4 for count in grid)
    angles = torch.cat(
        (
            (row[:, None] * freqs)[:, None].expand(-1, grid[1], -1),
            (column[:, None] * freqs)[None].expand(grid[0], -1, -1),
        ),
        dim=-1,
    ).flatten(0, 1)
    torch.testing.assert_close(seen[0][0], angles.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(seen[0][1], angles.sin(), rtol=0, atol=1e-6)
    if grid[0] == grid[1]:
        other = vim.Rotary(DIM // 2, pt_seq_len=4, ft_seq_len=grid[0])
        torch.testing.assert_close(seen[0][0], other.freqs_cos, rtol=0, atol=1e-6)


def test_rotary_with_an_odd_number_of_tokens() -> None:
    model = fv.make_flexible(vim.Vim(if_rope=True), policy="static-patch")
    with pytest.raises(GeometryError, match="cannot run a grid of 3 x 5: use an even number of rows or col"):
        model(torch.rand(1, 3, 24, 40))


def test_registers_are_those_of_a_model_built_for_that_grid() -> None:
    model = fv.make_flexible(vim.MambaReg(), policy="static-patch")
    plan = fv.plan_for(model)
    for rows, columns in ((4, 4), (6, 4), (3, 7), (2, 2)):
        at = fv.Geometry(1, 8 * rows, 8 * columns, (8, 8))
        order, places = vim.MambaReg.spread(rows * columns, 3)
        values = {state.name: state.value(at, order) for state in plan.state if "patch" not in state.name}
        assert torch.equal(values["token_idx"], order)
        assert torch.equal(values["cls_positions"], places)
    with pytest.raises(GeometryError, match="3 tokens cannot keep 3 register tokens apart: it takes 4"):
        model(torch.rand(1, 3, 8, 24))


def test_clips_that_are_not_square_where_the_host_needs_squares() -> None:
    case = next(case for case in CASES if case.name == "Mamba-ND")
    model = fv.make_flexible(case.build(), policy="static-patch")
    with pytest.raises(GeometryError, match="takes the number of rows for that of columns, and cannot run a"):
        model(case.clip((6, 32, 48)))


class TestPatchesOfOtherKinds:
    def test_overlapping(self) -> None:
        model = vim.Vim(patch_size=16, stride=8)
        base = fv.plan_for(model).base
        assert (base.grid, base.window) == ((3, 3), (16, 16))
        assert "patch 8 x 8 in windows of 16 x 16, grid 3 x 3" in str(fv.plan_for(model))
        grids = []
        model.patch_embed.proj.register_forward_hook(lambda *args: grids.append(tuple(args[2].shape[-2:])))
        fv.make_flexible(model)
        for side in (24, 32, 37, 40, 64):
            model(torch.rand(1, 3, side, side))
        assert set(grids) == {(3, 3)}
        model(torch.rand(1, 3, 32, 32), patch=(4, 2))
        assert grids[-1] == (3, 3)
        fv.make_flexible(model, policy="flex-all")
        model(torch.rand(1, 3, 32, 48), patch=4)
        assert grids[-1] == (7, 11)

    def test_stem(self) -> None:
        case = next(case for case in CASES if case.name == "PlainMamba")
        model = fv.make_flexible(case.build())
        shapes = []
        model.patch_embed.register_forward_hook(lambda *args: shapes.append(args[2][1]))
        for side in (64, 65, 80, 90, 110, 127):
            model(torch.rand(1, 3, side, side + 16))
        assert set(shapes) == {(4, 4)}
        with pytest.raises(GeometryError, match=r"A patch of 15 px is no multiple of 2.* 14 or 16 px"):
            model(torch.rand(1, 3, 60, 60), patch=15)

    def test_padded_remainder(self) -> None:
        model = fv.make_flexible(vim.LocalVim())
        counts = []
        model.layers[0].register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[1]))
        for side in (32, 33, 39, 47):  # of which 4 patches leave up to 3 px, which the host would pad
            model(torch.rand(1, 3, side, side))
        assert set(counts) == {16}

    def test_base_that_its_own_stem_or_padding_does_not_fit(self) -> None:
        for options in ({"stem": 3}, {"pads": True}):
            with pytest.raises(GeometryError, match="must be built for multiples of what it does it by"):
                fv.Base(None, 32, 32, (5, 5), **options)

    def test_policy_that_does_not_apply(self) -> None:
        plain = next(case for case in CASES if case.name == "VMamba, patch v2").build()
        for policy in (None, "flexivit", "flex-all", "temporal"):
            with pytest.raises(PlanError, match=r"does not apply to VMamba \(VSSM\), which lacks"):
                fv.make_flexible(plain, policy=policy)
        model = fv.make_flexible(plain, policy="static-patch")
        with pytest.raises(PlanError, match="lacks a patch that can change: choose from 'static-patch'"):
            fv.make_flexible(model, policy="flex-all")
        assert fv.flex_config(model)["policy"]["name"] == "static-patch"


@pytest.mark.parametrize("name", SIZE_FREE)
def test_nothing_to_flex(name: str) -> None:
    model = SIZE_FREE[name]()
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(NothingToFlexError, match=r"has nothing to make flexible, call it as it is: .* takes"):
        fv.make_flexible(model)
    assert [type(module) for module in model.modules()] == kinds
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 32)).shape[0] == 1  # which is true


def test_patch_of_a_model_without_tables() -> None:
    model = SIZE_FREE["VMamba without a table"]()
    plan = Plan(base=fv.Base(None, 32, 32, (4, 4)), patch_embeds=("patch_embed.0",), layout="bchw")
    fv.make_flexible(model, plan=plan)
    shapes = []
    model.layers[0].register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape[1:3])))
    model(torch.rand(1, 3, 64, 48))
    assert shapes == [(8, 8)]


class TestSizesThatNobodySettled:
    @every_case
    def test_refused(self, case: Case) -> None:
        model = case.build()
        model.seq_len = math.prod(fv.plan_for(model).base.grid)
        plan = fv.plan_for(model)
        assert "seq_len = " in plan.unknown[0]
        assert "to be settled: " in str(plan)
        with pytest.raises(UnsupportedModelError, match=r"stores sizes that it was built for.*seq_len = \d+"):
            fv.make_flexible(model, policy="static-patch")

    def test_table_of_time_beside_a_known_one(self) -> None:
        model = video.TimeMamba()
        model.blocks[1].time_bias = nn.Parameter(torch.zeros(1, 6, DIM))
        assert fv.plan_for(model).unknown == ("blocks.1.time_bias of shape (1, 6, 12)",)
        model.temporal_embed = nn.Parameter(torch.zeros(1, 6, DIM))  # another model, with another order
        with pytest.raises(PlanError):
            fv.plan_for(model)

    def test_sizes_inside_a_configuration(self) -> None:
        model = hosts.VisionMamba()
        model.settings = hosts.Config(image_size=32, num_frames=4)
        model.options = {"num_frames": 4, "depth": 4, "crop_size": (32, 32)}
        assert fv.plan_for(model).unknown == (
            "settings.image_size = 32",
            "settings.num_frames = 4",
            "options.num_frames = 4",
            "options.crop_size = (32, 32)",
        )
        plan = replace(fv.plan_for(model), fixed=("settings", "options"))
        fv.make_flexible(model, plan=plan)

    @pytest.mark.parametrize("frames", [8, 16, 64])
    def test_our_own_models_have_none(self, frames: int) -> None:
        for size in (224, 192):
            with torch.device("meta"):
                model = fv.videomamba_middle(num_frames=frames, img_size=size)
            assert fv.plan_for(model).unknown == ()

    def test_a_host_that_sets_it_to_something_else(self) -> None:
        model = vim.LocalVim()
        plan = fv.plan_for(model)
        states = tuple(
            fv.State(state.name, lambda geometry, stored: (9, 9)) if "multi_scan" in state.name else state
            for state in plan.state
        )
        fv.make_flexible(model, policy="static-patch", plan=replace(plan, state=states))
        with pytest.raises(UnsupportedModelError, match=r"MultiScan sets `token_size` to \(6, 4\), and the"):
            model(torch.rand(1, 3, 48, 32))


def test_centres() -> None:
    assert centres(2).tolist() == [0.25, 0.75]
