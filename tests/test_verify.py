"""Naming the parts of an unknown model, and noticing when they were named wrongly."""

import doctest
import importlib
import traceback
import warnings
from dataclasses import replace

import pytest
import torch
from cases import Case
from cases_ssm import CASES
from hosts import Stranger, VisionMamba
from standins import image
from test_plan import Unknown
from torch import Tensor, nn

import flexvideo as fv
from flexvideo.errors import GeometryError, PlanError, UnsupportedModelError
from flexvideo.families import FAMILIES, grid_size


class Foreign(nn.Module):
    """A model of no family: frames before channels, a Linear over patches, a grid kept in every block."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 8, stride=8)
        self.where = nn.Parameter(torch.randn(1, 17, 12))
        self.when = nn.Parameter(torch.randn(1, 6, 1, 12))
        self.blocks = nn.ModuleList([nn.LayerNorm(12), nn.LayerNorm(12)])
        self.grid_size = (4, 4)

    def forward(self, clip: Tensor) -> Tensor:
        batch, frames = clip.shape[:2]
        x = self.embed(clip.flatten(0, 1)).flatten(2).transpose(1, 2)
        x = (x + self.where[:, 1:]).unflatten(0, (batch, frames)) + self.when
        rows, columns = self.grid_size
        x = x.unflatten(2, (rows, columns)).mean((1, 2, 3)) + self.where[:, 0]
        return self.blocks[1](self.blocks[0](x))


FOREIGN = fv.Plan(
    base=fv.Base(frames=6, height=32, width=32, patch=(8, 8)),
    patch_embeds=("embed",),
    tables=(
        fv.Table("where", axes="space", class_rows=("first",)),
        fv.Table("when", axes="time"),
    ),
    state=(fv.State("grid_size", grid_size),),
    layout="btchw",
)


@pytest.mark.parametrize("name", ["candidates", "rebuilt", "verify"])
def test_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"flexvideo.{name}"))
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_families_are_verified(case: Case) -> None:
    model = case.build().train()
    kinds = {name: type(module) for name, module in model.named_modules()}
    before = torch.get_rng_state()
    square = {"size": tuple(side + 16 for side in case.base[1:])} if "square" in case.notes else {}
    with warnings.catch_warnings():
        # The multimodal decoder has one table for clips and one for images.
        warnings.filterwarnings("ignore", message=".*never read clip_img_pos_embed")
        fv.verify(model, call=lambda model, clip: case.call(model, clip), **square)
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())


class TestByHand:
    def test_named(self) -> None:
        model = Foreign()
        fv.verify(model, plan=FOREIGN)
        clip = torch.rand(2, 8, 3, 24, 56)
        fv.make_flexible(model, plan=FOREIGN, policy="static-patch")
        model(clip).sum().backward()
        assert model.where.grad.abs().max() > 0
        with pytest.raises(GeometryError, match=r"takes clips as \(batch, frames, channels, height, width\)"):
            model(clip.transpose(1, 2))

    def test_registered(self) -> None:
        fv.register_family("Foreign")(lambda host: FOREIGN if isinstance(host, Foreign) else None)
        try:
            fv.verify(nn.Sequential(Foreign()))
            assert fv.plan_for(nn.Sequential(Foreign())).state[0].name == "0.grid_size"
        finally:
            FAMILIES.pop("Foreign")

    def test_registered_over_a_known_family(self) -> None:
        fv.register_family("Mine")(
            lambda host: (
                replace(fv.plan_for(VisionMamba()), rule=fv.resample.RULES["paper"])
                if isinstance(host, VisionMamba) and hasattr(host, "mine")
                else None
            )
        )
        try:
            model = VisionMamba()
            model.mine = True
            assert fv.plan_for(model).family == "Mine (VisionMamba)"
        finally:
            FAMILIES.pop("Mine")

    def test_layout_of_a_plan_that_was_found(self) -> None:
        class FramesFirst(VisionMamba):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.transpose(1, 2))

        model = FramesFirst()
        plan = replace(fv.plan_for(model), layout="btchw", entries=("forward",))
        fv.verify(model, plan=plan)
        fv.make_flexible(model, plan=plan)
        assert model(torch.rand(1, 7, 3, 48, 40)).shape == (1, 5)


PLAIN_MAMBA = fv.plan_for(image.PlainMamba())
WRONG = {
    "a size that stays": (
        Foreign,
        replace(FOREIGN, state=(), fixed=("grid_size",)),
        "At 7 frames of 40 x 48 px the forward failed: RuntimeError: .* missing from the plan",
    ),
    "a table that stays": (
        Foreign,
        replace(FOREIGN, tables=FOREIGN.tables[1:], fixed=("where",)),
        "the forward failed: RuntimeError: The size of tensor a",
    ),
    "a table that the model resizes by itself": (
        image.PlainMamba,
        replace(
            PLAIN_MAMBA,
            tables=(),
            state=tuple(state for state in PLAIN_MAMBA.state if state.name != "patch_resolution"),
            fixed=(*PLAIN_MAMBA.fixed, "patch_resolution", "pos_embed"),
        ),
        r"At 80 x 80 px the model itself resizes a tensor \(interpolate or grid_sample\), which it does not",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_plans_are_noticed(name: str) -> None:
    make, plan, message = WRONG[name]
    model = make()
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(PlanError, match=message):
        fv.verify(model, plan=plan, size=80 if make is image.PlainMamba else None)
    assert [type(module) for module in model.modules()] == kinds


def test_wrong_value_at_the_base() -> None:
    class Scaled(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.factor = 1

        def forward(self, clip: Tensor) -> Tensor:
            return super().forward(clip) * self.factor

    plan = replace(FOREIGN, state=(*FOREIGN.state, fv.State("factor", lambda geometry, stored: 3)))
    with pytest.raises(PlanError, match="the flexible model gives other outputs than the plain one: a State"):
        fv.verify(Scaled(), plan=plan)


def test_wrong_grid() -> None:
    class Cropping(Foreign):
        """A patch embedding that sees less than the clip."""

        def forward(self, clip: Tensor) -> Tensor:
            return super().forward(clip[..., :32, :32])

    plan = replace(FOREIGN, state=(), tables=(), fixed=("grid_size", "where", "when"))
    with pytest.raises(PlanError, match="the patch embedding gives a grid of 4 x 4, and the plan expects"):
        fv.verify(Cropping(), plan=plan, frames=6)


def test_layers_that_torch_fuses_are_compared_with_themselves() -> None:
    """A watched forward leaves torch's fused encoder layer out, and another gives other roundings."""

    class Attending(Foreign):
        def __init__(self) -> None:
            super().__init__()
            layers = [nn.TransformerEncoderLayer(12, 2, 24, batch_first=True) for _ in range(4)]
            self.encoder = nn.Sequential(*layers)

        def forward(self, clip: Tensor) -> Tensor:
            return self.encoder(super().forward(clip)[:, None] + torch.linspace(0, 9, 33)[:, None])

    for seed in range(4):
        torch.manual_seed(seed)
        fv.verify(Attending(), plan=FOREIGN)


