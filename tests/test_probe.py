"""Linear probes against scikit-learn, and the rule that nothing is chosen on the test split."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from flexvideo.errors import ConfigError
from flexvideo.evaluate.heads import hold_out, scale_of, solve_heads, train_heads
from flexvideo.evaluate.probe import Probe, fit_probe


def drawn(n: int = 120, *, classes: int = 4, width: int = 6, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    centres = 1.5 * torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(classes, (n,))
    return centres[labels] + noise * torch.randn(n, width), labels


@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_lbfgs_is_scikit_learns(strength: float) -> None:
    x, labels = drawn()
    (head,) = solve_heads(x, labels, classes=4, strengths=[strength], iterations=2000)
    expected = LogisticRegression(C=strength, tol=1e-10, max_iter=5000).fit(
        x.double().numpy(), labels.numpy()
    )
    torch.testing.assert_close(head.weight, torch.tensor(expected.coef_), rtol=1e-3, atol=1e-4)
    ours, theirs = (
        head.scores(x.double()).softmax(1),
        torch.tensor(expected.predict_proba(x.double().numpy())),
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_a_path_of_strengths_ends_where_each_alone_does() -> None:
    x, labels = drawn()
    path = solve_heads(x, labels, classes=4, strengths=[1.0, 0.01], iterations=2000)
    for head, strength in zip(path, [1.0, 0.01], strict=True):
        (alone,) = solve_heads(x, labels, classes=4, strengths=[strength], iterations=2000)
        torch.testing.assert_close(head.weight, alone.weight, rtol=1e-3, atol=1e-4)


def test_heads_trained_together_are_those_trained_alone() -> None:
    x, labels = drawn()
    grid = [(1e-3, 0.0), (1e-2, 0.0), (1e-2, 0.5)]
    together = train_heads(x, labels, classes=4, settings=grid, epochs=3, batch=50, seed=1)
    for head, setting in zip(together, grid, strict=True):
        (alone,) = train_heads(x, labels, classes=4, settings=[setting], epochs=3, batch=50, seed=1)
        torch.testing.assert_close(head.weight, alone.weight)
        torch.testing.assert_close(head.bias, alone.bias)
    assert together[2].weight.norm() < together[1].weight.norm()


def test_one_head_is_a_plain_training_loop() -> None:
    x, labels = drawn()
    (head,) = train_heads(x, labels, classes=4, settings=[(1e-2, 0.1)], epochs=2, batch=50, seed=3)
    layer = nn.Linear(6, 4)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": 0.1}, {"params": [layer.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    order, step = torch.Generator().manual_seed(3), 0
    for _ in range(2):
        for rows in torch.randperm(120, generator=order).split(50):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (1 + math.cos(math.pi * step / 6)) / 2
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(x[rows]), labels[rows]).backward()
            optimizer.step()
            step += 1
    torch.testing.assert_close(head.weight, layer.weight.detach())


@pytest.mark.parametrize("batch_norm", [True, False])
def test_scaling(batch_norm: bool) -> None:
    x = torch.randn(50, 6) * torch.arange(1, 7) + 5
    scale = scale_of(x, batch_norm=batch_norm)
    if batch_norm:
        torch.testing.assert_close(
            scale(x), nn.BatchNorm1d(6, affine=False, eps=1e-6)(x), rtol=1e-4, atol=1e-5
        )
    else:
        assert scale(x).square().mean().item() == pytest.approx(1, rel=1e-5)
        torch.testing.assert_close(scale(x)[0] * x[1, 0], scale(x)[1, 0] * x[0])  # directions stay


@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=60), part=st.floats(0.05, 0.95))
@settings(max_examples=40, deadline=None)
def test_what_is_held_out(labels: list[int], part: float) -> None:
    given_ = torch.tensor(labels)
    if max(given_.bincount()) < 2:
        with pytest.raises(ConfigError, match="every class has a single clip"):
            hold_out(given_, part=part, seed=0)
        return
    out = hold_out(given_, part=part, seed=0)
    assert torch.equal(out, hold_out(given_, part=part, seed=0))
    for label in given_.unique():
        whole, held = (given_ == label).sum().item(), out[given_ == label].sum().item()
        assert held == min(max(1, round(whole * part)), whole - 1)


@pytest.mark.parametrize("method", ["adamw", "lbfgs"])
def test_a_probe_learns_and_says_what_it_chose(method: str) -> None:
    x, labels = drawn(400, noise=0.5)
    others, truth = drawn(400, noise=0.5)
    probe = Probe(method=method, rates=(1e-6, 1e-2), decays=(1e-4,), strengths=(1e-7, 1.0))
    fitted = fit_probe(x, labels, classes=4, probe=probe)
    right = (fitted.scores(others).argmax(1) == truth).double().mean()
    assert right > 0.9
    assert fitted.chosen == fitted.chosen | ({"lr": 1e-2} if method == "adamw" else {"C": 1.0})
    assert len(fitted.chosen["held_out_top1"]) == 2
    again = fit_probe(x, labels, classes=4, probe=probe)
    assert torch.equal(again.head.weight, fitted.head.weight)


def test_a_head_that_diverged_is_not_chosen() -> None:
    x, labels = drawn(200, noise=0.5)
    fitted = fit_probe(x, labels, classes=4, probe=Probe(rates=(3e37, 1e-2), decays=(1e-4,)))
    assert fitted.chosen["lr"] == 1e-2
    assert fitted.chosen["held_out_top1"][0] == 0


def test_the_last_training_is_on_all_rows() -> None:
    x, labels = drawn(60)
    probe = Probe(rates=(1e-2,), decays=(1e-4,), epochs=2)
    fitted = fit_probe(x, labels, classes=4, probe=probe)
    scale = scale_of(x, batch_norm=True)
    (head,) = train_heads(
        scale(x), labels, classes=4, settings=[(1e-2, 1e-4)], epochs=2, batch=probe.batch, seed=probe.seed
    )
    assert torch.equal(fitted.head.weight, head.weight)
    assert fitted.chosen == {"lr": 1e-2, "weight_decay": 1e-4, "held_out_top1": None}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"method": "svm"}, "Unknown method 'svm'; known: adamw, lbfgs"),
        ({"rates": ()}, "need at least one number each, above 0"),
        ({"decays": (0.0, -0.1)}, "`decays` must not be below 0, got -0.1"),
        ({"strengths": (0.0,)}, "need at least one number each, above 0"),
        ({"held_out": 1.0}, "`held_out` between 0 and 1; got 20, 256 and 1.0"),
        ({"epochs": 0}, "at least 1"),
    ],
)
@pytest.mark.unchecked
def test_impossible_probes(wrong: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Probe(**wrong)
