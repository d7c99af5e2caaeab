"""Files and folders in, models out, and back again to the byte."""

import argparse
import contextlib
import json
import logging
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from official_layout import VisionMamba
from safetensors.torch import load_file, save_file
from small import SIZES, build, clip

import flexvideo as fv
from flexvideo.checkpoints import describe, load
from flexvideo.errors import (
    CheckpointError,
    CheckpointWarning,
    ConfigError,
    FlexVideoError,
    UnsupportedModelError,
)
from flexvideo.modelconfig import agree, parse_config
from flexvideo.saving import config_text, save
from flexvideo.statedict import interpret

SHAPES = {name: tuple(value.shape) for name, value in build().state_dict().items()}
GOLDEN = Path(__file__).parent / "data" / "videomamba_official_a.safetensors"


def folder_of(model: fv.VideoMamba, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder / "model.safetensors")
    (folder / "config.json").write_text(config_text(model))
    return folder


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
def test_what_is_saved_comes_back_the_same(tmp_path, name):
    model = build(drop_path_rate=0.3, norm_epsilon=1e-4)
    save(model, tmp_path / name)
    back = load(tmp_path / name)
    assert type(back) is fv.VideoMamba
    assert not back.training
    assert back.source == str(tmp_path / name)
    assert all(parameter.requires_grad for parameter in back.parameters())
    if name.endswith(".safetensors"):
        assert back.config["norm_epsilon"] == 1e-4
        assert back.config["drop_path_rate"] == 0.3
        assert torch.equal(back(clip()), model(clip()))
    assert back.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in back.state_dict().items())


@pytest.mark.parametrize(
    "policy", [None, "temporal", "static-patch", "static-tokens", "flexivit", "flex-all"]
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.filterwarnings("ignore:.*is a bare state dict")
def test_save_load_save_is_byte_identical(tmp_path, policy, suffix):
    model = build()
    model.labels, model.mean = ("a", "b", "c", "d", "é"), (0.1, 0.2, 0.3)
    if policy is not None and suffix == "safetensors":
        fv.make_flexible(model, policy=policy, rule="pi")
    save(model, tmp_path / f"1.{suffix}")
    save(load(tmp_path / f"1.{suffix}"), tmp_path / f"2.{suffix}")
    assert (tmp_path / f"1.{suffix}").read_bytes() == (tmp_path / f"2.{suffix}").read_bytes()


@pytest.mark.parametrize("as_folder", [True, False])
def test_policy_rule_and_facts_travel_with_the_weights(tmp_path, as_folder):
    model = fv.make_flexible(build(), policy=fv.FlexAll(frames=(4, 8), sizes=(32, (16, 48))), rule="paper")
    model.labels, model.std = ("a", "b", "c", "d", "e"), (0.5, 0.5, 0.5)
    if as_folder:
        path = folder_of(model, tmp_path)
    else:
        path = tmp_path / "one.safetensors"
        save(model, path)
    back = load(path)
    assert fv.flex_config(back) == fv.flex_config(model)
    assert (back.labels, back.mean, back.std) == (model.labels, model.mean, model.std)
    for size in SIZES:
        assert torch.equal(back(clip(*size)), model(clip(*size)))


def test_the_caller_decides_over_the_record(tmp_path):
    save(fv.make_flexible(build(), policy="flexivit", rule="paper"), tmp_path / "m.safetensors")
    config = fv.flex_config(load(tmp_path / "m.safetensors", policy="temporal"))
    assert config["policy"]["name"] == "temporal"
    assert config["rule"]["kernel"] == "paper"
    config = fv.flex_config(load(tmp_path / "m.safetensors", rule="pi"))
    assert (config["policy"]["name"], config["rule"]["kernel"]) == ("flexivit", "pi")


def test_a_plain_file_becomes_flexible_on_request(tmp_path):
    save(build(), tmp_path / "m.pth")
    assert load(tmp_path / "m.pth", policy="static-tokens")(clip(6, 48, 40)).shape == (1, 5)
    assert fv.flex_config(load(tmp_path / "m.pth", rule="pi"))["rule"]["kernel"] == "pi"
    with pytest.raises(FlexVideoError, match="Unknown policy"):
        load(tmp_path / "m.pth", policy="no-such-policy")


def test_a_bare_state_dict_says_that_it_forgets_the_policy(tmp_path):
    model = fv.make_flexible(build(), rule="pi")
    with pytest.warns(CheckpointWarning, match="bare state dict: it does not record .*static-tokens"):
        save(model, tmp_path / "m.pth")
    state = torch.load(tmp_path / "m.pth", weights_only=True)
    assert list(state) == list(model.state_dict())


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("labels", ("a", "b", "c", "d", "e"), r"{'labels': 'a, b, c, d and 1 more'}"),
        ("mean", [0.5, 0.5, 0.5], r"{'mean': \(0\.5, 0\.5, 0\.5\)}"),
        ("std", (1.0, 1.0, 1.0), r"{'std': \(1\.0, 1\.0, 1\.0\)}"),
        ("license", "mit", "{'license': 'mit'}"),
    ],
)
@pytest.mark.unchecked
def test_a_bare_state_dict_says_that_it_forgets_facts_of_a_plain_model(tmp_path, name, value, says):
    model = build()
    setattr(model, name, value)
    with pytest.warns(CheckpointWarning, match=rf"m\.pth is a bare state dict: it does not record {says}; "):
        save(model, tmp_path / "m.pth")
    model.save_pretrained(tmp_path / "folder")
    with pytest.warns(CheckpointWarning, match=says):
        fv.convert(tmp_path / "folder", tmp_path / "converted.pth")


