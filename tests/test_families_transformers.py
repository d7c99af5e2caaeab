"""Video transformers from repositories, on stand-ins: the contract, coordinates, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import test_families_ssm as contract
import torch
from cases import Case, Probe, joint_table, marks, space_table, time_table
from cases_packages import fill
from cases_ssm import times
from cases_transformers import BASE, CASES, FRAME, GRID, SIZE_FREE, SIZES, SQUARES, TIME
from standins import attention, jepa
from standins.parts import DIM, FRAMES
from torch import Tensor, nn

import flexvideo as fv
from flexvideo.errors import GeometryError, NothingToFlexError, UnsupportedModelError

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.mark.filterwarnings("ignore:A state dict of the baked model lacks pos_embed")  # CAST's
@every_case
def test_contract(case: Case) -> None:
    contract.test_recognised_by_one_family(case)
    contract.test_bitwise_identity_at_the_base(case)
    contract.test_gradients_at_original_shapes(case)
    contract.test_host_state_is_put_back(case)
    contract.test_bake_and_pickle(case)
    contract.test_patch_for_one_call(case)


@every_case
def test_verify(case: Case) -> None:
    fv.verify(case.build(), size=48)


def coordinates(case: Case, tables: dict[str, Tensor], at: str, size: tuple[int, int, int]) -> Any:
    """What a module is called with for one clip, when tables hold coordinates and all else is zero."""
    plain = case.build()
    if case.name == "CAST":
        plain.pos_embed.zero_()
    model = contract.zeroed(plain, Probe(fill(**tables), at, "", lambda *_: (TIME, TIME)))
    fv.make_flexible(model, policy="static-patch")
    seen: list[Any] = []
    model.get_submodule(at).register_forward_pre_hook(lambda _, args: seen.append(args))
    model(case.clip(size, batch=1))
    geometry = fv.StaticPatch().geometry(fv.plan_for(model).base, *size)
    return seen[0], geometry


def assert_places(tokens: Tensor, case: Case, geometry: fv.Geometry, axes: str) -> None:
    """Tokens (steps, places, d) have their own coordinates."""
    expected = contract.own_coordinates(case, geometry, axes).unflatten(0, (geometry.steps, -1))
    torch.testing.assert_close(tokens[..., :3], expected, rtol=1e-5, atol=1e-5)
    assert (tokens[..., 3:] == 0).all()


def assert_class_tokens(tokens: Tensor, geometry: fv.Geometry, at: Tensor | None) -> None:
    torch.testing.assert_close(tokens[:, :4], marks(geometry.steps, at), rtol=1e-5, atol=1e-5)


def named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize("size", SIZES)
class TestCoordinates:
    def test_timesformer(self, size: tuple[int, int, int]) -> None:
        case = named("TimeSformer")
        tables = {"model__pos_embed": FRAME, "model__time_embed": TIME}
        (tokens, *_), geometry = coordinates(case, tables, "model.blocks.0", size)
        places = tokens[0, 1:].unflatten(0, (-1, geometry.steps)).transpose(0, 1)
        assert_places(places, case, geometry, "trc")
        torch.testing.assert_close(tokens[0, :1, :4], marks(1))

    def test_aim(self, size: tuple[int, int, int]) -> None:
        case = named("AIM")
        tables = {"positional_embedding": FRAME, "temporal_embedding": TIME}
        (tokens,), geometry = coordinates(case, tables, "ln_pre", size)
        assert_places(tokens[:, 1:], case, geometry, "trc")
        assert_class_tokens(tokens[:, 0], geometry, times(geometry))

    def test_evl(self, size: tuple[int, int, int]) -> None:
        case = named("EVL without cross attention")
        tables = {"backbone__pos_embed": FRAME, "decoder__temporal_pos_embed__0": TIME}
        (tokens,), geometry = coordinates(case, tables, "decoder.decoder_layers.0", size)
        frames = tokens[0, 1:].unflatten(0, (geometry.steps, -1))
        assert_places(frames[:, 1:], case, geometry, "trc")
        assert_class_tokens(frames[:, 0], geometry, times(geometry))

    def test_cast(self, size: tuple[int, int, int]) -> None:
        case = named("CAST")
        steps = FRAMES // 2
        tables = {"clip_positional_embedding": FRAME, "pos_embed": joint_table(steps, *GRID, DIM)}
        (space, time), geometry = coordinates(case, tables, "blocks.0", size)
        assert_places(space[1:].transpose(0, 1), case, geometry, "rc")
        assert_class_tokens(space[0], geometry, None)
        assert_places(time[0].unflatten(0, (geometry.steps, -1)), case, geometry, "trc")

    @pytest.mark.parametrize("kind", ["clip", "vmae"])
    def test_cast_within_blocks(self, size: tuple[int, int, int], kind: str) -> None:
        case = named("CAST")
        places = {f"blocks__1__s2t_cross__{kind}_space_pos": space_table(*GRID, DIM)}
        (both,), geometry = coordinates(case, places, "blocks.1.s2t_cross.mix", size)
        assert_places(both.chunk(2, dim=1)[kind == "vmae"], case, geometry, "rc")
        steps = {f"blocks__1__t2s_cross__{kind}_time_pos": time_table(FRAMES // 2, DIM)}
        (both,), geometry = coordinates(case, steps, "blocks.1.t2s_cross.mix", size)
        assert_places(both.chunk(2, dim=1)[kind == "clip"].transpose(0, 1), case, geometry, "t")


@pytest.mark.parametrize(
    ("index", "name"), [(i, f"V-JEPA 2, {kind}") for i in range(3) for kind in ("table", "images")]
)
def test_coordinates_of_vjepa2(index: int, name: str) -> None:
    case = named(name)
    (probe,), size = case.probes, case.sizes[index]
    model = fv.make_flexible(contract.zeroed(case.build(), probe), policy="static-patch")
    seen: list[Tensor] = []
    model.get_submodule(probe.at).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(case.clip(size, batch=1))
    geometry = fv.StaticPatch().geometry(fv.plan_for(model).base, *size)
    assert_places(seen[0][0].unflatten(0, (geometry.steps, -1)), case, geometry, probe.axes)


@pytest.mark.parametrize("size", SIZES)
def test_places_of_vjepa2_with_rotary_positions(size: tuple[int, int, int]) -> None:
    case, seen = named("V-JEPA 2"), []
    model = fv.make_flexible(case.build(), policy="static-patch")
    model.blocks[1].attn.places.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(case.clip(size))
    grid = (size[0] // 2, size[1] // 8, size[2] // 8)
    assert torch.equal(seen[0], torch.cartesian_prod(*map(torch.arange, grid)))


def test_vjepa2_that_takes_its_grid_for_a_square_one() -> None:
    model = fv.make_flexible(jepa.VJEPA2(nonsquare=False), policy="static-patch")
    seen: list[Tensor] = []
    model.blocks[0].attn.places.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.rand(1, 3, 8, 48, 48))
    assert torch.equal(seen[0], torch.cartesian_prod(*map(torch.arange, (4, 6, 6))))
    with pytest.raises(GeometryError, match="takes every grid for a square one, and cannot run 6 x 4"):
        model(torch.rand(1, 3, 8, 48, 32))


def test_slowfast_takes_pathways() -> None:
    model = jepa.SlowFastMViT()
    assert model([torch.rand(1, 3, *BASE)]).shape == (1, DIM)
    with pytest.raises(
        UnsupportedModelError, match=r"a list of pathways and no clip: use torchvision's MViT"
    ):
        fv.make_flexible(model)


@pytest.mark.parametrize("size", SQUARES)
@pytest.mark.parametrize("name", ["UniFormerV2", "UniFormerV2, every frame"])
def test_coordinates_of_uniformerv2(name: str, size: tuple[int, int, int]) -> None:
    case = named(name)
    (tokens,), geometry = coordinates(case, {"positional_embedding": FRAME}, "ln_pre", size)
    assert_places(tokens[:, 1:], case, geometry, "rc")
    assert_class_tokens(tokens[:, 0], geometry, None)


def test_uniformerv2_of_a_grid_that_is_not_square_but_has_a_root() -> None:
    model = fv.make_flexible(named("UniFormerV2").build(), policy="static-patch")
    with pytest.raises(
        GeometryError, match="takes every grid for a square one, and cannot run 2 x 8 tokens: use"
    ):
        model(torch.rand(1, 3, 6, 16, 64))


class TestEVL:
    def test_cross_attention_keeps_its_grid(self) -> None:
        plain = attention.EVL()
        x = torch.rand(1, 3, *BASE)
        expected = plain(x)
        model = fv.make_flexible(plain)  # static tokens
        assert torch.equal(model(x), expected)
        for size in ((8, 48, 32), (2, 64, 40), (5, 37, 37)):
            assert model(torch.rand(1, 3, *size)).isfinite().all()
        fv.make_flexible(model, policy="static-patch")
        with pytest.raises(
            GeometryError,
            match="has relative positions for a grid of 4 x 4 tokens only, and cannot run 6 x 4: use the",
        ):
            model(torch.rand(1, 3, 8, 48, 32))

    def test_backbone_in_a_list(self) -> None:
        model = attention.EVL(frozen=True)
        with pytest.raises(
            UnsupportedModelError, match=r"take it out first, `model.backbone = model.backbone\[0\]`"
        ):
            fv.make_flexible(model)
        x = torch.rand(1, 3, *BASE)
        expected = model(x)
        model.backbone = model.backbone[0]
        fv.make_flexible(model)
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("make", [attention.TimeSformerViT, attention.TimeSformer])
def test_timesformer_with_and_without_the_module_around_it(make: Callable[[], nn.Module]) -> None:
    model = fv.make_flexible(make())
    assert model(torch.rand(1, 3, 8, 48, 32), patch=12).shape == (1, 5)
    assert fv.plan_for(model).unknown == ()


@pytest.mark.parametrize("name", SIZE_FREE)
def test_nothing_to_flex(name: str) -> None:
    model = SIZE_FREE[name]()
    with pytest.raises(NothingToFlexError, match=r"call it as it is: .* takes clips of any size"):
        fv.make_flexible(model)
    with torch.no_grad():
        assert model(torch.rand(1, 3, 8, 64, 96)).isfinite().all()
