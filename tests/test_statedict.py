"""From names and shapes to the model they belong to: every wrapping, every prefix, every contradiction."""

import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flexvideo.errors import CheckpointError
from flexvideo.geometry import Base
from flexvideo.layout import Layout
from flexvideo.statedict import interpret, some

SMALL = Layout(Base(4, 32, 32, (8, 8)), depth=2, embed_dim=32, channels=3, num_classes=5)


def synthetic(layout: Layout = SMALL) -> dict[str, Tensor]:
    return {name: torch.randn(shape) for name, shape in layout.shapes().items()}


def image_weights() -> dict[str, Tensor]:
    state = synthetic()
    del state["temporal_pos_embedding"]
    return state | {"patch_embed.proj.weight": state["patch_embed.proj.weight"].squeeze(2)}


@pytest.mark.parametrize(
    ("depth", "width", "frames", "classes", "count"),
    [(24, 192, 16, 400, 7_035_280), (24, 384, 16, 400, 25_571_728), (32, 576, 16, 400, 73_880_464)],
)
def test_the_table_of_shapes_counts_the_official_parameters(depth, width, frames, classes, count):
    layout = Layout(Base(frames, 224, 224, (16, 16)), depth, width, 3, classes)
    assert sum(math.prod(shape) for shape in layout.shapes().values()) == count
    assert len(layout.shapes()) == 17 * depth + 8


def test_a_bare_state_dict_needs_no_remark():
    state = synthetic()
    found = interpret(state)
    assert found.layout == SMALL
    assert (found.translated, found.lost) == ((), ())
    assert {name: id(value) for name, value in found.state.items()} == {
        name: id(value) for name, value in state.items()
    }


@given(
    frames=st.integers(1, 6),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    patch=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    tubelet=st.integers(1, 3),
    depth=st.integers(1, 3),
    width=st.integers(1, 40),
    channels=st.integers(1, 4),
    classes=st.integers(0, 7),
)
@settings(deadline=None, max_examples=60)
def test_every_layout_is_read_back_from_its_shapes(
    frames, grid, patch, tubelet, depth, width, channels, classes
):
    size = (grid[0] * patch[0], grid[1] * patch[1])
    layout = Layout(Base(frames * tubelet, *size, patch, tubelet), depth, width, channels, classes)
    state = {name: torch.empty(shape, device="meta") for name, shape in layout.shapes().items()}
    given_size = None if grid[0] == grid[1] else size
    assert interpret(state, img_size=given_size).layout == layout


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict"])
def test_wrappers_are_opened_and_what_lies_beside_is_named(wrapper):
    found = interpret({"epoch": 3, wrapper: synthetic(), "optimizer": {}})
    assert found.layout == SMALL
    assert found.translated == (
        f"the weights are under '{wrapper}'",
        f"left aside what is not under '{wrapper}': epoch, optimizer",
    )
    assert found.lost == ()


def test_wrappers_in_wrappers_are_opened():
    assert interpret({"state_dict": {"module": synthetic()}}).layout == SMALL
    endless: dict[str, Any] = {}
    endless["model"] = endless
    with pytest.raises(CheckpointError, match="holds no tensors"):
        interpret(endless)


@pytest.mark.parametrize("wrapper", ["model_state_dict", "net", "model_ema", "weights", 0])
def test_the_one_state_dict_is_found_under_any_name(wrapper):
    found = interpret({"optimizer": {"state": {}}, wrapper: synthetic(), "epoch": 3})
    assert found.layout == SMALL
    assert found.translated[0] == f"the weights are under {wrapper!r}"


def test_of_several_state_dicts_the_usual_one_is_taken_or_none():
    other = {name: value + 1 for name, value in synthetic().items()}
    state = synthetic()
    assert interpret({"ema": other, "model": state}).state["norm_f.weight"] is state["norm_f.weight"]
    with pytest.raises(
        CheckpointError, match="holds 2 state dicts, under 'ema', 'net': save the one that you want"
    ):
        interpret({"ema": other, "net": state})


@pytest.mark.parametrize(
    "prefix", ["backbone.", "encoder.", "module.", "_orig_mod.", "module.backbone.", "model.encoder."]
)
def test_prefixes_are_removed(prefix):
    state = synthetic()
    found = interpret({prefix + name: value for name, value in state.items()})
    assert found.layout == SMALL
    assert found.state.keys() == state.keys()
    assert found.lost == ()


def test_a_compiled_block_in_the_middle_of_a_name():
    state = {name.replace("layers.1.", "layers.1._orig_mod."): value for name, value in synthetic().items()}
    assert interpret(state).layout == SMALL


def test_a_head_beside_a_prefixed_backbone_is_taken_as_the_official_script_does():
    state = {
        name if name.startswith("head") else f"backbone.{name}": value for name, value in synthetic().items()
    }
    found = interpret(state)
    assert found.layout.num_classes == 5
    assert found.lost == ()


def test_other_models_beside_the_prefix_are_left_out_and_said():
    state: dict[str, Any] = {f"vision_encoder.{name}": value for name, value in synthetic().items()}
    found = interpret(state | {"text_encoder.weight": torch.ones(2), "temp": torch.ones(())})
    assert found.layout == SMALL
    assert found.lost == ("left out 2 tensors outside 'vision_encoder.': text_encoder.weight, temp",)


