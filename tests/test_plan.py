"""Plans: what is found, what is refused, and what the errors say; a refused model is unharmed."""

import doctest
import importlib
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hosts import BASE, ImageMamba, Recogniser, Stranger, VisionMamba, clip, stranger_plan
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import flexvideo as fv
from flexvideo.errors import PlanError, UnsupportedModelError
from flexvideo.families import FAMILIES, as_stored


@pytest.mark.parametrize(
    "name", ["plan", "parts", "listing", "families", "discover", "layers", "swap", "bake", "unsettled"]
)
def test_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"flexvideo.{name}"))
    assert results.attempted > 0
    assert results.failed == 0


class Tokeniser(nn.Module):
    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.stem = stem


class Unknown(nn.Module):
    """A model of no family, found by names and shapes."""

    def __init__(
        self,
        *,
        rows: int = 16,
        steps: int = 6,
        stem: nn.Module | None = None,
        image_size: int | None = 32,
        table: str = "position_table",
    ) -> None:
        super().__init__()
        self.tokeniser = Tokeniser(nn.Conv3d(3, 12, (2, 8, 8), stride=(2, 8, 8)) if stem is None else stem)
        self.rows = rows
        self.table_name = table
        self.mask_token = nn.Parameter(torch.randn(1, 1, 12))
        self.pos_scale = nn.Parameter(torch.randn(1, 1, 12))
        setattr(self, table, nn.Parameter(torch.randn(1, rows, 12)))
        self.time_table = nn.Parameter(torch.randn(steps, 12))
        if image_size is not None:
            self.tokeniser.image_size = image_size
        self.refine = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, video: Tensor) -> Tensor:
        x = self.tokeniser.stem(video).flatten(3).permute(0, 2, 3, 1)
        table = getattr(self, self.table_name)
        cls = table[:, : table.shape[1] - x.shape[2]]
        x = x + table[:, cls.shape[1] :] + self.time_table[:, None]
        return (x * self.pos_scale).mean((1, 2)) + cls.sum(1)


def test_videomamba_plan() -> None:
    model = VisionMamba(num_frames=8, kernel_size=2)
    kinds = [type(module) for module in model.modules()]
    plan = fv.plan_for(model)
    assert plan.base == fv.Base(8, 32, 32, (8, 8), 2)
    assert plan.entries == ("forward", "forward_features")
    assert plan.parameters == ("patch_embed.proj.weight", "pos_embed", "temporal_pos_embedding")
    assert [type(module) for module in model.modules()] == kinds
    assert str(plan) == (
        "VideoMamba (VisionMamba): 8 frames of 32 x 32 px, patch 8 x 8, grid 4 x 4, 4 steps; "
        "clips are bcthw\n"
        "flexible in: forward, forward_features\n"
        "part                     from                       resampled by\n"
        "patch_embed.proj.weight  8 x 8                      auto (patch kernel)\n"
        "pos_embed                4 x 4 + class token first  bicubic-aa\n"
        "temporal_pos_embedding   4                          linear-aa\n"
        "follows the geometry: patch_embed.img_size, patch_embed.patch_size, patch_embed.num_patches"
    )
    with pytest.raises(FrozenInstanceError):
        plan.rule = None


def test_a_plan_prints_what_is_open_and_no_more() -> None:
    model = VisionMamba()
    for block in model.layers:
        block.num_frames, block.grid = 4, (4, 4)
    plan = fv.plan_for(model)
    assert str(plan).endswith(
        "\nto be settled: layers.{0,1}.num_frames = 4\nto be settled: layers.{0,1}.grid = (4, 4)"
    )
    plan = replace(
        plan, fixed=("layers.0.num_frames",), state=(*plan.state, fv.State("layers.1.grid", as_stored))
    )
    assert str(plan).endswith(
        "\nto be settled: layers.0.grid = (4, 4)\nto be settled: layers.1.num_frames = 4"
    )
    assert "to be settled" not in str(replace(plan, fixed=("layers.0", "layers.1")))


