"""Every kind of model under every policy at three geometries; and the support matrix."""

from pathlib import Path

import pytest
import support_matrix
import torch
from cases import POLICIES, Case, Size, all_cases
from cases_ssm import CASES
from torch import nn

import flexvideo as fv
from flexvideo.errors import PlanError

GALLERY = list(all_cases())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("case", GALLERY, ids=lambda case: case.name)
def test_gallery(case: Case, policy: str) -> None:
    model = case.build()
    kinds = [type(module) for module in model.modules()]
    plan = case.plan or fv.plan_for(model)
    if policy not in plan.policies:
        with pytest.raises(PlanError, match="does not apply to"):
            fv.make_flexible(model, policy=policy, plan=case.plan)
        assert [type(module) for module in model.modules()] == kinds
        return
    fv.make_flexible(model, policy=policy, plan=case.plan)
    for size in case.sizes_under(policy):
        options = {"patch": case.patch} if policy in ("flexivit", "flex-all") else {}
        output = case.call(model, case.clip(size), **options)
        model.zero_grad()
        (output * torch.arange(output.numel()).view_as(output).cos()).sum().backward()
        parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        for name in parameters.keys() & set(plan.parameters):
            assert parameters[name].grad.isfinite().all(), name
            assert parameters[name].grad.abs().max() > 0, name
    fv.restore(model)
    assert [type(module) for module in model.modules()] == kinds


def compiles(case: Case, sizes: tuple[Size, ...]) -> None:
    model = fv.make_flexible(case.build(), policy="static-patch", plan=case.plan)
    clips = [case.clip(size) for size in sizes]
    with torch.no_grad():
        expected = [case.call(model, clip) for clip in clips]
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", dynamic=False)
        for clip, output in zip(clips, expected, strict=True):
            torch.testing.assert_close(case.call(compiled, clip), output, rtol=1e-4, atol=1e-5)


@pytest.mark.unchecked
def test_compiled() -> None:
    case = next(case for case in GALLERY if case.name == "Vim, class token in the middle")
    compiles(case, case.sizes[:1])


@pytest.mark.slow
@pytest.mark.unchecked
@pytest.mark.parametrize("case", GALLERY, ids=lambda case: case.name)
def test_all_compiled(case: Case) -> None:
    if "mask" not in case.notes:  # those need more than a clip
        compiles(case, (case.base, *case.sizes))


def test_support_matrix(tmp_path: Path) -> None:
    chosen = [case for case in CASES if case.name in ("ViViM", "VMamba, patch v2")]
    table = support_matrix.markdown(chosen)
    assert table.splitlines()[2:4] == [
        "| ViViM | patch kernel, both tables | yes | yes | yes | yes | yes | stand-in |  |",
        "| VMamba, patch v2 | 4-D table |  | yes |  |  |  | stand-in | the patch cannot change |",
    ]
    assert "| MambaVision | nothing: takes any size |  |  |  |  |  | stand-in |  |" in table
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{support_matrix.START}\nold\n{support_matrix.END}\nafter\n")
    support_matrix.write(readme, table)
    assert readme.read_text() == (
        f"before\n{support_matrix.START}\n\n{table}\n\n{support_matrix.END}\nafter\n"
    )


def test_cases_are_named_apart() -> None:
    names = [case.name for case in GALLERY]
    assert len(set(names)) == len(names)
    assert all(isinstance(case.make(), nn.Module) for case in CASES)
