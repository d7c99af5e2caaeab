"""Tables of positions under any name are asked about, never left in silence at the size of the base."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexvideo as fv
from flexvideo.errors import PlanError, UnsupportedModelError
from flexvideo.resample import axis_matrix


class Host(nn.Module):
    """A model for 4 frames of 32 x 32 that takes as many rows of its tables as a clip has tokens.

    Args:
        space: name of the table over space.
        time: name of the table over time.
        embedding: whether they are embeddings, looked up by number.
        frames: what the model says of its frames; nothing when None.
    """

    def __init__(self, space: str, time: str, *, embedding: bool = False, frames: int | None = None) -> None:
        super().__init__()
        self.img_size, self.names = 32, (space, time)
        if frames is not None:
            self.num_frames = frames
        self.stem = nn.Conv3d(3, 12, (1, 8, 8), (1, 8, 8))
        for name, rows in ((space, 16), (time, 4)):
            table = nn.Embedding(rows, 12) if embedding else nn.Parameter(torch.randn(1, rows, 12))
            setattr(self, name, table)
        self.matrix = nn.Parameter(torch.randn(16, 12))

    def rows(self, name: str, count: int) -> Tensor:
        table = getattr(self, name)
        return table(torch.arange(count)) if isinstance(table, nn.Embedding) else table[0, :count]

    def forward(self, clip: Tensor) -> Tensor:
        tokens = self.stem(clip).flatten(3).permute(0, 2, 3, 1)
        space, time = (self.rows(name, n) for name, n in zip(self.names, tokens.shape[2:0:-1], strict=True))
        return tokens + space + time[:, None]


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        (Host("where", "when", frames=4), ("where of shape (1, 16, 12)", "when of shape (1, 4, 12)")),
        (Host("where", "when"), ("where of shape (1, 16, 12)", "when of shape (1, 4, 12)")),
        (Host("pos_embed", "when"), ("when of shape (1, 4, 12)",)),
        (
            Host("where", "when", embedding=True, frames=4),
            ("where.weight of shape (16, 12)", "when.weight of shape (4, 12)"),
        ),
    ],
    ids=["named anyhow", "frames not said", "time alone", "embeddings"],
)
def test_tables_of_any_name_are_asked_about(host: Host, asked: tuple[str, ...]) -> None:
    assert fv.plan_for(host).unknown == asked
    with pytest.raises(UnsupportedModelError, match="nothing says whether its forward reads them: wh"):
        fv.make_flexible(host)
    assert type(host) is Host


def test_a_table_over_a_number_of_tokens_that_is_fixed() -> None:
    host = Host("pos_embed", "time_embed")
    host.registers = nn.Parameter(torch.zeros(1, 4, 12))
    assert fv.plan_for(host).unknown == ("registers of shape (1, 4, 12)",)
    plan = replace(fv.plan_for(host), fixed=("registers",))
    assert fv.make_flexible(host, plan=plan)(torch.rand(1, 3, 6, 32, 32)).shape == (1, 6, 16, 12)


@pytest.mark.parametrize("named", ["found", "by hand"])
def test_embeddings_follow_the_clip(named: str) -> None:
    names = ("position_embedding", "temporal_embedding") if named == "found" else ("where", "when")
    host = Host(*names, embedding=True, frames=4)
    space, time = (getattr(host, name).weight.detach().clone() for name in names)
    plan = fv.plan_for(host)
    if named == "by hand":
        tables = (fv.Table("where.weight", axes="space", dim=0), fv.Table("when.weight", axes="time", dim=0))
        plan = replace(plan, tables=tables)
    nn.init.zeros_(host.stem.weight)
    nn.init.zeros_(host.stem.bias)
    clip = torch.rand(1, 3, 6, 24, 48)
    found = fv.make_flexible(host, policy="static-patch", plan=plan)(clip)[0]
    rows, columns = (axis_matrix("bicubic-aa", 4, new).float() for new in (3, 6))
    expected = torch.einsum("Rr,Cc,rcd->RCd", rows, columns, space.view(4, 4, 12)).flatten(0, 1)
    expected = expected + (axis_matrix("linear-aa", 4, 6).float() @ time)[:, None]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    assert all(getattr(host, name).weight.grad.abs().min() > 0 for name in names)
    fv.restore(host)
    assert type(getattr(host, names[0])) is nn.Embedding


def test_a_matrix_is_no_table() -> None:
    assert fv.plan_for(Host("pos_embed", "time_embed")).unknown == ()


def test_tables_of_any_name_are_listed_for_a_plan() -> None:
    """A model that does not say its size: its table and its embedding are in the plan to start from."""
    host = Host("where", "when", embedding=True)
    del host.img_size
    with pytest.raises(PlanError, match="does not say which frame size") as error:
        fv.plan_for(host)
    (note,) = error.value.__notes__
    assert "where.weight: parameter of shape (16, 12)\n    when.weight: parameter of shape (4, 12)\n" in note
    assert "Table('where.weight', axes=?, dim=0),\n            Table('when.weight', axes=?, dim=0)," in note
    assert "matrix" not in note


class Custom(nn.Module):
    """A model for 8 frames of 64 x 64 pixels, which it says nothing of, with a part of its own.

    Args:
        parts: modules and parameters by name, and buffers, which are tensors.
    """

    def __init__(self, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 32, (2, 16, 16), (2, 16, 16))
        self.norm = nn.LayerNorm(32)
        self.mlp = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 32))
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, clip: Tensor) -> Tensor:
        return self.stem(clip)


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


@pytest.mark.parametrize("frames", [None, 8, 4])
@pytest.mark.parametrize(
    ("parts", "asked"),
    [
        ({"row": nn.Embedding(4, 32), "col": nn.Embedding(4, 32)}, ("row.weight", "col.weight")),
        ({"where": table(4, 4, 32)}, ("where",)),
        ({"spatial_pe": table(32, 4, 4)}, ("spatial_pe",)),
        ({"other": table(1, 3 * 16 + 1, 32)}, ("other",)),
        ({"pool": nn.AvgPool2d(4)}, ("pool.kernel_size",)),
        ({"pool": nn.MaxPool3d((1, 4, 4))}, ("pool.kernel_size",)),
        ({"pool": nn.AvgPool1d(16)}, ("pool.kernel_size",)),
        ({"fold": nn.Unflatten(1, (4, 4))}, ("fold.unflattened_size",)),
        ({"mask": torch.zeros(17, 17)}, ("mask",)),
    ],
    ids=str,
)
def test_what_is_built_for_the_grid_is_asked_about(
    parts: dict[str, Any], asked: tuple[str, ...], frames: int | None
) -> None:
    host = Custom(**{name: copy.deepcopy(part) for name, part in parts.items()})
    plan = fv.plan_for(host, size=64, frames=frames)
    assert tuple(line.partition(" ")[0] for line in plan.unknown) == asked
    assert fv.unsettled.unsettled(host, replace(plan, fixed=asked)) == ()


@pytest.mark.parametrize("frames", [None, 8])
@pytest.mark.parametrize("shape", [(64, 4), (4, 4), (65, 65)])
def test_buffers_over_the_clip_are_asked_about(shape: tuple[int, int], frames: int | None) -> None:
    """Cached sines and cosines of the whole clip, or a mask over its steps: also where frames are unknown."""
    host = Custom(cached=torch.zeros(shape))
    assert fv.plan_for(host, size=64, frames=frames).unknown == (f"cached of shape {shape}",)


@pytest.mark.parametrize(
    "part",
    [nn.AvgPool2d(2), nn.Linear(16, 16), nn.Embedding(100, 32), torch.zeros(5, 12), table(1, 1, 32)],
    ids=str,
)
def test_what_is_not_built_for_the_grid_is_not(part: nn.Module | Tensor) -> None:
    assert fv.plan_for(Custom(part=part), size=64, frames=8).unknown == ()


def test_a_plan_by_hand_that_leaves_out_a_table() -> None:
    host = Custom(space=table(4, 4, 32), fast=table(1, 65, 32), slow=table(1, 33, 32))
    tables = (fv.Table("fast", axes="joint", class_rows=("first",)),)
    plan = fv.Plan(base=fv.Base(8, 64, 64, (16, 16), 2), patch_embeds=("stem",), tables=tables)
    with pytest.raises(UnsupportedModelError, match=r"reads them: space of .*; slow of shape \(1, 33, 32\)"):
        fv.make_flexible(host, plan=plan)


class Factorised(nn.Module):
    """As many frames as there are tokens in one of them, and nothing says so.

    Args:
        inside: name of the module that holds the table over time.
        video: whether its patch embedding takes clips.
    """

    def __init__(self, inside: str, *, video: bool) -> None:
        super().__init__()
        conv, patch = (nn.Conv3d, (1, 16, 16)) if video else (nn.Conv2d, (16, 16))
        self.stem = conv(3, 32, patch, patch)
        self.pos_embed = table(1, 16, 32)
        encoder = nn.Module()
        encoder.pos_embed = table(1, 16, 32)
        self.add_module(inside, encoder)


@pytest.mark.parametrize(
    ("inside", "video", "named"),
    [
        ("temporal", False, "`temporal"),
        ("time_encoder", True, "`time_encoder"),
        ("second", True, "`pos_embed"),
    ],
)
def test_a_table_over_time_is_not_taken_for_a_spatial_one(inside: str, video: bool, named: str) -> None:
    host = Factorised(inside, video=video)
    with pytest.raises(PlanError, match=f"^{named}.* may run over time instead.*: give `frames` of plan_for"):
        fv.plan_for(host, size=64)
    with pytest.raises(PlanError, match="can be a table over time or space"):
        fv.plan_for(host, size=64, frames=16)
    host.get_submodule(inside).pos_embed = table(1, 8, 32)
    axes = [each.axes for each in fv.plan_for(host, size=64, frames=8).tables]
    assert axes == ["space", "time"]


@pytest.mark.parametrize("inside", ["timesformer", "decoder"])
def test_two_tables_of_an_image_model(inside: str) -> None:
    plan = fv.plan_for(Factorised(inside, video=False), size=64)
    assert [each.axes for each in plan.tables] == ["space", "space"]
