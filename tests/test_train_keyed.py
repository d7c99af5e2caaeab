"""Drop path that belongs to the sample: exact probabilities, independence, and every way to split a batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import build
from torch import nn

from flexvideo.models.drop import kept, of_layer
from flexvideo.models.videomamba import DropPath
from flexvideo.train.keyed import keyed


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_the_share_of_kept_samples_is_the_rate(rate):
    share = kept(of_layer(torch.arange(100_000), 0), rate=rate).double().mean()
    assert abs(share - (1 - rate)) < 0.005


def test_draws_of_neighbouring_samples_and_layers_are_independent():
    first, second = (
        kept(of_layer(torch.arange(100_000), layer), rate=0.5).double() - 0.5 for layer in (0, 1)
    )
    assert abs((first * second).mean()) < 0.003
    assert abs((first[1:] * first[:-1]).mean()) < 0.003


def test_known_draws():
    """A hash that changes would change every run that is resumed."""
    assert of_layer(torch.arange(3), 2).tolist() == [
        487617019471545679,
        -534904783426661026,
        -7459160825568275665,
    ]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=9, unique=True), st.data())
def test_a_batch_can_be_split_and_shuffled(indices, data):
    order = data.draw(st.permutations(range(len(indices))))
    cut = data.draw(st.integers(1, len(indices) - 1))
    drop, x = DropPath(0.5), torch.ones(len(indices), 1, 1)
    with keyed(drop, indices, seed=1, epoch=2):
        whole = drop(x)
    for part in (order[:cut], order[cut:]):
        with keyed(drop, [indices[i] for i in part], seed=1, epoch=2):
            assert torch.equal(drop(x[part]), whole[part])


def test_epochs_seeds_and_layers_draw_anew():
    layers = nn.ModuleList(DropPath(0.5) for _ in range(3))
    x, found = torch.ones(64, 1, 1), []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        with keyed(layers, range(64), seed=seed, epoch=epoch):
            found += [layer(x) for layer in layers]
    assert len({tuple(out.flatten().tolist()) for out in found}) == 9


def test_the_gradients_of_a_model_do_not_depend_on_the_split():
    model = build(drop_path_rate=0.5).train()
    clips = torch.randn(6, 3, 4, 32, 32)

    def gradients(*parts):
        model.zero_grad()
        for part in parts:
            with keyed(model, part, seed=0, epoch=0):
                model(clips[part]).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    whole, split = gradients([0, 1, 2, 3, 4, 5]), gradients([3, 1, 2], [5, 0, 4])
    for one, other in zip(whole, split, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_second_view_of_a_sample_draws_for_itself():
    drop, x = DropPath(0.5), torch.ones(64, 1, 1)
    with keyed(drop, [*range(32), *range(32)], seed=0, epoch=0):
        first, second = drop(x).chunk(2)
    assert not torch.equal(first, second)


def test_other_draws_repeat_with_the_first_sample():
    dropout, x = nn.Dropout(0.5), torch.ones(64)
    outs = []
    for _ in range(2):
        with keyed(dropout, [5, 6], seed=0, epoch=0):
            outs.append(dropout(x))
    assert torch.equal(*outs)


def test_keys_are_gone_after_an_error():
    drop = DropPath(0.5)
    with pytest.raises(RuntimeError, match="stop"), keyed(drop, [1], seed=0, epoch=0):
        raise RuntimeError("stop")
    assert drop.keys is None
