"""Metrics against scikit-learn and against loops that nobody can misread."""

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from flexvideo.errors import ConfigError
from flexvideo.evaluate import metrics
from flexvideo.evaluate.bootstrap import estimate
from flexvideo.evaluate.metrics import balanced_accuracy, knn_scores, retrieval_values, topk_hits

SEEDS = st.integers(0, 2**20)


def drawn(seed: int, *, queries: int = 23, gallery: int = 41, classes: int = 5) -> tuple[Tensor, ...]:
    """Features that tell a little of their classes; class 4 is in no row of the gallery."""
    torch.manual_seed(seed)
    centres = torch.randn(classes, 8)
    labels, known = torch.randint(classes, (queries,)), torch.randint(classes - 1, (gallery,))
    return centres[labels] + torch.randn(queries, 8), labels, centres[known] + torch.randn(gallery, 8), known


@pytest.mark.parametrize("k", [1, 2, 4])
def test_topk_is_scikit_learns(k: int) -> None:
    scores, labels = torch.randn(50, 6), torch.randint(6, (50,))
    expected = top_k_accuracy_score(labels, scores, k=k, labels=range(6))
    assert topk_hits(scores, labels, k=k).double().mean().item() == pytest.approx(expected, abs=1e-12)


def test_ties_go_to_the_lower_number() -> None:
    scores = torch.zeros(4, 4)
    labels = torch.arange(4)
    assert topk_hits(scores, labels).tolist() == [True, False, False, False]
    assert topk_hits(scores, labels, k=3).tolist() == [True, True, True, False]
    same = torch.ones(3, 2)
    values = retrieval_values(same[:1], torch.tensor([7]), same, torch.tensor([1, 7, 7]), top=(1, 2))
    assert {name: value.item() for name, value in values.items()} == {
        "R@1": 0,
        "R@2": 1,
        "AP": pytest.approx((1 / 2 + 2 / 3) / 2),
    }


@pytest.mark.parametrize("count", [3, 7, 33, 101])
def test_rows_that_are_equal_tie_wherever_they_lie(count: int) -> None:
    row, queries = torch.randn(1, 577), torch.randn(17, 577)
    labels = torch.arange(count)
    values = retrieval_values(queries, torch.zeros(17, dtype=torch.long), row.repeat(count, 1), labels)
    assert values["R@1"].all()


def test_what_is_no_number_is_no_hit() -> None:
    nothing, labels = torch.full((4, 6), float("nan")), torch.arange(4)
    assert not topk_hits(nothing, labels, k=6).any()
    partly = torch.eye(4, 6)
    partly[1, 5] = partly[2, 2] = float("nan")
    assert topk_hits(partly, labels).tolist() == [True, False, False, True]


def test_a_low_temperature_leaves_the_nearest_its_say() -> None:
    gallery, known = torch.tensor([[0.0, 1.0], [1.0, 0.01], [1.0, 0.0]]), torch.tensor([0, 1, 2])
    scores = knn_scores(torch.tensor([[1.0, 0.0]]), gallery, known, classes=3, temperature=1e-6)
    assert scores.isfinite().all()
    assert scores.argmax().item() == 2
    with pytest.raises(ConfigError, match=r"temperature of votes must be above 0, got 0\.0"):
        knn_scores(gallery, gallery, known, classes=3, temperature=0.0)


def test_balanced_accuracy_is_scikit_learns() -> None:
    labels, guesses = torch.randint(3, (40,)) * 2, torch.randint(3, (40,)) * 2
    expected = balanced_accuracy_score(labels, guesses)
    assert balanced_accuracy(guesses == labels, labels) == pytest.approx(expected, abs=1e-12)


