"""Tables of positions under any name are asked about, never left in silence at the size of the base."""

from dataclasses import replace

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
