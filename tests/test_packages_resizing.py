"""The packages' own resizing: matched where it is right, and what is different where it is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case
from cases_packages import DIM, FRAMES, HF, IMAGE, JEPA, PATCH, eva, flexivit, hf, swin3d, timm_vit
from torch import Tensor, nn

import flexvideo as fv


def built(make: Callable[[], nn.Module]) -> nn.Module:
    """A model in eval mode, with no parameter at a value that would hide a mistake."""
    return Case("", make, "", (1, 1, 1), ((1, 1, 1),) * 3, None, "").build()


def image(height: int, width: int) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height))


def video(frames: int, height: int, width: int) -> Tensor:
    return torch.rand(2, frames, 3, height, width, generator=torch.Generator().manual_seed(height))


def assert_agrees(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


SIZES = [(48, 48), (24, 24), (24, 56), (64, 40), (88, 16)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


@each_size
def test_vit_of_transformers(size: tuple[int, int]) -> None:
    model, x = built(hf("ViTModel", "ViTConfig")), image(*size)
    expected = model(x, interpolate_pos_encoding=True).last_hidden_state
    fv.make_flexible(model, policy="static-patch", rule="paper")
    assert_agrees(model(x).last_hidden_state, expected)
    # Its own option finds the table at the right size, whether the frame is square or not.
    assert torch.equal(model(x, interpolate_pos_encoding=True).last_hidden_state, model(x).last_hidden_state)
    fv.make_flexible(model, rule="auto")
    assert torch.equal(model(x).last_hidden_state, expected) is False


@each_size
def test_dinov2_of_transformers(size: tuple[int, int]) -> None:
    model, x = built(hf("Dinov2Model", "Dinov2Config")), image(*size)
    expected = model(x).last_hidden_state
    fv.make_flexible(model, policy="static-patch", rule="paper")
    assert_agrees(model(x).last_hidden_state, expected)


@each_size
def test_dinov2_with_registers_antialiases(size: tuple[int, int]) -> None:
    model, x = built(hf("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig")), image(*size)
    expected = model(x).last_hidden_state
    fv.make_flexible(model, policy="static-patch", rule="auto")
    assert_agrees(model(x).last_hidden_state, expected)


def test_a_flexible_dinov2_is_not_resized_again() -> None:
    """Its own code would take 2 x 8 tokens for 4 x 4 that it is to resize, and mix them up."""
    model, x = built(hf("Dinov2Model", "Dinov2Config")), image(16, 64)
    expected = model(x).last_hidden_state
    fv.make_flexible(model, policy="static-patch", rule="paper")
    assert_agrees(model(x).last_hidden_state, expected)


@each_size
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reg_tokens": 4},
        {"reg_tokens": 4, "no_embed_class": True},
        {"class_token": False, "global_pool": "avg"},
    ],
    ids=lambda options: "-".join(options),
)
def test_timm_with_dynamic_img_size(size: tuple[int, int], options: dict[str, Any]) -> None:
    model, x = built(timm_vit(dynamic_img_size=True, **options)), image(*size)
    expected = model.forward_features(x)
    fv.make_flexible(model, policy="static-patch", rule="auto")
    assert_agrees(model.forward_features(x), expected)


@pytest.mark.parametrize(("size", "patch"), [((48, 48), 12), ((24, 40), 4), ((30, 30), 10), ((60, 36), 6)])
def test_timm_set_input_size(size: tuple[int, int], patch: int) -> None:
    """What timm does once and for good, to its table and its kernel, in every forward and with gradients."""
    model, x = built(flexivit), image(*size)
    twin = built(flexivit)
    twin.set_input_size(img_size=size, patch_size=patch)
    fv.make_flexible(model, policy="flex-all", rule="pi")
    assert_agrees(model(x, patch=patch), twin(x))
    model(x, patch=patch).sum().backward()
    assert model.patch_embed.proj.weight.grad.shape == (DIM, 3, PATCH, PATCH)


@pytest.mark.parametrize("size", [(48, 48), (24, 40), (64, 32)])
@pytest.mark.parametrize(
    "options",
    [
        {"use_rot_pos_emb": True},
        {"use_rot_pos_emb": True, "ref_feat_shape": 4},
        {"use_rot_pos_emb": True, "rope_type": "mixed", "use_abs_pos_emb": False},
        {"use_rot_pos_emb": True, "rope_type": "dinov3", "num_reg_tokens": 4},
        {"use_rot_pos_emb": True, "dynamic_img_size": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_timm_eva_set_input_size(options: dict[str, Any], size: tuple[int, int]) -> None:
    model, twin, x = built(eva(**options)), built(eva(**options)), image(*size)
    twin.set_input_size(img_size=size)
    fv.make_flexible(model, policy="static-patch", rule="auto")
    assert_agrees(model.forward_features(x), twin.forward_features(x))


def test_timm_pads_what_is_left_over() -> None:
    """By itself it sees a margin of zeros; flexible, it resizes the frame to whole patches."""
    model = built(timm_vit(dynamic_img_size=True, dynamic_img_pad=True))
    padded = model(image(45, 37))
    fv.make_flexible(model, policy="static-patch", rule="auto")
    assert not torch.equal(model(image(45, 37)), padded)
    assert model(image(45, 37)).shape == padded.shape


# Models that cannot resize themselves, against ones built for the other size.

BUILT = {
    "TimeSformer": ("TimesformerModel", "TimesformerConfig", HF),
    "ViViT": ("VivitModel", "VivitConfig", HF | {"patch_size": None, "tubelet_size": [2, PATCH, PATCH]}),
    "V-JEPA 2": ("VJEPA2Model", "VJEPA2Config", HF | JEPA),
}
NAMES = {"V-JEPA 2": ("crop_size", "frames_per_clip")}


@pytest.mark.parametrize(("frames", "side"), [(8, 48), (2, 24), (6, 32), (4, 56)])
@pytest.mark.parametrize("name", BUILT)
def test_as_a_model_built_for_that_size(name: str, frames: int, side: int) -> None:
    model_name, config, options = BUILT[name]
    size, length = NAMES.get(name, ("image_size", "num_frames"))
    model = built(hf(model_name, config, **(options | {length: FRAMES})))
    fv.make_flexible(model, policy="static-patch")
    other = hf(model_name, config, **(options | {size: side, length: frames}))().eval()
    other.load_state_dict(fv.bake(model, frames=frames, size=side).state_dict())
    x = video(frames, side, side)
    assert_agrees(model(x)[0], other(x)[0])


def test_timesformer_by_itself_resizes_to_the_nearest_row_and_counts_on_its_frames() -> None:
    model = built(hf("TimesformerModel", "TimesformerConfig", num_frames=FRAMES))
    embeddings = model.embeddings
    wide, long = video(FRAMES, 48, 48), video(2 * FRAMES, 32, 32)
    alone = model(wide)[0], model(long)[0]
    fv.make_flexible(model, policy="static-patch")
    assert (model(wide)[0] - alone[0]).abs().max() > 1e-2
    fv.restore(model)
    # Without positions only what the layers do with the tokens is left.
    with torch.no_grad():
        embeddings.position_embeddings.zero_()
        embeddings.time_embeddings.zero_()
    alone = model(wide)[0], model(long)[0]
    built_for_it = hf("TimesformerModel", "TimesformerConfig", num_frames=2 * FRAMES)().eval()
    state = dict(model.state_dict())
    state["embeddings.time_embeddings"] = torch.zeros(1, 2 * FRAMES, DIM)
    built_for_it.load_state_dict(state)
    fv.make_flexible(model, policy="static-patch")
    assert_agrees(model(wide)[0], alone[0])
    assert_agrees(model(long)[0], built_for_it(long)[0])
    assert (alone[1] - built_for_it(long)[0]).abs().max() > 1e-3  # frames of neighbouring places mixed


def test_videomae_by_itself_takes_no_other_size() -> None:
    model = built(hf("VideoMAEModel", "VideoMAEConfig", num_frames=FRAMES))
    for x in (video(FRAMES, 48, 48), video(2 * FRAMES, IMAGE, IMAGE)):
        with pytest.raises((ValueError, RuntimeError), match=r"doesn't match|must match"):
            model(x)
        assert fv.restore(fv.make_flexible(model, policy="static-patch")) is model
        fv.make_flexible(model, policy="static-patch")
        assert model(x).last_hidden_state.isfinite().all()
        fv.restore(model)


@pytest.mark.parametrize(("rule", "antialias"), [("paper", False), ("auto", True)])
@pytest.mark.parametrize(("frames", "side"), [(8, 48), (2, 24)])
def test_videomae_as_interpolated_by_torch(rule: str, antialias: bool, frames: int, side: int) -> None:
    """Its table reshaped to the clip and interpolated in time, then in space, in a model of that size."""
    model = built(hf("VideoMAEModel", "VideoMAEConfig", num_frames=FRAMES))
    other = hf("VideoMAEModel", "VideoMAEConfig", num_frames=frames, image_size=side)().eval()
    other.load_state_dict(model.state_dict())
    steps, grid = frames // 2, side // PATCH
    table = model.embeddings.position_embeddings.double().view(1, 2, 16 * DIM).transpose(1, 2)[:, :, None]
    table = nn.functional.interpolate(table, (1, steps), mode="bilinear", antialias=antialias)
    table = table[0, :, 0].t().reshape(steps, 4, 4, DIM).permute(0, 3, 1, 2)
    table = nn.functional.interpolate(table, (grid, grid), mode="bicubic", antialias=antialias)
    other.embeddings.position_embeddings = table.permute(0, 2, 3, 1).reshape(1, -1, DIM).float()
    fv.make_flexible(model, policy="static-patch", rule=rule)
    x = video(frames, side, side)
    assert_agrees(model(x)[0], other(x)[0])


def test_vivit_by_itself_fails() -> None:
    model, x = built(hf(*BUILT["ViViT"][:2], num_frames=FRAMES, **BUILT["ViViT"][2])), video(FRAMES, 48, 48)
    with pytest.raises(RuntimeError, match=r"shape|size"):
        model(x, interpolate_pos_encoding=True)
    fv.make_flexible(model, policy="static-patch")
    assert torch.equal(model(x)[0], model(x, interpolate_pos_encoding=True)[0])


@pytest.mark.parametrize("size", [(8, 48, 32), (2, 24, 56)])
def test_vjepa2_numbers_the_tokens_of_a_frame_that_is_not_square(size: tuple[int, int, int]) -> None:
    model = built(hf(*BUILT["V-JEPA 2"][:2], **BUILT["V-JEPA 2"][2]))
    attention = model.encoder.layer[0].attention
    places = []
    apply = attention.apply_rotary_embeddings
    attention.apply_rotary_embeddings = lambda qk, at: places.append(torch.stack(at, dim=-1)) or apply(qk, at)
    x = video(*size)
    model(x)
    fv.make_flexible(model, policy="static-patch")
    model(x)
    steps, rows, columns = size[0] // 2, size[1] // PATCH, size[2] // PATCH
    expected = torch.cartesian_prod(*map(torch.arange, (steps, rows, columns)))
    assert torch.equal(places[-1], expected)
    assert not torch.equal(places[0], expected)  # by itself: in squares of 4 x 4


def test_swin3d_by_itself_misplaces_tokens_in_windows_that_a_small_grid_cuts() -> None:
    model = swin3d()
    attention: Any = model.features[0][0].attn
    full = attention.window_size
    offsets = [torch.arange(1 - count, count) for count in full]
    with torch.no_grad():  # the bias of each pair is how far apart its columns are
        attention.relative_position_bias_table.copy_(
            torch.cartesian_prod(*offsets)[:, 2:].expand_as(attention.relative_position_bias_table)
        )
    own = type(attention).get_relative_position_bias
    fv.make_flexible(model, policy="static-patch")
    agree, seen = [], []

    def look(module: Any, args: tuple[Tensor]) -> None:
        window = [min(pair) for pair in zip(full, args[0].shape[1:4], strict=True)]
        bias, column = module.get_relative_position_bias(window)[0, 0], torch.arange(window[2])
        columns_of_tokens = column.repeat(window[0] * window[1])
        assert torch.equal(bias, (columns_of_tokens[:, None] - columns_of_tokens).float())
        agree.append(torch.equal(own(module, window)[0, 0], bias))
        seen.append(window)

    attention.register_forward_pre_hook(look)
    for size in ((4, 28, 28), (2, 28, 28), (4, 16, 24), (4, 40, 16)):
        model(torch.rand(1, 3, *size))
    assert seen == [[2, 7, 7], [1, 7, 7], [2, 4, 6], [2, 7, 4]]
    assert agree == [True, True, False, False]
