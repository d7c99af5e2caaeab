"""Parameter groups, schedule and average: the official rules, and the exception for what flexes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import build, clip
from torch import nn

import flexvideo as fv
from flexvideo.errors import ConfigError
from flexvideo.train.ema import Ema
from flexvideo.train.groups import param_groups
from flexvideo.train.schedule import learning_rate

FLEXED = {"patch_embed.proj.weight", "pos_embed", "temporal_pos_embedding"}


def by_name(model, **settings):
    return {name: group for group in param_groups(model, **settings) for name in group["names"]}


def test_every_parameter_is_in_one_group_beside_its_name():
    model = fv.make_flexible(build())
    groups, parameters = param_groups(model, layer_decay=0.8), dict(model.named_parameters())
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(parameters)
    for group in groups:
        assert [id(value) for value in group["params"]] == [id(parameters[name]) for name in group["names"]]


def test_decay_as_the_official_rule_has_it():
    groups = by_name(build())
    decayed = {name for name, group in groups.items() if group["weight_decay"]}
    assert {
        "head.weight",
        "layers.0.mixer.A_log",
        "layers.1.mixer.A_b_log",
        "patch_embed.proj.weight",
    } <= decayed
    assert {"layers.0.mixer.conv1d.weight", "layers.0.mixer.in_proj.weight"} <= decayed
    kept = {"cls_token", "pos_embed", "temporal_pos_embedding", "layers.0.mixer.D", "layers.0.norm.weight"}
    assert not decayed & (kept | {"head.bias", "layers.0.mixer.dt_proj.bias"})


def test_layer_decay_as_the_official_rule_has_it_for_a_plain_model():
    groups = by_name(build(), layer_decay=0.75)
    first = {name for name, group in groups.items() if group["lr_scale"] != 1}
    assert first == {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert {groups[name]["lr_scale"] for name in first} == {0.75**3}


def test_what_flexes_is_apart_and_at_full_rate():
    groups = by_name(fv.make_flexible(build()), layer_decay=0.75)
    assert {name for name, group in groups.items() if group["kind"] == "flexed"} == FLEXED
    assert all(groups[name]["lr_scale"] == 1 for name in FLEXED)
    assert {name for name, group in groups.items() if group["lr_scale"] != 1} == {
        "cls_token",
        "patch_embed.proj.bias",
    }
    scaled = by_name(fv.make_flexible(build()), flexed_lr=3.0)
    assert {name for name, group in scaled.items() if group["lr_scale"] == 3} == FLEXED


def test_names_of_a_model_inside_another():
    model = nn.ModuleDict({"backbone": fv.make_flexible(build(num_classes=0)), "head": nn.Linear(32, 3)})
    groups = by_name(model)
    assert {name for name, group in groups.items() if group["kind"] == "flexed"} == {
        f"backbone.{name}" for name in FLEXED
    }
    assert groups["backbone.pos_embed"]["weight_decay"] == 0


def test_frozen_parameters_stay_out():
    model = build()
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="Nothing to train: no parameter of VideoMamba"):
        param_groups(model)
    model.head.requires_grad_(True)
    assert set(by_name(model)) == {"head.weight", "head.bias"}


def test_layer_decay_needs_a_depth():
    with pytest.raises(ConfigError, match=r"Linear has no `get_num_layers\(\)`: leave `layer_decay` at 1"):
        param_groups(nn.Linear(2, 2), layer_decay=0.5)


def test_adamw_takes_the_groups_and_moves_everything():
    model = fv.make_flexible(build()).train()
    optimizer = torch.optim.AdamW(param_groups(model, layer_decay=0.75), lr=1e-2)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    model(clip(3, 48, 48), patch=12).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(before[name], value) for name, value in model.named_parameters())


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 400), st.data())
def test_the_rate_rises_then_falls(steps, data):
    warmup = data.draw(st.integers(0, steps - 1))
    rates = [
        learning_rate(step, steps=steps, warmup=warmup, peak=2.0, first=0.5, last=0.25)
        for step in range(steps)
    ]
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == rates[warmup] == 2.0
    assert rates[0] == (0.5 if warmup else 2.0)
    assert 0.25 < rates[-1] <= 2.0


def test_half_way_down_is_the_mean_of_both_ends():
    rate = learning_rate(55, steps=100, warmup=10, peak=1.0, last=0.5)
    assert math.isclose(rate, 0.75)


def test_the_average_is_the_weighted_sum_of_its_past():
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    average, expected = Ema(layer, decay=0.9), 0.0
    for step in range(200):
        layer.weight.data.fill_(float(step))
        average.update(step=step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.state["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_the_average_is_lent_and_given_back():
    model = build()
    average = Ema(model, decay=0.5)
    with torch.no_grad():
        model.head.weight += 1
    own = model.head.weight.detach().clone()
    with average.used():
        torch.testing.assert_close(model.head.weight.detach(), own - 1)
    assert torch.equal(model.head.weight, own)
    other = Ema(build(), decay=0.5)
    other.load(average.state)
    assert all(torch.equal(other.state[name], value) for name, value in average.state.items())