@pytest.mark.parametrize("size", [(72, 128), (64, 128), (33, 33), (32, 35)])
def test_a_bare_state_dict_says_that_it_forgets_a_size(tmp_path, size):
    """9 x 16 patches could be 12 x 12, those of 64 x 128 are no square, and a remainder leaves no trace."""
    model = build(img_size=size)
    expected = rf"m\.pth is a bare state dict: it does not record {{'img_size': \({size[0]}, {size[1]}\)}}; "
    with pytest.warns(CheckpointWarning, match=expected + r"\.safetensors does"):
        save(model, tmp_path / "m.pth")
    save(model, tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").patch_embed.img_size == size


def test_dtype_and_device(tmp_path):
    save(build(), tmp_path / "m.safetensors")
    model = load(tmp_path / "m.safetensors", dtype=torch.float64, device="cpu")
    assert {value.dtype for value in model.state_dict().values()} == {torch.float64}
    save(model.bfloat16(), tmp_path / "half.safetensors")
    assert {p.dtype for p in load(tmp_path / "half.safetensors").parameters()} == {torch.bfloat16}


def test_a_dtype_that_weights_cannot_have(tmp_path):
    save(build(), tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match=r"Weights cannot be torch\.int8: give one of torch\.float64, "):
        load(tmp_path / "m.safetensors", dtype=torch.int8)


@pytest.mark.unchecked
@pytest.mark.parametrize("dtype", ["bf16", "bfloat16"])
def test_a_dtype_is_one_of_torch(tmp_path, dtype):
    with pytest.raises(
        ConfigError, match=rf"^Weights cannot be '{dtype}': give a dtype of torch, .*bfloat16"
    ):
        load(tmp_path, dtype=dtype)


@pytest.mark.parametrize("how", ["meta", "sparse"])
def test_tensors_without_values_are_refused(tmp_path, how):
    state = build().state_dict()
    weight = state["head.weight"]
    state["head.weight"] = weight.to("meta") if how == "meta" else weight.to_sparse()
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"m\.pth: head\.weight has no plain values"):
        load(tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"m\.pth cannot be written: \w+ is a Tensor on meta without"):
        save(build().to("meta"), tmp_path / "m.pth")


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (torch.nn.DataParallel, r"^DataParallel is no VideoMamba: save the one inside, model\.module\.$"),
        (
            lambda model: torch.compile(model, backend="eager"),
            r"^OptimizedModule is no VideoMamba: save the one inside, model\._orig_mod\.$",
        ),
        (
            lambda model: torch.nn.Linear(2, 2),
            r"^Linear is no VideoMamba: save its state_dict\(\) and fv\.flex_config\(model\)\.$",
        ),
    ],
    ids=["parallel", "compiled", "other"],
)
def test_wrapped_and_other_models_are_not_saved(tmp_path, name, wrap, message):
    with pytest.raises(UnsupportedModelError, match=message):
        save(wrap(build()), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_compiled_blocks_are_saved_as_any_others(tmp_path):
    model = build()
    for block in model.layers:
        block.compile(backend="eager", dynamic=True)
    save(model, tmp_path / "m.safetensors")
    assert torch.equal(load(tmp_path / "m.safetensors")(clip()), build()(clip()))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("labels", ["a", "b"], "^the model has 2 labels, but the head of the model has 5 classes"),
        ("labels", "abcde", "the model: labels must be a list of names, found 'abcde'"),
        ("mean", torch.ones(3), "labels, mean and std must be plain lists or tuples: Object of type Tensor"),
        ("std", (1.0, 0.0, 1.0), "std must be a list of numbers above 0"),
        (
            "mean",
            [0.5],
            r"^the model has mean = \[0\.5\], but the model takes 3 colour channels: give a number",
        ),
        ("license", "MIT License", "the model: license must be an identifier as the Hub spells it, such as"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, name, value, message):
    model = build()
    setattr(model, name, value)
    with pytest.raises(CheckpointError, match=message):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_labels_in_any_script_come_back(tmp_path):
    model = build()
    model.labels = ("跑步", "é", "😀", "a|b\\", "\ud800")
    model.save_pretrained(tmp_path)
    assert load(tmp_path).labels == model.labels
    assert "跑步" in (tmp_path / "config.json").read_text()


def test_weights_survive_their_file(tmp_path):
    save(build(), tmp_path / "m.safetensors")
    model = load(tmp_path / "m.safetensors")
    before = model(clip())
    (tmp_path / "m.safetensors").write_bytes(b"\0" * (tmp_path / "m.safetensors").stat().st_size)
    assert torch.equal(model(clip()), before)


def test_a_loaded_model_trains(tmp_path):
    save(build(), tmp_path / "m.safetensors")
    model = load(tmp_path / "m.safetensors", policy="flex-all").train()
    model(clip(2, 40, 40)).sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "pos" in n
    )