def test_a_plan_prints_few_lines_of_what_is_left_alone() -> None:
    model = Unknown()
    model.deep = nn.ModuleList(nn.Conv2d(12 + i // 4, 12, 3) for i in range(40))
    lines = [line for line in str(fv.plan_for(model)).split("\n") if line.startswith("left alone")]
    assert lines[0] == "left alone: refine, deep.0, deep.1, deep.2, deep.3: Conv2d over 12 channels"
    assert lines[-1] == "left alone: and 2 more"
    assert len(lines) == 9
    assert len(fv.plan_for(model).rejected) == 41


@pytest.mark.unchecked
def test_errors_do_not_print_whole_models() -> None:
    with pytest.raises(fv.errors.ConfigError, match=r"^Unknown policy VisionMamba\(\.\.\.: the names are"):
        fv.make_flexible(VisionMamba(), policy=VisionMamba())
    with pytest.raises(
        UnsupportedModelError, match=r"Give a model, .* got \{'a': tensor\(\[\[0.{64,68}\.\.\.\.$"
    ):
        fv.make_flexible({"a": torch.zeros(9, 99)})


def test_clips_for_a_model_that_was_taken_for_one_of_images() -> None:
    model = ImageMamba()
    fv.make_flexible(model, plan=replace(fv.plan_for(model, class_token="first")))
    with pytest.raises(
        fv.errors.GeometryError,
        match=r"takes clips as \(batch, channels, height, width\), got shape \(1, 3, 4, 32, 32\)\. If it "
        r"takes clips of sev.*: plan_for\(model, frames=\.\.\.\), or one with layout='bcthw' or 'btchw'\.$",
    ):
        model(torch.zeros(1, 3, 4, 32, 32))


def test_plan_of_a_flexible_model_is_the_one_it_follows() -> None:
    model = fv.make_flexible(VisionMamba(), rule="paper")
    assert fv.plan_for(model).rule.kernel == "paper"
    assert "bicubic\n" in str(fv.plan_for(model))
    assert fv.plan_for(Recogniser(model)) == fv.plan_for(model)


@pytest.mark.parametrize("argument", [{"rule": "pi"}, {"size": 64}, {"frames": 2}, {"class_token": "last"}])
def test_plan_of_a_flexible_model_cannot_be_changed(argument: dict[str, object]) -> None:
    model = fv.make_flexible(VisionMamba())
    with pytest.raises(
        UnsupportedModelError,
        match=r"VisionMamba is flexible already, .* make_flexible\(model, rule=\.\.\.\) ch",
    ):
        fv.plan_for(model, **argument)


def test_rule_of_a_plan_counts_unless_another_is_given() -> None:
    model = VisionMamba()
    plan = fv.plan_for(model, rule="pi")
    assert fv.flex_config(fv.make_flexible(model, plan=plan))["rule"]["kernel"] == "pi"
    fv.restore(model)
    assert fv.flex_config(fv.make_flexible(model, plan=plan, rule="area"))["rule"]["kernel"] == "area"


def test_image_plan() -> None:
    plan = fv.plan_for(ImageMamba())
    assert plan.base == fv.Base(None, 32, 32, (8, 8))
    assert plan.layout == "bchw"
    assert "patch_embed.grid_size" in str(plan)
    stranger = ImageMamba()
    stranger.if_cls_token = True
    with pytest.raises(PlanError, match="one row more than the 16 tokens it runs over"):
        fv.plan_for(stranger)  # Vim has the same names and its class token in the middle


def test_a_class_of_ones_own() -> None:
    @fv.register_family("Stranger")
    def stranger(host: nn.Module) -> fv.Plan | None:
        return stranger_plan() if isinstance(host, Stranger) else None

    try:
        outer = Recogniser(Stranger())
        plan = fv.plan_for(outer)
        assert plan.family == "Stranger (Stranger)"
        assert plan.patch_embeds == ("backbone.stem",)
        assert plan.state[0].name == "backbone.config"
        x = clip((8, 48, 48)).transpose(1, 2)
        assert fv.make_flexible(outer, policy="static-patch")(x).shape == (2, 8 * 37, 12)
    finally:
        FAMILIES.pop("Stranger")


class TestByNamesAndShapes:
    def test_found(self) -> None:
        model = Unknown()
        plan = fv.plan_for(model)
        assert plan.base == fv.Base(12, 32, 32, (8, 8), 2)
        assert plan.tables == (
            fv.Table("position_table", axes="space"),
            fv.Table("time_table", axes="time", dim=0),
        )
        assert [state.name for state in plan.state] == ["tokeniser.image_size"]
        assert "left alone: refine: Conv2d over 12 channels" in str(plan)
        assert str(plan).startswith("Unknown (by names and shapes): 12 frames")
        x = clip((12, 32, 32))
        expected = model(x)
        fv.make_flexible(model, policy="static-patch")
        assert torch.equal(model(x), expected)
        assert model(clip((8, 48, 64))).shape == (2, 12)

    def test_what_the_model_does_not_say(self) -> None:
        model = Unknown(image_size=None)
        with pytest.raises(
            PlanError,
            match=r"does not say which frame size it was built for: looked for `img_s.* Give it, "
            r"and the others .*: plan_for\(model, size=224, frames=16, class_token=\"first\"\)\.\nWhat",
        ):
            fv.plan_for(model)
        assert fv.plan_for(model, size=32).base.height == 32
        assert fv.plan_for(model, size=(16, 64)).base.grid == (2, 8)

    @pytest.mark.parametrize("row", ["first", "last"])
    def test_class_token(self, row: str) -> None:
        model = Unknown(rows=17)
        with pytest.raises(
            PlanError, match=r"`position_table` \(1, 17, 12\) has one row more than the 16 tokens"
        ):
            fv.make_flexible(model)
        assert type(model) is Unknown
        plan = fv.plan_for(model, class_token=row)
        assert plan.tables[0].class_rows == (row,)
        assert plan.tables[1].class_rows == ()

    def test_table_that_fits_no_grid(self) -> None:
        with pytest.raises(
            PlanError,
            match=r"`position_table` \(1, 20, 12\) has the name of a table of positions and fits no grid: "
            r"looked for 4 x 4 tokens in space and 6 in time, with and without one class token\. Correct",
        ):
            fv.plan_for(Unknown(rows=20))

    def test_table_over_time_of_unknown_frames(self) -> None:
        model = Unknown(table="pos_table", rows=20)
        del model.time_table
        with pytest.raises(
            PlanError,
            match=r"4 x 4 tokens in space and none in time, for its frames are unknown \(give `frames`\), w",
        ):
            fv.plan_for(model)

    @pytest.mark.parametrize(
        ("shape", "said"),
        [
            ((4, 4, 12), "axes='space', dim=0"),
            ((1, 12, 4, 4), "axes='space', dim=2"),
            ((6, 4, 4, 12), "axes='joint', dim=0"),
        ],
    )
    def test_spread_table(self, shape: tuple[int, ...], said: str) -> None:
        model = Unknown()
        model.position_table = nn.Parameter(torch.zeros(shape))
        with pytest.raises(
            PlanError, match=rf"Its axes are .*, as in Table\('position_table', {said}, spread=True\)\. Corr"
        ):
            fv.plan_for(model)

    @pytest.mark.unchecked
    def test_unknown_place_of_a_class_token(self) -> None:
        for model in (Unknown(), VisionMamba()):
            with pytest.raises(
                PlanError, match=r"`class_token` is one of 'first', 'middle', 'last'; got 'begin'\.$"
            ):
                fv.plan_for(model, class_token="begin")

    def test_table_that_fits_space_and_time(self) -> None:
        with pytest.raises(
            PlanError, match=r"`position_table` \(1, 16, 12\) can be a table over time or space"
        ):
            fv.plan_for(Unknown(steps=16))
        assert fv.plan_for(Unknown(steps=16, table="temporal_table"), frames=32).tables[0].axes == "time"

    def test_joint_table(self) -> None:
        plan = fv.plan_for(Unknown(rows=96))
        assert plan.tables[0] == fv.Table("position_table", axes="joint")

    def test_frames_given(self) -> None:
        assert fv.plan_for(Unknown(steps=6), frames=12).base.steps == 6
        with pytest.raises(PlanError, match=r"`time_table` \(6, 12\).*fits no grid.* 4 in time"):
            fv.plan_for(Unknown(steps=6), frames=8)

    def test_stored_sizes_that_disagree_are_left_alone(self) -> None:
        model = Unknown()
        model.num_patches, model.patch_size = 96, 14
        assert [state.name for state in fv.plan_for(model).state] == ["num_patches", "tokeniser.image_size"]

    def test_no_patch_embedding(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv3d(1, 8, 4, stride=4), nn.Linear(8, 8))
        with pytest.raises(
            PlanError,
            match=r"No patch embedding found in Sequential: looked for a Conv2d or Conv3d over 3 channels "
            r"whose stride is its kernel size\. Convolutions present: 0: Conv2d has kernel \(3, 3\) and "
            r"stride \(1, 1\); 1: Conv3d over 1 channels\. If it is something else, name the parts: .*; a "
            r"Linear over patches can be named too\. .* patch_embeds=\(\) and channels=3: then the pat",
        ):
            fv.make_flexible(model)

    def test_no_convolution_at_all(self) -> None:
        with pytest.raises(PlanError, match="Convolutions present: none"):
            fv.plan_for(nn.Linear(3, 3))

    def test_several_patch_embeddings(self) -> None:
        model = nn.ModuleList([nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(3, 8, 8, stride=8)])
        with pytest.raises(
            PlanError,
            match=r"ModuleList has 2 convolutions that could be the patch embedding: 0, 1\. To choose",
        ):
            fv.plan_for(model)

    def test_overlapping_stem(self) -> None:
        with pytest.raises(PlanError, match=r"has kernel \(3, 7, 7\) and stride \(2, 4, 4\)"):
            fv.plan_for(Unknown(stem=nn.Conv3d(3, 12, (3, 7, 7), stride=(2, 4, 4))))

    def test_several_known_models(self) -> None:
        both = nn.ModuleDict({"rgb": VisionMamba(), "flow": VisionMamba()})
        with pytest.raises(
            PlanError,
            match="ModuleDict holds several models that could be made flexible: VideoMamba at "
            r"`rgb`, VideoMamba at `flow`\. Call make_flexible on each of them",
        ):
            fv.make_flexible(both)


class TestPlanThatDoesNotFit:
    GOOD = stranger_plan()

    BAD = (
        (
            {"patch_embeds": ("stm",)},
            r"Stranger has no module `stm`; `the model` holds cls_token, frame_table, ",
        ),
        ({"patch_embeds": ()}, "at least one patch embedding and one entry point"),
        ({"entries": ()}, "at least one patch embedding and one entry point"),
        ({"entries": ("forward_features",)}, "Stranger has no method `forward_features`"),
        ({"entries": ("blocks.9.forward",)}, "has no method `blocks.9.forward`; `blocks` holds 0, 1"),
        ({"tables": (fv.Table("pos", axes="space"),)}, "Stranger stores nothing at `pos`; `the model` holds"),
        ({"tables": (fv.Table("blocks.0.pos", axes="time"),)}, "`blocks.0` holds time_table"),
        (
            {"state": (fv.State("stem.in_features", as_stored),)},
            "belongs to a patch embedding, which follows by",
        ),
        ({"state": (fv.State("blocks.0.size", as_stored),)}, "stores nothing at `blocks.0.size`"),
        (
            {"tables": (fv.Table("patch", axes="space"),), "state": ()},
            "`patch` is a int, not a tensor of positions",
        ),
        (
            {"tables": (fv.Table("frame_table", axes="space"),)},
            r"`frame_table` of shape \(1, 17, 12\) does not fit its place in the plan: space of 4 x 4 tokens "
            "needs 16 in dimension 1. Correct the plan's base, or the table's dim and class_rows",
        ),
        (
            {"tables": (fv.Table("joint_table", axes="joint", class_rows=("last",)),)},
            "joint of 4 x 4 x 4 tokens and 1 class-token rows needs 65 in dimension 1",
        ),
        (
            {"tables": (fv.Table("image_table", axes="space", dim=1, spread=True),)},
            "needs 4 x 4 in dimension 1",
        ),
        (
            {"base": fv.Base(None, 32, 32, (8, 8))},
            "`joint_table` runs over time, and the plan's base has no frames: give it",
        ),
        (
            {"base": fv.Base(4, 35, 35, (7, 7))},
            "its 192 input features are no multiple of the 49 pixels of a pa",
        ),
    )

    @pytest.mark.parametrize(("change", "message"), BAD)
    def test_refused(self, change: dict, message: str) -> None:
        model = Stranger()
        kinds, attributes = [type(module) for module in model.modules()], set(model.__dict__)
        with pytest.raises(PlanError, match=message):
            fv.make_flexible(model, plan=replace(self.GOOD, **change))
        assert [type(module) for module in model.modules()] == kinds
        assert set(model.__dict__) == attributes

    VALUES = (
        ({"base": (8, 224, 224)}, r"`base` of a plan must be a Base, got \(8, 224, 224\)"),
        (
            {"patch_embeds": "stem"},
            r"`patch_embeds` must be a tuple of names, got 'stem': write patch_embeds=\(",
        ),
        ({"patch_embeds": (3,)}, r"`patch_embeds` must be a tuple of names, got \(3,\)\."),
        (
            {"tables": fv.Table("pos", axes="space")},
            r"`tables` must be a tuple of Table entries, got Table\(name=",
        ),
        ({"tables": ("pos",)}, r"`tables` must be a tuple of Table entries, got \('pos',\)"),
        ({"state": ("size",)}, "`state` must be a tuple of State entries"),
        ({"baked": ("size",)}, "`baked` must be a tuple of State entries"),
        ({"entries": "forward"}, "`entries` must be a tuple of names, got 'forward': write entries="),
        ({"fixed": "size"}, "`fixed` must be a tuple of names, got 'size'"),
        ({"layout": "BCTHW"}, "`layout` is one of 'bcthw', 'btchw', 'bchw'; got 'BCTHW'"),
        ({"layout": ["bcthw"]}, "`layout` is one of"),
        ({"linear_order": "cwh"}, "`linear_order` is one of 'chw', 'hwc'; got 'cwh'"),
        ({"channels": 0}, "`channels` must be a positive whole number or None, got 0"),
        ({"channels": "3"}, "`channels` must be a positive whole number or None, got '3'"),
        (
            {"tables": (fv.Table("pos", axes="space"), fv.Table("pos", axes="time"))},
            "The plan names 'pos' more than once: a name is that of one patch embedding, Table or State, or",
        ),
        ({"fixed": ("joint_table",)}, "The plan names 'joint_table' more than once"),
        ({"fixed": ("stem",)}, "The plan names 'stem' more than once"),
    )

    @pytest.mark.unchecked
    @pytest.mark.parametrize(("change", "message"), VALUES)
    def test_values_of_a_plan(self, change: dict, message: str) -> None:
        with pytest.raises(PlanError, match=message):
            replace(self.GOOD, **change)

    @pytest.mark.unchecked
    def test_lists_and_the_name_of_a_rule_are_taken(self) -> None:
        plan = replace(self.GOOD, patch_embeds=["stem"], tables=list(self.GOOD.tables), rule="pi")
        assert plan == replace(self.GOOD, rule=fv.resample.RULES["pi"])
        assert hash(plan.patch_embeds) == hash(("stem",))
        with pytest.raises(fv.errors.ConfigError, match="Unknown rule 'nearest'"):
            replace(self.GOOD, rule="nearest")

    @pytest.mark.unchecked
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"name": ""}, "A Table needs a dotted path from the model as its `name`, got ''"),
            ({"name": 3}, "A Table needs a dotted path from the model as its `name`, got 3"),
            ({"axes": "spatial"}, "`axes` of Table `pos` is one of 'space', 'time', 'joint'; got 'spatial'"),
            (
                {"class_rows": "first"},
                r"`class_rows` must be a tuple of names, got 'first': write class_rows=\(",
            ),
            (
                {"class_rows": ("begin",)},
                "`class_rows` of Table `pos` is one of 'first', 'middle', 'last'; got 'b",
            ),
            ({"dim": -2}, "Table 'pos': `dim` is a dimension counted from 0 .* got -2 and False"),
            ({"dim": "1"}, "got '1' and False"),
            ({"spread": 1}, "got 1 and 1"),
        ],
    )
    def test_values_of_a_table(self, change: dict, message: str) -> None:
        with pytest.raises(PlanError, match=message):
            fv.Table(**({"name": "pos", "axes": "space"} | change))

    @pytest.mark.unchecked
    @pytest.mark.parametrize("call", [fv.make_flexible, fv.verify])
    def test_what_is_no_plan(self, call: Callable[..., object]) -> None:
        with pytest.raises(
            PlanError, match=r"`plan` must be a Plan, as plan_for\(model\) returns it; got {'pos': 1}"
        ):
            call(Stranger(), plan={"pos": 1})

    def test_values_that_only_the_model_can_tell(self) -> None:
        for name in ("nope", "blocks.0.nope", "blocks.9.steps", "config.nope", "cls_token.nope"):
            with pytest.raises(
                PlanError, match=f"Stranger stores nothing at `{name}`, which is in the plan's fi"
            ):
                fv.make_flexible(Stranger(), plan=replace(self.GOOD, fixed=(name,)))
        with pytest.raises(
            UnsupportedModelError, match="`blocks` is a ModuleList; a patch embedding must be"
        ):
            fv.make_flexible(Stranger(), plan=replace(self.GOOD, patch_embeds=("blocks",)))

    @pytest.mark.unchecked
    def test_values_of_a_state(self) -> None:
        with pytest.raises(
            PlanError, match=r"State 'size': `value` must be a function of the geometry .* got 4"
        ):
            fv.State("size", 4)
        with pytest.raises(PlanError, match="A State needs a dotted path"):
            fv.State(None, as_stored)

    def test_spread_table_with_class_rows(self) -> None:
        with pytest.raises(PlanError, match="a table with axes of its own holds no class-token rows"):
            fv.Table("table", axes="space", class_rows=("first",), spread=True)

    def test_method_with_a_patch_of_its_own(self) -> None:
        class Own(VisionMamba):
            def forward(self, x: Tensor, patch: int = 3) -> Tensor:
                return super().forward(x)

        with pytest.raises(PlanError, match="`forward` of Own has an argument `patch` of its own"):
            fv.make_flexible(Own())

    CONVOLUTIONS = (
        ({"padding": 1}, r"it pads the frame by \(1, 1, 1\)"),
        (
            {"dilation": 2},
            r"dilation \(2, 2, 2\), groups 1 and padding mode 'zeros' are not those of a plain con",
        ),
        ({"groups": 3}, r"groups 3"),
        ({"stride": (1, 4, 4)}, "its stride is 4 x 4, so patches overlap or leave gaps"),
        ({"stride": (2, 8, 8)}, None),
    )

    @pytest.mark.parametrize(("options", "message"), CONVOLUTIONS)
    def test_convolution_that_is_no_patch_embedding(self, options: dict, message: str | None) -> None:
        model = VisionMamba(embed_dim=9)
        model.patch_embed.proj = nn.Conv3d(3, 9, (1, 8, 8), **({"stride": (1, 8, 8)} | options))
        plan = fv.Plan(base=fv.Base(4, 32, 32, (8, 8)), patch_embeds=("patch_embed.proj",))
        with pytest.raises(PlanError, match=message or "its stride in time is 2, and the plan's tubelet 1"):
            fv.make_flexible(model, plan=plan)
        with pytest.raises(
            PlanError, match=r"`patch_embed\.proj` is no patch embedding of 4 x 8 px: its kernel is 8"
        ):
            fv.make_flexible(model, plan=replace(plan, base=fv.Base(4, 32, 32, (4, 8))))


