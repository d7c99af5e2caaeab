"""Recipes as data: JSON and back, refusals by name, and the figures of the official scripts."""

import json
from dataclasses import fields, replace

import pytest

from flexvideo.data.augment import AUGMENTS
from flexvideo.errors import ConfigError
from flexvideo.train import PRESETS, TrainConfig


@pytest.mark.parametrize("name", PRESETS)
def test_presets_come_back_from_json(name):
    config = TrainConfig.of(name)
    text = json.dumps(config.to_config())
    assert TrainConfig.of(json.loads(text)) == config
    assert TrainConfig.of(config) is config


def test_json_may_write_whole_numbers_for_floats():
    config = TrainConfig.of({"lr": 1, "betas": [0, 0.5], "ema": 0, "steps": None})
    assert (config.lr, config.betas, config.ema) == (1.0, (0.0, 0.5), 0.0)
    assert all(type(beta) is float for beta in config.betas)


def test_an_augmentation_by_name():
    assert TrainConfig.of({"augment": "videomamba"}).augment == AUGMENTS["videomamba"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("papr", "Unknown preset 'papr'; known are 'paper', 'paper-finetune'"),
        (
            {"learning_rate": 1.0, "lr": 1.0},
            r"Unknown fields \['learning_rate'\] of a TrainConfig; its fields are 'epochs', ",
        ),
        ({"log_evry": 3}, r"Unknown fields \['log_evry'\] of a TrainConfig. Did you mean 'log_every' by"),
        ({"lr": "fast"}, "`lr` must be a number, got 'fast'"),
        ({"steps": 1.5}, "`steps` must be a whole number or None, got 1.5"),
        ({"bf16": 1}, "`bf16` must be true or false, got 1"),
        ({"epochs": True}, "`epochs` must be a whole number, got True"),
        ({"betas": [0.9]}, r"`betas` must be two numbers, got \[0.9\]"),
        ({"betas": [0.9, "x"]}, "`betas` must be two numbers"),
        ({"augment": {"flipp": True}}, r"Unknown fields \['flipp'\] of an augmentation"),
        ({"augment": {"flip": "no"}}, "Augment: `flip` must be true or false or None, got 'no'"),
        ({"augment": {"mixup": "a"}}, "Augment: `mixup` must be a number, got 'a'"),
        ({"augment": {"scale": [0.5]}}, r"Augment: `scale` must be two numbers or None, got \[0.5\]"),
        ({"epochs": 0}, "`epochs` must be at least 1, got 0"),
        ({"specs": 0}, "`specs` must be at least 1, got 0"),
        ({"warmup_epochs": 13}, "`warmup_epochs` must be from 0 to epochs=12, got 13"),
        ({"lr": float("nan")}, "`lr` must be a finite number, at least 0, got nan"),
        ({"betas": [0.9, 1.0]}, r"`betas` must be two numbers from 0 to below 1, got \(0.9, 1.0\)"),
        ({"layer_decay": 0.0}, "`layer_decay` must be above 0 and at most 1, got 0.0"),
        ({"clip_norm": 0.0}, "`clip_norm` must be above 0, or None, got 0.0"),
        ({"ema": 1.0}, "`ema` must be from 0 to below 1, or None, got 1.0"),
    ],
)
def test_refusals(config, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.of(config)


def test_every_field_is_described():
    described = TrainConfig.__doc__ or ""
    assert all(f"        {field.name}: " in described for field in fields(TrainConfig))


def test_the_paper():
    paper = PRESETS["paper"]
    assert (paper.lr, paper.weight_decay, paper.warmup_epochs, paper.epochs) == (1e-3, 0.05, 5, 12)
    assert replace(paper, epochs=30) == PRESETS["paper-finetune"]
    official = AUGMENTS["videomamba"]
    assert paper.augment == replace(official, mixup=0.0, cutmix=0.0, smoothing=0.0)
    assert not paper.augment.soft


@pytest.mark.parametrize(
    ("name", "epochs", "lr", "layer_decay", "drop_path", "clips"),
    [
        ("videomamba-k400-sup", 50, 1e-4, 0.75, 0.8, 512),
        ("videomamba-k400-mask-ft", 45, 1e-4, 0.8, 0.4, 512),
        ("videomamba-coin", 30, 2e-4, 0.8, 0.4, 256),
        ("videomamba-breakfast", 45, 2e-4, 0.8, 0.4, 256),
    ],
)
def test_the_official_scripts(name, epochs, lr, layer_decay, drop_path, clips):
    config = PRESETS[name]
    found = (config.epochs, config.lr, config.layer_decay, config.drop_path, config.tokens // (16 * 196))
    assert found == (epochs, lr, layer_decay, drop_path, clips)
    assert (config.warmup_epochs, config.weight_decay, config.betas) == (5, 0.05, (0.9, 0.999))