def test_masked_pretraining_is_renamed_and_its_decoder_dropped_aloud():
    state = synthetic()
    state["norm.weight"] = state.pop("norm_f.weight")
    del state["head.weight"], state["head.bias"]
    state |= {"clip_decoder.0.head.weight": torch.ones(3, 2), "clip_decoder.0.norm.weight": torch.ones(2)}
    found = interpret(state)
    assert found.layout.num_classes == 0
    assert torch.equal(found.state["norm_f.weight"], state["norm.weight"])
    assert found.translated == ("took norm.weight, as masked pretraining calls it, for norm_f.weight",)
    assert found.lost == (
        "left out the decoder of masked pretraining (clip_decoder.0.head.weight, clip_decoder.0.norm.weight)",
        "there is no head, so num_classes is 0 and model(clip) returns features",
    )


def test_image_weights_become_video_weights_with_an_empty_temporal_table():
    state = image_weights()
    found = interpret({"model": state})
    assert found.layout.base == Base(8, 32, 32, (8, 8))
    assert torch.equal(found.state["patch_embed.proj.weight"][:, :, 0], state["patch_embed.proj.weight"])
    assert not found.state["temporal_pos_embedding"].any()
    assert (
        found.translated[-1] == "made the 2-D patch_embed.proj.weight (32, 3, 8, 8) 3-D, one frame a tubelet"
    )
    assert found.lost == ("these are image weights, so the temporal table is 8 rows of zeros",)
    assert "patch_embed.proj.weight" in state
    assert "temporal_pos_embedding" not in state, "the caller's mapping must stay as it is"


def test_text_beside_the_tensors_is_left_out_and_said():
    assert interpret(synthetic() | {"epoch": 3}).lost == ("left out what is no tensor: epoch",)


def test_frames_that_are_not_square_need_their_size():
    layout = Layout(Base(4, 16, 40, (8, 8)), depth=1, embed_dim=32, channels=3, num_classes=5)
    state = synthetic(layout)
    with pytest.raises(
        CheckpointError, match=r"pos_embed has 10 rows beside the class token, .* config\.json"
    ):
        interpret(state)
    assert interpret(state, img_size=(16, 40)).layout == layout
    with pytest.raises(CheckpointError, match="frames of 40 x 40 pixels give 5 x 5 patches of 8 x 8, but"):
        interpret(state, img_size=(40, 40))


def without(*names: str, **values: Tensor) -> dict[str, Tensor]:
    return {name: value for name, value in synthetic().items() if name not in names} | values


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "holds no tensors: .*; its keys are nothing"),
        (
            {"model": {"epoch": 3}},
            "holds no tensors: .* bare or under one of 'model', .*; its keys are epoch",
        ),
        ({"conv1.weight": torch.ones(4, 3, 7, 7)}, r"is no VideoMamba: .*found conv1\.weight \(4, 3, 7, 7\)"),
        (
            {f"{p}.{n}": v for p in ("teacher", "student") for n, v in synthetic().items()},
            r"holds 2 models, under the prefixes 'teacher\.', 'student\.'",
        ),
        (without("temporal_pos_embedding"), "temporal_pos_embedding is missing"),
        (without("pos_embed"), "pos_embed is missing"),
        (
            without("layers.1.mixer.D_b"),
            r"does not fit a VideoMamba\. missing: layers\.1\.mixer\.D_b \(64,\)\.$",
        ),
        (without("head.bias"), r"missing: head\.bias \(5,\)"),
        (without("head.weight"), r"missing: head\.weight \(5, 32\)"),
        (
            without() | {"head.bias": torch.ones(7)},
            r"wrong shape: head\.bias \(7,\), expected \(5,\)",
        ),
        (
            without() | {"head.weight": torch.ones(5, 48)},
            r"wrong shape: head\.weight \(5, 48\), expected \(5, 32\)",
        ),
        (without() | {"layers.0.norm.bias": torch.ones(32)}, r"unknown: layers\.0\.norm\.bias \(32,\)"),
        (
            without() | {"layers.7.norm.weight": torch.ones(32)},
            r"layers\.2 is missing among 3 layers, 0, 1, 7",
        ),
        (
            without() | {"pos_embed": torch.ones(17, 32)},
            r"pos_embed is \(17, 32\), expected \(1, tokens, width\)",
        ),
        (without() | {"pos_embed": torch.ones(1, 1, 32)}, "pos_embed has 0 rows beside the class token"),
        (
            without() | {"patch_embed.proj.weight": torch.ones(32, 192)},
            r"patch_embed\.proj\.weight is \(32, 192\), expected \(width, channels, tubelet",
        ),
        (
            without() | {"layers.0.mixer.D": torch.ones(64, dtype=torch.int8)},
            r"not floating point: layers\.0\.mixer\.D \(torch\.int8\)",
        ),
        (without() | {"head.weight": torch.ones(())}, r"wrong shape|unknown: head\.weight \(\)"),
    ],
)
def test_what_is_no_videomamba_is_refused_by_name_and_shape(raw, message):
    with pytest.raises(CheckpointError, match=message) as error:
        interpret(raw, where="weights.pth")
    assert str(error.value).startswith("weights.pth")
    pickle.loads(pickle.dumps(error.value))


def test_everything_wrong_is_named_at_once():
    raw = without("layers.0.mixer.D", "layers.1.norm.weight") | {
        "cls_token": torch.ones(1, 32),
        "rope.freqs": torch.ones(3),
    }
    with pytest.raises(CheckpointError) as error:
        interpret(raw)
    assert str(error.value) == (
        "the state dict does not fit a VideoMamba. wrong shape: cls_token (1, 32), expected (1, 1, 32); "
        "missing: layers.0.mixer.D (64,), layers.1.norm.weight (32,); unknown: rope.freqs (3,)."
    )


def test_some():
    assert some([]) == "nothing"
    assert some(range(6)) == "0, 1, 2, 3 and 2 more"
