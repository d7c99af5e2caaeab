"""Drop path that belongs to a place in the epoch: exact probabilities, independence, every way to split."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import build
from torch import nn
from training import CONFIG, toy_train

from flexvideo.data import Batch
from flexvideo.models.drop import kept, of_layer
from flexvideo.models.videomamba import DropPath
from flexvideo.train import loss_sum
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
def test_a_batch_can_be_split_and_shuffled(places, data):
    order = data.draw(st.permutations(range(len(places))))
    cut = data.draw(st.integers(1, len(places) - 1))
    drop, x = DropPath(0.5), torch.ones(len(places), 1, 1)
    with keyed(drop, places, seed=1, epoch=2):
        whole = drop(x)
    for part in (order[:cut], order[cut:]):
        with keyed(drop, [places[i] for i in part], seed=1, epoch=2):
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


def test_a_clip_that_comes_again_in_an_epoch_draws_for_itself(tmp_path: Path):
    """In the same batch or in another one."""
    drawn: dict[int, list[int]] = {}

    def noted(model: nn.Module, batch: Batch) -> torch.Tensor:
        keys = [layer.keys for layer in model.modules() if isinstance(layer, DropPath)][-1].tolist()
        for index, key in zip(batch.indices, keys, strict=True):
            drawn.setdefault(index, []).append(key)
        return loss_sum(model(batch.clips, patch=batch.spec.patch), batch)

    toy_train(tmp_path, config=replace(CONFIG, steps=20, warmup_epochs=0), criterion=noted)
    assert max(map(len, drawn.values())) > CONFIG.augment.repeats * CONFIG.epochs
    found = [key for keys in drawn.values() for key in keys]
    assert len(set(found)) == len(found)


def test_other_draws_repeat_with_the_first_place():
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
