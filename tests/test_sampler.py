"""Plans of training steps: every clip once an epoch, the budget kept, and the same plan for every split."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexvideo import Base, ClipSpec, StaticPatch, StaticTokens, Temporal
from flexvideo.data.sampler import StepSampler, clip_tokens, epoch_order
from flexvideo.errors import ConfigError, GeometryError

BASE = Base(frames=8, height=64, width=64, patch=(16, 16))
POLICY = StaticPatch(frames=(4, 8, 16), sizes=(32, 64))
LARGEST = 16 * 16

laws = settings(deadline=None, max_examples=50)


def sampler(
    count: int,
    *,
    tokens: int = 4 * LARGEST,
    clips: int | None = None,
    cells: int = 1,
    seed: int = 0,
    steps: int | None = None,
) -> StepSampler:
    labels = [0] * count
    return StepSampler(
        labels, policy=POLICY, base=BASE, tokens=tokens, clips=clips, cells=cells, seed=seed, steps=steps
    )


def walked(plans: StepSampler, epoch: int) -> list[int]:
    steps = [plans.plan(epoch, step) for step in range(plans.steps_in(epoch))]
    return [clip for plan in steps for cell in plan.cells for clip in cell]


@laws
@given(clips=st.integers(8, 300), cells=st.integers(1, 8), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_an_epoch_takes_every_clip_once(clips: int, cells: int, seed: int, epoch: int) -> None:
    taken = walked(sampler(clips, tokens=cells * LARGEST * 2, cells=cells, seed=seed), epoch)
    assert len(set(taken)) == len(taken)
    assert 0 <= clips - len(taken) < cells  # what does not fill the cells of the last step
    assert set(taken) <= set(range(clips))


@laws
@given(
    clips=st.integers(8, 300), cells=st.integers(1, 8), clips_more=st.integers(0, 5), seed=st.integers(0, 99)
)
def test_a_step_is_as_large_as_the_budget_allows(clips: int, cells: int, clips_more: int, seed: int) -> None:
    tokens = (cells + clips_more) * LARGEST + 7
    plans = sampler(clips, tokens=tokens, cells=cells, seed=seed)
    last = plans.steps_in(0) - 1
    for step in range(last + 1):
        plan = plans.plan(0, step)
        each = clip_tokens(POLICY, BASE, plan.spec)
        assert len(plan.cells) == cells
        assert len({len(cell) for cell in plan.cells}) == 1
        assert plan.clips * each <= tokens
        assert step == last or (plan.clips + cells) * each > tokens


@laws
@given(seed=st.integers(0, 99), epoch=st.integers(0, 9), order=st.randoms(use_true_random=False))
def test_a_plan_depends_on_seed_epoch_and_step_alone(seed: int, epoch: int, order) -> None:
    plans = sampler(100, seed=seed)
    steps = list(range(plans.steps_in(epoch)))
    expected = [plans.plan(epoch, step) for step in steps]
    order.shuffle(steps)
    again = sampler(100, seed=seed)
    again.plan(epoch + 1, 0)
    assert {step: again.plan(epoch, step) for step in steps} == dict(enumerate(expected))
    assert [plan.spec for plan in expected] == [
        POLICY.sample(BASE, seed=seed, epoch=epoch, step=step) for step in range(len(expected))
    ]
    assert [plan.start for plan in expected] == [
        sum(plan.clips for plan in expected[:step]) for step in range(len(expected))
    ]


@laws
@given(clips=st.integers(4, 60), steps=st.integers(1, 30), cells=st.sampled_from([1, 2, 4]))
def test_given_steps_go_round_and_round(clips: int, steps: int, cells: int) -> None:
    plans = sampler(clips, steps=steps, cells=cells)
    taken = walked(plans, 0)
    assert plans.steps_in(0) == steps
    for begin in range(0, len(taken) - clips + 1, clips):
        assert sorted(taken[begin : begin + clips]) == list(range(clips))


def test_epochs_and_seeds_have_other_orders_and_sizes() -> None:
    plans, other = sampler(200), sampler(200, seed=1)
    assert walked(plans, 0) != walked(plans, 1) != walked(other, 1)
    specs = [[plan.plan(epoch, 0).spec for epoch in range(9)] for plan in (plans, other)]
    assert specs[0] != specs[1]


def test_clips_are_counted_for_every_spec() -> None:
    plans = StepSampler([0] * 97, policy=StaticTokens(frames=(4, 8), sizes=(64, 96)), base=BASE, tokens=999)
    seen = Counter[ClipSpec]()
    for epoch in range(3):
        for step in range(plans.steps_in(epoch)):
            plan = plans.plan(epoch, step)
            seen[plan.spec] += plan.clips
    counted = plans.count_clips(3)
    assert +counted == seen
    assert counted.total() == 3 * 97
    assert len(counted) == 4


def test_a_spec_that_is_never_drawn_is_counted_too() -> None:
    counted = sampler(4, tokens=99 * LARGEST).count_clips(1)
    assert len(counted) == 6
    assert sorted(counted.values()) == [0, 0, 0, 0, 0, 4]


@laws
@given(clips=st.integers(4, 40), cells=st.integers(1, 4), seed=st.integers(0, 9))
def test_no_step_takes_more_clips_than_allowed(clips: int, cells: int, seed: int) -> None:
    """And those whose budget holds fewer take as many as before; every clip is still seen once."""
    free = sampler(60, tokens=9 * LARGEST, cells=cells, seed=seed)
    plans = sampler(60, tokens=9 * LARGEST, clips=clips, cells=cells, seed=seed)
    full = {plan.spec: plan.clips for plan in (free.plan(0, step) for step in range(free.steps_in(0) - 1))}
    for step in range(plans.steps_in(0) - 1):
        plan = plans.plan(0, step)
        assert plan.clips <= clips // cells * cells
        if plan.spec in full:
            assert plan.clips == min(full[plan.spec], clips // cells * cells)
    assert plans.count_clips(1).total() == 60 // cells * cells


def test_too_few_clips_a_step_for_the_cells() -> None:
    message = (
        "At most 3 clips a step cannot be shared by 4 micro-batches (ranks times accumulation) of 1 or more; "
        "allow 4, or use fewer of these."
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        sampler(60, tokens=9 * LARGEST, clips=3, cells=4)


@laws
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    seed=st.integers(0, 99),
    turn=st.integers(0, 3),
)
def test_balanced_orders_share_alike(labels: list[int], seed: int, turn: int) -> None:
    order = epoch_order(labels, seed=seed, epoch=0, turn=turn, balanced=True)
    assert len(order) == len(labels)
    shares = Counter(labels[clip] for clip in order)
    assert max(shares.values()) - min(shares[label] for label in set(labels)) <= 1
    for label in set(labels):
        times = [order.count(clip) for clip, own in enumerate(labels) if own == label]
        assert max(times) - min(times) <= 1


def test_a_budget_that_is_too_small_says_which_spec_and_what_would_fit() -> None:
    message = (
        "A budget of 511 tokens a step does not hold one clip of 16 x 64 x 64 (256 tokens) for each of 2 "
        "micro-batches (ranks times accumulation): it takes 512. Raise the budget, or use smaller clips or "
        "fewer micro-batches."
    )
    with pytest.raises(GeometryError, match=f"^{re.escape(message)}$"):
        sampler(10, tokens=511, cells=2)
    assert sampler(10, tokens=512, cells=2).plan(0, 0).clips


def test_clips_that_are_repeated_lie_side_by_side_in_one_cell() -> None:
    plans = StepSampler([0] * 50, policy=POLICY, base=BASE, tokens=8 * LARGEST, cells=2, repeats=2)
    once = StepSampler([0] * 50, policy=POLICY, base=BASE, tokens=4 * LARGEST, cells=2)
    assert plans.steps_in(0) == once.steps_in(0)
    for step in range(plans.steps_in(0)):
        plan, single = plans.plan(0, step), once.plan(0, step)
        assert plan.cells == tuple(tuple(clip for clip in cell for _ in "12") for cell in single.cells)
        assert plan.start == 2 * single.start
        assert plan.clips * clip_tokens(POLICY, BASE, plan.spec) <= 8 * LARGEST
    assert plans.count_clips(1).total() == 100
    with pytest.raises(
        GeometryError, match=r"\(256 tokens\), 2 times, for each of 2 micro.*it takes 1,024\."
    ):
        StepSampler([0] * 50, policy=POLICY, base=BASE, tokens=1023, cells=2, repeats=2)


def test_fewer_clips_than_micro_batches_are_refused() -> None:
    message = "3 clips cannot be shared by 4 micro-batches (ranks times accumulation); use fewer of these."
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        sampler(3, cells=4)


def test_a_fixed_geometry_is_a_policy_of_one_option() -> None:
    plans = StepSampler([0] * 64, policy=Temporal(frames=(8,)), base=BASE, tokens=16 * 8 * 16)
    assert [plans.plan(0, step).clips for step in range(plans.steps_in(0))] == [16] * 4