def test_frames_that_are_not_square(tmp_path):
    model = build(img_size=(32, 48))
    back = load(folder_of(model, tmp_path / "ours"))
    assert torch.equal(back(clip(4, 32, 48)), model(clip(4, 32, 48)))
    torch.save(model.state_dict(), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"24 rows .* no square grid, .*config\.json"):
        load(tmp_path / "m.pth")
    (tmp_path / "config.json").write_text('{"library": "flexvideo", "model": {"img_size": [32, 48]}}')
    assert torch.equal(load(tmp_path / "m.pth")(clip(4, 32, 48)), model(clip(4, 32, 48)))


def test_an_image_model_is_loaded_with_one_warning(tmp_path):
    state = build().state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].squeeze(2)
    del state["temporal_pos_embedding"]
    torch.save({"model": state}, tmp_path / "image.pth")
    with pytest.warns(
        UserWarning, match=r"image\.pth: these are image weights, so the temporal table is 8 rows"
    ):
        model = load(tmp_path / "image.pth")
    assert model(clip(8)).shape == (1, 5)


def test_masked_pretraining_gives_features_and_says_what_was_left_out(tmp_path):
    state = build().state_dict()
    state["norm.weight"] = state.pop("norm_f.weight")
    head = {key: state.pop(key) for key in ("head.weight", "head.bias")}
    torch.save(state | {"clip_decoder.0.head.weight": torch.ones(2, 2)}, tmp_path / "mask_pt.pth")
    with pytest.warns(
        CheckpointWarning, match="decoder of masked pretraining .*; there is no head"
    ) as caught:
        model = load(tmp_path / "mask_pt.pth")
    assert len(caught) == 1
    assert head["head.weight"].shape == (5, 32)
    assert torch.equal(model(clip()), build().forward_features(clip()))


def test_an_ordinary_file_warns_of_nothing_and_logs_what_it_is(tmp_path, caplog):
    save(build(), tmp_path / "m.pth")
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, logger="flexvideo"):
        warnings.simplefilter("error")
        load(tmp_path / "m.pth")
    assert f"Loaded {tmp_path / 'm.pth'} (custom)" in caplog.text