def test_unread_table_is_warned_of() -> None:
    model = Foreign()
    model.other = nn.Parameter(torch.randn(1, 16, 12))
    plan = replace(FOREIGN, tables=(*FOREIGN.tables, fv.Table("other", axes="space")))
    with pytest.warns(UserWarning, match="The forward of Foreign never read other: wrong names in the plan"):
        fv.verify(model, plan=plan)


class TestFailuresOfTheModel:
    """Whatever the model itself raises arrives as a PlanError that says what to correct."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"patch_embeds": ()}, "at least one patch embedding"),
            ({"patch_embeds": ("stm",)}, "Foreign has no module `stm`"),
            ({"base": fv.Base(6, 40, 40, (8, 8))}, "`where` of shape .* does not fit its place in the plan"),
            ({"base": fv.Base(6, 16, 16, (4, 4))}, "its kernel is 8 x 8"),
            (
                {"layout": "bcthw"},
                r"^Given a clip of shape \(1, 3, 6, 32, 32\) \(bcthw\) the plain model fails: RuntimeEr.* "
                r"Correct the plan's base, layout or channels; for a model that takes more than a clip give",
            ),
            (
                {"channels": 4},
                r"^Given a clip of shape \(1, 6, 4, 32, 32\) \(btchw\) the plain model fails: Run",
            ),
        ],
    )
    def test_wrong_plan(self, change: dict, message: str) -> None:
        model = Foreign()
        kinds = [type(module) for module in model.modules()]
        with pytest.raises(PlanError, match=message):
            fv.verify(model, plan=replace(FOREIGN, **change))
        assert [type(module) for module in model.modules()] == kinds

    def test_more_than_a_clip(self) -> None:
        class Asking(Foreign):
            def forward(self, clip: Tensor, words: Tensor) -> Tensor:
                return super().forward(clip) + words

        with pytest.raises(
            PlanError, match=r"plain model fails: TypeError: .*'words'\. .* give `call`, as in veri"
        ):
            fv.verify(Asking(), plan=FOREIGN)
        fv.verify(Asking(), plan=FOREIGN, call=lambda model, clip: model(clip, torch.ones(12)))

    def test_of_the_flexible_model_at_its_base(self) -> None:
        plan = replace(FOREIGN, state=(fv.State("grid_size", lambda geometry, stored: (3, 3)),))
        with pytest.raises(
            PlanError, match=r"^At its base the flexible model fails: RuntimeError: .* A State or"
        ):
            fv.verify(Foreign(), plan=plan)

    def test_unsettled_sizes_are_refused_first(self) -> None:
        with pytest.raises(
            UnsupportedModelError, match=r"whether its forward reads them: grid_size = \(4, 4\)"
        ) as error:
            fv.verify(Foreign(), plan=replace(FOREIGN, state=()))
        assert "plan=dataclasses.replace(plan, fixed=(*plan.fixed, ...)))" in str(error.value)
        assert "or plan_for(model) with the arguments you gave it" in str(error.value)


def test_flexible_already() -> None:
    with pytest.raises(UnsupportedModelError, match=r"is flexible already: restore\(model\) first"):
        fv.verify(fv.make_flexible(VisionMamba()))


def test_no_values_to_compare() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"VisionMamba is on the meta device, .*: verify it once it"
    ):
        fv.verify(VisionMamba().to("meta"))


def test_error_shows_what_could_be_named() -> None:
    with pytest.raises(PlanError) as caught:
        fv.plan_for(Unknown(rows=17))
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.endswith(
        "What Unknown holds that a plan could name:\n"
        "    tokeniser.stem: Conv3d, kernel (2, 8, 8), stride (2, 8, 8)\n"
        "    position_table: parameter of shape (1, 17, 12)\n"
        "    time_table: parameter of shape (6, 12)\n"
        "    tokeniser.image_size = 32\n"
        "    not a patch embedding: refine: Conv2d over 12 channels\n"
        "A plan to start from, each ? to be filled in:\n"
        "    Plan(\n"
        "        base=Base(frames=?, height=?, width=?, patch=(8, 8), tubelet=2),\n"
        "        patch_embeds=('tokeniser.stem',),\n"
        "        tables=(\n"
        "            Table('position_table', axes=?, dim=1),\n"
        "            Table('time_table', axes=?, dim=0),\n"
        "        ),\n"
        "    )\n"
    )


def test_a_linear_layer_is_a_candidate() -> None:
    with pytest.raises(PlanError) as caught:
        fv.plan_for(Stranger())
    assert "    stem: Linear from 192 features\n" in caught.value.__notes__[0]
    assert "        patch_embeds=('stem',),\n" in caught.value.__notes__[0]
