"""Hosts that set in their forward what follows the clip."""

import pytest
import torch
from torch import Tensor, nn

import flexvideo as fv
from flexvideo.errors import UnsupportedModelError


class Host(nn.Module):
    """A model that brings its table, a plain tensor, to where the clip is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.table = nn.Conv2d(3, 8, 8, 8), torch.randn(1, 16, 8)

    def brought(self, table: Tensor) -> Tensor:
        return table.to("cpu", copy=True)

    def forward(self, x: Tensor) -> Tensor:
        self.table = self.brought(self.table)
        return self.stem(x).flatten(2).mT + self.table


PLAN = fv.Plan(
    base=fv.Base(None, 32, 32, (8, 8)),
    patch_embeds=("stem",),
    tables=(fv.Table("table", axes="space"),),
    layout="bchw",
)


def test_a_table_set_in_a_forward_stays_the_table_of_the_base() -> None:
    host = Host()
    base = host.table.clone()
    fv.make_flexible(host, policy="static-patch", plan=PLAN)
    expected = host(torch.ones(1, 3, 48, 40))
    assert torch.equal(host.table, base)
    assert host(torch.ones(1, 3, 32, 32)).shape == (1, 16, 8)
    assert torch.equal(host(torch.ones(1, 3, 48, 40)), expected)
    assert torch.equal(fv.restore(host).table, base)


def test_a_table_set_to_something_else_in_a_forward_is_an_error() -> None:
    class Doubling(Host):
        def brought(self, table: Tensor) -> Tensor:
            return 2 * table

    host = fv.make_flexible(Doubling(), policy="static-patch", plan=PLAN)
    with pytest.raises(UnsupportedModelError, match=r"sets `table` to tensor[\s\S]*correct its State or"):
        host(torch.ones(1, 3, 48, 40))