def test_an_official_state_dict_gives_the_official_numbers(tmp_path):
    golden = load_file(GOLDEN)
    state = {key.removeprefix("state."): value for key, value in golden.items() if key.startswith("state.")}
    torch.save({"model": state}, tmp_path / "official.pth")
    logits = load(tmp_path / "official.pth")(golden["input"])
    assert (logits - golden["logits"]).norm() / golden["logits"].norm() < 1e-5


@pytest.mark.parametrize(("frames", "size"), [(4, 32), (6, 48), (3, (40, 24))])
def test_a_baked_model_keeps_its_facts_and_is_saved_as_any_other(tmp_path, frames, size):
    model = fv.make_flexible(build(), policy="flex-all")
    model.labels, model.mean = ("a", "b", "c", "d", "e"), (0.5, 0.5, 0.5)
    baked = fv.bake(model, frames=frames, size=size)
    back = load(folder_of(baked, tmp_path))
    sides = (size, size) if isinstance(size, int) else size
    assert (back.labels, back.mean) == (model.labels, model.mean)
    assert torch.equal(back(clip(frames, *sides)), baked(clip(frames, *sides)))


def official() -> VisionMamba:
    return VisionMamba(size=32, patch=8, depth=2, dim=32, frames=4, classes=5)


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
@pytest.mark.filterwarnings("ignore:.*is a bare state dict")
def test_the_official_code_loads_what_is_saved(tmp_path, name):
    model = build()
    save(fv.make_flexible(model), tmp_path / name)
    state = (
        load_file(tmp_path / name) if name.endswith("s") else torch.load(tmp_path / name, weights_only=True)
    )
    theirs = official()
    theirs.load_state_dict(state, strict=True)
    assert torch.allclose(theirs(clip()), model(clip()), rtol=1e-4, atol=1e-5)


def test_what_the_official_training_script_writes_is_loaded(tmp_path):
    theirs = official()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(theirs.parameters())
    theirs(clip()).sum().backward()
    optimizer.step()
    content = {
        "model": theirs.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "scaler": {"scale": 1.0},
        "args": argparse.Namespace(model="videomamba_tiny", lr=1e-3, opt_betas=[0.9, 0.999]),
    }
    torch.save(content, tmp_path / "checkpoint-3.pth")
    model = load(tmp_path / "checkpoint-3.pth")
    assert torch.allclose(theirs(clip()), model(clip()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("files", "filename", "message"),
    [
        (
            [],
            None,
            r"holds no weights: looked for model\.safetensors or a file ending in .*, found nothing\.",
        ),
        (["README.md", "a.txt"], None, r"found README\.md, a\.txt"),
        (["a.pth", "b.pth"], None, r"holds 2 weight files, a\.pth, b\.pth: pass filename="),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            None,
            r"holds its weights in 2 parts, model-00001-of-00002\.safetensors, .* save them as one file",
        ),
        (["a.pth", "b"], "c.pth", r"^/.* has no file c\.pth; it has a\.pth, b\.$"),
        ([], None, r"^the local folder /.* holds no weights"),
        (["a.pth"], "../a.pth", r"filename='\.\./a\.pth' leads out of it and is refused"),
        (["a.pth"], "/etc/passwd", "leads out of it and is refused"),
        (["a.pth"], "sub\\..\\..\\a.pth", "leads out of it and is refused"),
        (["a.pth"], None, r"a\.pth is empty \(0 bytes\)"),
    ],
)
def test_folders_without_the_weights_wanted(tmp_path, files, filename, message):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, filename=filename)


def test_a_folder_with_one_weight_file_or_a_named_one(tmp_path):
    save(build(), tmp_path / "a.pth")
    assert load(tmp_path).config["num_classes"] == 5
    save(build(num_classes=7), tmp_path / "b.pth")
    assert load(tmp_path, filename="b.pth").config["num_classes"] == 7


@pytest.mark.parametrize(
    "name", ["no/such/file.pth", "weights.pth", "one two", "./a/b", "models/weights.pth"]
)
def test_what_is_nowhere(name):
    with pytest.raises(
        CheckpointError, match=r"is no file or folder here, no repository \(owner/name\) and no"
    ):
        load(name)


def test_endings_in_capitals(tmp_path):
    save(build(), tmp_path / "A.PTH")
    assert load(tmp_path).source == str(tmp_path / "A.PTH")