def test_a_convolution_may_say_in_words_that_it_does_not_pad() -> None:
    model = VisionMamba()
    model.patch_embed.proj = nn.Conv3d(3, 8, (1, 8, 8), stride=(1, 8, 8), padding="valid")
    assert fv.make_flexible(model)(clip((4, 64, 64))).shape == (2, 5)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def own_forward(model: nn.Module) -> nn.Module:
    model.forward = model.forward
    return model


def own_conv_forward(model: nn.Module) -> nn.Module:
    model.patch_embed.proj.forward = model.patch_embed.proj.forward
    return model


def parametrized_table(model: nn.Module) -> nn.Module:
    parametrize.register_parametrization(model, "pos_embed", nn.Identity())
    return model


def on_conv(function: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def apply(model: nn.Module) -> nn.Module:
        function(model.patch_embed.proj)
        return model

    return apply


def another_conv(model: nn.Module) -> nn.Module:
    class Scaled(nn.Conv3d):
        pass

    model.patch_embed.proj.__class__ = Scaled
    return model


UNSUPPORTED = {
    "compiled": (
        compiled,
        r"The model is wrapped in OptimizedModule: call make_flexible on the model inside",
    ),
    "compiled inside": (lambda m: Recogniser(compiled(m)), r"`backbone` is wrapped in OptimizedModule"),
    "DataParallel": (
        nn.DataParallel,
        "wrapped in DataParallel: call make_flexible first, then wrap the model",
    ),
    "own forward": (own_forward, r"The model \(VisionMamba\) has a `forward` of its own instance"),
    "own forward of the convolution": (
        own_conv_forward,
        r"`patch_embed.proj` \(Conv3d\) has a `forward` of its",
    ),
    "parametrized table": (
        parametrized_table,
        "The model has parametrized tensors: remove the parametrizations",
    ),
    "parametrized": (on_conv(parametrizations.weight_norm), "`patch_embed.proj` has parametrized tensors"),
    "legacy weight norm": (on_conv(nn.utils.weight_norm), "is computed by a hook"),
    "legacy spectral norm": (
        on_conv(nn.utils.spectral_norm),
        r"The weight of `patch_embed.proj` is computed by a hook \(weight_norm, spectral_norm or pruning\)",
    ),
    "pruned": (on_conv(lambda c: prune.l1_unstructured(c, "weight", 0.5)), "is computed by a hook"),
    "subclass": (
        another_conv,
        "`patch_embed.proj` is a Scaled; a patch embedding must be exactly one of Conv2d, Conv3d, "
        "PatchConv3d, Linear: a subclass may compute something else",
    ),
}


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("what", UNSUPPORTED)
def test_unsupported_models(what: str) -> None:
    wrap, message = UNSUPPORTED[what]
    model = wrap(VisionMamba().eval())
    kinds = [type(module) for module in model.modules()]
    expected = model(clip(BASE))
    with pytest.raises(UnsupportedModelError, match=message):
        fv.make_flexible(model)
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(model(clip(BASE)), expected)


@pytest.mark.unchecked
def test_restore_refuses_what_was_wrapped_afterwards() -> None:
    model = fv.make_flexible(VisionMamba())
    with pytest.raises(UnsupportedModelError, match="The model is wrapped in OptimizedModule"):
        fv.restore(compiled(model))
    with pytest.raises(
        UnsupportedModelError, match=r"\(FlexibleVisionMamba\) has a `forward` of its own instance"
    ):
        fv.restore(own_forward(model))
    del model.forward
    parametrize.register_parametrization(model.patch_embed.proj, "bias", nn.Identity())
    with pytest.raises(UnsupportedModelError, match="has parametrized tensors"):
        fv.restore(model)
    parametrize.remove_parametrizations(model.patch_embed.proj, "bias")
    assert type(fv.restore(model)) is VisionMamba


def test_another_plan_for_a_flexible_model() -> None:
    model = fv.make_flexible(VisionMamba())
    with pytest.raises(
        UnsupportedModelError, match=r"is flexible already: restore\(model\) first, then give it"
    ):
        fv.make_flexible(model, plan=fv.plan_for(model))


@pytest.mark.parametrize("already", [False, True])
def test_unknown_policy_or_rule(already: bool) -> None:
    model = fv.make_flexible(VisionMamba()) if already else VisionMamba()
    kind = type(model)
    with pytest.raises(fv.errors.ConfigError, match="Unknown policy 'stretchy'"):
        fv.make_flexible(model, policy="stretchy", rule="pi")
    with pytest.raises(fv.errors.ConfigError, match="Unknown rule 'nearest'"):
        fv.make_flexible(model, policy="temporal", rule="nearest")
    assert type(model) is kind
    if already:
        assert fv.flex_config(model)["policy"]["name"] == "static-tokens"


def test_one_number_for_two_sides() -> None:
    assert as_stored(224, (96, 96)) == 96
    assert as_stored([1, 1], (4, 6)) == [4, 6]
    with pytest.raises(
        fv.errors.GeometryError, match="one number for both sides of a frame and cannot take 4 x 6"
    ):
        as_stored(224, (4, 6))