@given(seed=SEEDS, chunk=st.sampled_from([1, 41, 100, 1 << 24]))
@settings(max_examples=25, deadline=None)
def test_retrieval_is_a_loop(seed: int, chunk: int) -> None:
    queries, labels, gallery, known = drawn(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_CHUNK", chunk)
        values = retrieval_values(queries, labels, gallery, known)
    for row, (query, label) in enumerate(zip(queries, labels, strict=True)):
        similarity = torch.cosine_similarity(query[None], gallery)
        ranked = known[similarity.argsort(descending=True)]
        for k in (1, 5, 10, 20):
            assert values[f"R@{k}"][row] == float(label in ranked[:k])
        relevant = (known == label).numpy()
        expected = average_precision_score(relevant, similarity.numpy()) if relevant.any() else 0.0
        assert values["AP"][row].item() == pytest.approx(expected, abs=1e-9)


@given(seed=SEEDS, scale=st.floats(0.01, 100))
@settings(max_examples=25, deadline=None)
def test_laws_of_retrieval(seed: int, scale: float) -> None:
    queries, labels, gallery, known = drawn(seed)
    values = retrieval_values(queries, labels, gallery, known, top=(1, 5, len(gallery)))
    assert (values["R@1"] <= values["R@5"]).all()
    assert (values["R@5"] <= values[f"R@{len(gallery)}"]).all()
    assert (values[f"R@{len(gallery)}"] == torch.isin(labels, known)).all()
    assert ((values["AP"] >= 0) & (values["AP"] <= 1)).all()
    order = torch.randperm(len(gallery))
    shuffled = retrieval_values(
        queries * scale, labels, gallery[order], known[order], top=(1, 5, len(gallery))
    )
    for name, value in values.items():
        torch.testing.assert_close(shuffled[name], value)
    itself = retrieval_values(gallery, known, gallery, known)
    assert itself["R@1"].all()


@pytest.mark.parametrize(("queries", "chunk"), [(1, 1 << 24), (99, 100), (100, 1)])
@pytest.mark.parametrize("k", [1, 20, 200])
def test_knn_is_scikit_learns_and_counts_every_query(queries: int, k: int, chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(metrics, "_CHUNK", chunk)
    asked, _, gallery, known = drawn(3, queries=queries)
    scores = knn_scores(asked, gallery, known, classes=5, k=k)
    unit = torch.nn.functional.normalize

    def votes(distances):  # |a - b|^2 = 2 - 2 cosine
        return numpy.exp((1 - distances**2 / 2) / 0.07)

    neighbours = KNeighborsClassifier(min(k, len(gallery)), weights=votes).fit(unit(gallery.double()), known)
    expected = neighbours.predict_proba(unit(asked.double()))
    assert scores.shape == (queries, 5)
    assert not scores[:, 4].any()  # no row of the gallery votes for it
    torch.testing.assert_close(scores[:, :4] / scores.sum(1, keepdim=True), torch.tensor(expected))


def test_the_nearest_neighbour_is_the_first_retrieved() -> None:
    queries, labels, gallery, known = drawn(0)
    hits = topk_hits(knn_scores(queries, gallery, known, classes=5, k=1), labels)
    assert torch.equal(hits.double(), retrieval_values(queries, labels, gallery, known)["R@1"])


def test_there_is_no_top_zero() -> None:
    queries, labels, gallery, known = drawn(0)
    for call in (
        lambda: topk_hits(torch.zeros(1, 2), torch.tensor([0]), k=0),
        lambda: retrieval_values(queries, labels, gallery, known, top=(1, 0)),
        lambda: knn_scores(queries, gallery, known, classes=5, k=0),
    ):
        with pytest.raises(ConfigError, match="There is no top 0: k must be at least 1"):
            call()


def test_the_interval_of_hits_is_the_binomials() -> None:
    hits = (torch.arange(1000) % 4 > 0).double()
    found = estimate(hits, resamples=4000)
    assert found.value == 0.75
    spread = 1.96 * (0.75 * 0.25 / 1000) ** 0.5
    assert found.low == pytest.approx(0.75 - spread, abs=0.003)
    assert found.high == pytest.approx(0.75 + spread, abs=0.003)


@given(seed=SEEDS, n=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_laws_of_estimates(seed: int, n: int) -> None:
    torch.manual_seed(seed)
    values, labels = torch.rand(n), torch.randint(3, (n,))
    found = estimate(values, resamples=50, seed=seed)
    assert found == estimate(values, resamples=50, seed=seed)
    assert found.value == pytest.approx(values.double().mean().item())
    assert values.min() - 1e-6 <= found.low <= found.high <= values.max() + 1e-6
    wider = estimate(values, resamples=50, seed=seed, level=0.99)
    assert wider.low <= found.low <= found.high <= wider.high
    shifted = estimate(values + 1.0, labels=labels, resamples=50, seed=seed)
    balanced = estimate(values, labels=labels, resamples=50, seed=seed)
    assert shifted.low == pytest.approx(balanced.low + 1, abs=1e-6)
    constant = estimate(torch.full((n,), 0.25), labels=labels, resamples=50)
    assert (constant.low, constant.value, constant.high) == pytest.approx((0.25, 0.25, 0.25))


def test_paired_differences_are_tighter_than_two_intervals() -> None:
    torch.manual_seed(0)
    hard = torch.rand(400)
    one, other = (hard < 0.6).double(), (hard < 0.65).double()  # right on the same queries, and some more
    difference = estimate(other - one)
    assert 0 < difference.low < difference.value < difference.high
    assert estimate(one).high > estimate(other).low  # the two intervals alone would not tell


def test_balanced_estimates_are_of_the_balanced_accuracy(monkeypatch) -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    hits = torch.tensor([True] * 90 + [False] * 10)
    found = estimate(hits.double(), labels=labels)
    assert found.value == balanced_accuracy(hits, labels) == 0.5
    assert (found.low, found.high) == (0.5, 0.5)
    mixed = torch.rand(100) < 0.5
    whole = estimate(mixed.double(), labels=labels)
    monkeypatch.setattr("flexvideo.evaluate.bootstrap._CHUNK", 700)
    assert estimate(mixed.double(), labels=labels) == whole


@pytest.mark.parametrize("wrong", [{"n": 0}, {"resamples": 0}, {"level": 1.0}])
def test_impossible_intervals(wrong: dict[str, float]) -> None:
    values = torch.ones(int(wrong.pop("n", 3)))
    with pytest.raises(ConfigError, match="An interval needs at least 1 value, 1 resample and a level"):
        estimate(values, **wrong)