def test_a_config_belongs_to_model_safetensors_where_that_is_there(tmp_path):
    folder = folder_of(fv.make_flexible(build(), policy="temporal"), tmp_path / "ck")
    save(build(num_classes=7), folder / "epoch9.pth")
    for model in (load(folder / "epoch9.pth"), load(folder, filename="epoch9.pth")):
        assert (type(model), model.num_classes) == (fv.VideoMamba, 7)
    (folder / "model.safetensors").unlink()
    message = (
        rf"^{folder}/config\.json says num_classes = 5, but the tensors of {folder}/epoch9\.pth are of a"
    )
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_policy_of_a_config_beside_raw_weights(tmp_path):
    save(build(), tmp_path / "snake.pth")
    (tmp_path / "config.json").write_text('{"library": "flexvideo", "policy": {"name": "temporal"}}')
    for model in (load(tmp_path), load(tmp_path, filename="snake.pth"), load(tmp_path / "snake.pth")):
        assert fv.flex_config(model)["policy"]["name"] == "temporal"


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load(""), "^The name of a checkpoint is empty"),
        (lambda: load(" "), "^The name of a checkpoint is empty"),
        (lambda: load(None), "^The name of a checkpoint must be a text or a path, got None"),
        (lambda: load(3), "^The name of a checkpoint must be a text or a path, got 3"),
        (lambda: load(b"m.pth"), "^The name of a checkpoint must be a text or a path, got b'm.pth'"),
        (lambda: load(fv.list_pretrained()[0]), r"; give its name, 't16_k400_f8_res224'\.$"),
        (lambda: load(".", filename=""), "^filename= must be a text that is not empty, or left out; got ''"),
        (lambda: load(".", filename=Path("a")), "^filename= must be a text that is not empty, .* PosixPath"),
        (lambda: load(".", revision=""), "^revision= must be a text that is not empty, or left out; got ''"),
        (lambda: load(".", revision="v1"), r"^\. is here, and revision='v1' is for repositories of the Hub"),
        (lambda: build().save_pretrained(""), "^The name of the folder to write is empty"),
        (lambda: build().save_pretrained(None), "^The name of the folder to write must be a text or a path"),
        (lambda: save(build(), ""), "^The name of the file to write is empty"),
        (lambda: fv.convert("m.pth", ""), "^The name of the target is empty"),
    ],
)
def test_names_that_are_none(tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("https://huggingface.co/me/x", "Did you mean 'me/x'?"),
        ("huggingface.co/me/x/", "Did you mean 'me/x'?"),
        ("hf://me/x", "Did you mean 'me/x'?"),
        ("me/x/", "Did you mean 'me/x'?"),
        (" me/x", "Did you mean 'me/x'?"),
        ("me/x@v1", "Did you mean 'me/x' with revision='v1'?"),
        ("me/x/model.safetensors", "Did you mean 'me/x' with filename='model.safetensors'?"),
        ("me/x@0abc/v2/m.pth", "Did you mean 'me/x' with filename='v2/m.pth' and revision='0abc'?"),
        (
            "https://huggingface.co/me/x/resolve/v2/m.pth?download=true",
            "Did you mean 'me/x' with filename='m.pth' and revision='v2'?",
        ),
        ("https://hf.co/me/x/blob/main/m.pth", "Did you mean 'me/x' with filename='m.pth'?"),
        ("t16_k400_f8_res24", "Did you mean 't16_k400_f8_res224'?"),
        ("T16-K400-F8-Res224", "Did you mean 't16_k400_f8_res224'?"),
    ],
)
def test_names_that_are_nearly_right(name, hint):
    with pytest.raises(CheckpointError) as error:
        load(name)
    assert str(error.value).endswith(f"no name in list_pretrained(). {hint}")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("static_tokens", r"^Unknown policy 'static_tokens': .* Did you mean 'static-tokens'\?$"),
        ("StaticTokens", r"Did you mean 'static-tokens'\?$"),
        ({"policy": {"name": "temporal"}, "rule": "pi"}, r"make_flexible\(model, \*\*config\) takes both\.$"),
    ],
)
def test_policies_that_are_nearly_right(policy, message):
    with pytest.raises(ConfigError, match=message):
        fv.make_flexible(build(), policy=policy)


@pytest.mark.parametrize(
    ("rule", "message"),
    [("Papper", r"Did you mean 'paper'\?$"), ({"kernel": "pi"}, r"This one lacks antialias\.$")],
)
def test_rules_that_are_nearly_right(rule, message):
    with pytest.raises(ConfigError, match=message):
        fv.make_flexible(build(), rule=rule)


@pytest.mark.unchecked
@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps", 999])
def test_a_device_that_cannot_be_used(tmp_path, device):
    with pytest.raises(ConfigError, match=rf"^Device {device!r} cannot be used here: .*\.$") as error:
        load(tmp_path, device=device)
    assert "\n" not in str(error.value)


def test_a_name_that_ends_like_the_usual_one_is_another(tmp_path):
    folder = folder_of(fv.make_flexible(build(), policy="temporal"), tmp_path)
    save(fv.make_flexible(build(), policy="flex-all"), folder / "my_model.safetensors")
    assert fv.flex_config(load(folder, filename="my_model.safetensors"))["policy"]["name"] == "flex-all"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 5000, r"cannot be looked up: File name too long\.$"),
        ("~no_such_user/m", r"^~no_such_user/m cannot be looked up: Could not determine home directory\.$"),
        ("https://huggingface.co/a/b", "^https://huggingface.co/a/b is no file or folder here"),
    ],
)
def test_names_that_cannot_be(name, message):
    with pytest.raises(CheckpointError, match=message):
        load(name)


def test_a_file_takes_no_filename(tmp_path):
    save(build(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth is a file: filename='b\.pth' is for folders"):
        load(tmp_path / "a.pth", filename="b.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": {"num_classes": 9}},
            r"^/.*/config\.json says num_classes = 9, but the tensors of /.*/model\.safetensors are of a "
            "model with 5: correct it, or keep the two in different folders",
        ),
        ({"model": {"patch_size": [8, 4]}}, r"config.json says patch_size = \[8, 4\], but .* with 8"),
        (
            {"model": {"img_size": 64}},
            "frames of 64 x 64 pixels give 8 x 8 patches of 8 x 8, but pos_embed has 16",
        ),
        ({"model": {"img_size": "big"}}, "model.img_size must be pixels or .*, found 'big'"),
        ({"model": {"norm_epsilon": None}}, "model.norm_epsilon must be a number from 0 to 1, found None"),
        ({"model": {"drop_rate": 5}}, "model.drop_rate must be a number from 0 to 1, found 5"),
        (
            {"model": {"drop_path_rate": float("nan")}},
            "model.drop_path_rate must be a number from 0 to 1, found",
        ),
        (
            {"model": {"depth": 10**12}},
            "config.json says depth = 1000000000000, but the tensors of",
        ),
        ({"architecture": "Vim"}, "architecture must be 'VideoMamba', found 'Vim'"),
        ({"model": 3}, "model must be an object, found 3"),
        ({"labels": ["a", "b"]}, r"config\.json has 2 labels, but the head of .* has 5 classes"),
        ({"labels": "abc"}, "labels must be a list of names, found 'abc'"),
        ({"mean": []}, r"mean must be a list of numbers, found \[\]"),
        ({"mean": [10**400, 0, 0]}, r"mean must be a list of numbers, found \[10+\.\.\."),
        ({"std": [0, 1, 1]}, r"std must be a list of numbers above 0, found \[0, 1, 1\]"),
        ({"std": [1, 1]}, r"config\.json has std = \[1\.0, 1\.0\], but .* takes 3 colour channels"),
        ({"license": 3}, "license must be an identifier as the Hub spells it, .*, found 3"),
        ({"policy": {"name": "nope"}}, r"config.json: Unknown policy"),
        ({"rule": "nope"}, r"config.json: Unknown rule"),
        ({"format": 2}, "has format 2, this version reads 1: upgrade flexvideo"),
    ],
)
def test_a_config_that_contradicts_the_tensors_or_itself(tmp_path, change, message):
    folder = folder_of(build(), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("content", ["{", "\x00", "[1", "[" * 100_000], ids=["open", "null", "list", "deep"])
def test_a_config_that_is_no_json(tmp_path, content):
    folder = folder_of(build(), tmp_path)
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        load(folder)


def test_what_a_config_has_beside_is_left_alone(tmp_path):
    folder = folder_of(build(), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"future": {"x": [1]}}))
    assert torch.equal(load(folder)(clip()), build()(clip()))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["format", "architecture", "model", "policy", "rule", "labels", "mean", "std"]
SIZES_INSIDE = ["img_size", "patch_size", "depth", "norm_epsilon", "drop_rate", "num_frames"]


@pytest.mark.unchecked
@given(
    outer=st.dictionaries(st.sampled_from(FIELDS), JSON),
    inner=st.dictionaries(st.sampled_from(SIZES_INSIDE), JSON),
    policy=st.dictionaries(st.sampled_from(["frames", "sizes", "patch_range"]), JSON),
)
@settings(deadline=None, max_examples=150)
def test_any_config_is_read_or_refused_in_words(outer, inner, policy):
    content = {"library": "flexvideo", "model": inner, "policy": {"name": "flex-all"} | policy} | outer
    state = {name: torch.empty(shape, device="meta") for name, shape in SHAPES.items()}
    with contextlib.suppress(CheckpointError):
        config = parse_config(json.dumps(content), where="config.json")
        assert config is not None
        found = interpret(state, img_size=config.img_size)
        fv.VideoMamba(**agree(config, found.layout, where="config.json"), device="meta")


def test_another_librarys_config_is_none_of_ours(tmp_path):
    save(build(), tmp_path / "m.pth")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "model": 3}')
    assert load(tmp_path).labels is None


def test_beside_model_safetensors_the_config_counts_and_elsewhere_the_header(tmp_path):
    model = fv.make_flexible(build(), policy="temporal")
    folder = folder_of(model, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["policy"] = fv.FlexAll().to_config()
    (folder / "config.json").write_text(json.dumps(config))
    save(model, folder / "other.safetensors")
    assert fv.flex_config(load(folder))["policy"]["name"] == "flex-all"
    assert fv.flex_config(load(folder, filename="other.safetensors"))["policy"]["name"] == "temporal"
    (folder / "config.json").unlink()
    assert fv.flex_config(load(folder, filename="model.safetensors"))["policy"]["name"] == "temporal"


def test_a_mislabelled_official_file_says_so(tmp_path):
    path = tmp_path / "videomamba_m16_breakfast_mask_ft_f64_res224.pth"
    save(build(), path)
    with pytest.warns(CheckpointWarning, match="holds a temporal table of 32 frames, not 64"):
        load(path)


def test_describe_reads_shapes_only(tmp_path):
    model = fv.make_flexible(build(kernel_size=2), policy="flex-all", rule="paper")
    model.labels, model.license, model.mean = ("run", "jump", "fall", "sit", "bow"), "mit", (0.5, 0.5, 0.5)
    text = str(describe(folder_of(model, tmp_path)))
    assert text.splitlines()[1:] == [
        "  model      VideoMamba custom, 2 layers of width 32",
        f"  parameters {sum(p.numel() for p in model.parameters()):,} (float32)",
        "  made for   4 frames of 32 x 32 pixels",
        "  patch      8 x 8 pixels, 2 frames deep",
        "  classes    5: run, jump, fall, sit and 1 more",
        "  mean; std  0.5, 0.5, 0.5; 0.229, 0.224, 0.225",
        "  can flex   patch kernel 8 x 8; spatial table 4 x 4; temporal table 2",
        f"  policy     {', '.join(f'{k} {v}' for k, v in fv.FlexAll().to_config().items())}",
        "  rule       kernel paper, antialias False",
        "  licence    mit",
    ]


def test_describe_tells_what_loading_would_say(tmp_path):
    state = build().state_dict()
    del state["head.weight"], state["head.bias"]
    torch.save({"module": state}, tmp_path / "m.pth")
    found = describe(tmp_path / "m.pth")
    assert found.notes == (
        "the weights are under 'module'",
        "there is no head, so num_classes is 0 and model(clip) returns features",
    )
    assert "none recorded: a plain model" in str(found)
    assert found.base == fv.Base(4, 32, 32, (8, 8))


def test_describe_names_the_official_sizes(tmp_path):
    with torch.device("meta"):
        model = fv.videomamba_small(num_classes=400, num_frames=16)
    state = {name: torch.empty(value.shape) for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "s.safetensors")
    found = describe(tmp_path / "s.safetensors")
    assert (found.variant, found.parameters, found.classes) == ("small", 25_571_728, 400)
