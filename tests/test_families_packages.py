"""Families of packages on the packages themselves: the contract, coordinates, and what they are called by."""

import copy
import json
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import test_families_ssm as contract
import torch
from cases import Case, Probe
from cases_packages import CASES, DIM, HF, SIZE_FREE, TIMM, TRANSFORMERS, hf, timm_vit
from packages import package
from torch import Tensor, nn

import flexvideo as fv
from flexvideo.errors import GeometryError, NothingToFlexError, PlanError, UnsupportedModelError

VARIANTS = (
    *(
        "DINOv2, backbone",
        "V-JEPA 2 (",
        "ViT, padded",
        "ViT, dynamic",
        "ViT, registers with",
        "ViT, no class",
    ),
    *("DeiT", "FlexiViT", "Hiera, video, joint", "Hiera, images"),
)
"""Kinds of a model of which another is tested in every run; the gallery and the coordinates have them all."""
every_case = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.name.startswith(VARIANTS) else [])
        for case in CASES
    ],
)
WITH_PATCHES = [case for case in CASES if case.patch is not None and case.base[1] < 224]
PROBES = [(case, probe) for case in CASES for probe in case.probes]


def named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@every_case
def test_contract(case: Case) -> None:
    """What holds for every family."""
    contract.test_recognised_by_one_family(case)
    contract.test_bitwise_identity_at_the_base(case)
    contract.test_gradients_at_original_shapes(case)
    contract.test_patch_for_one_call(case)


@every_case
def test_host_state_is_put_back(case: Case) -> None:
    contract.test_host_state_is_put_back(case)


@pytest.mark.filterwarnings(
    "ignore:A state dict of the baked model lacks .*position_embeddings"
)  # VideoMAE's
@pytest.mark.filterwarnings("ignore:from_pretrained will not give the baked model again")
@every_case
def test_baked_and_copied(case: Case) -> None:
    """A baked model is plain, and its own: also where a method of it was fixed."""
    model = fv.make_flexible(case.build(), policy="static-patch")
    size = case.sizes[1]
    x = case.clip(size)
    expected = case.call(model, x)
    duplicates = [copy.deepcopy]
    if "Hiera" not in case.name and "backbone" not in case.name:  # which hold local functions
        duplicates.append(lambda model: pickle.loads(pickle.dumps(model)))
    assert torch.equal(case.call(duplicates[-1](model), x), expected)
    baked = fv.bake(model, frames=size[0], size=size[1:])
    assert type(baked) is type(case.make())
    for duplicate in duplicates:
        twin = duplicate(baked)
        with torch.no_grad():
            for parameter in baked.parameters():
                parameter.zero_()
        assert torch.equal(case.call(twin, x), expected)
        baked = twin


@pytest.mark.parametrize("side", [37, 45])
@pytest.mark.parametrize("case", WITH_PATCHES, ids=lambda case: case.name)
def test_static_tokens_where_patches_leave_a_remainder(case: Case, side: int) -> None:
    model = fv.make_flexible(case.build())
    x = case.clip((case.base[0], side, side if case.square_patch else side + 3))
    assert case.call(model, x).isfinite().all()


@every_case
def test_verify(case: Case) -> None:
    """Dry forwards in which the model resizes nothing itself that it does not resize at its base."""
    if case.name.startswith("MViT v2"):  # which does, its relative tables
        with pytest.raises(PlanError, match="the model itself resizes a tensor"):
            fv.verify(case.build())
        return
    size = {"Hiera": 96, "Swin3": 64}.get(case.name[:5])
    fv.verify(case.build(), size=size, call=lambda model, clip: case.call(model, clip))


@pytest.mark.parametrize(("case", "probe"), PROBES, ids=[f"{case.name}-{probe.at}" for case, probe in PROBES])
@pytest.mark.parametrize("index", range(3))
def test_every_token_receives_its_own_coordinate(case: Case, probe: Probe, index: int) -> None:
    size = case.sizes[index]
    model = fv.make_flexible(contract.zeroed(case.build(), probe), policy="static-patch")
    seen: list[Tensor] = []
    model.get_submodule(probe.at).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    case.call(model, case.clip(size))
    frames = size[0] if "t" in case.layout else 1
    geometry = fv.StaticPatch().geometry(fv.plan_for(model).base, frames, *size[1:])
    expected = contract.own_coordinates(case, geometry, probe.axes)
    for tokens in seen[0]:
        coordinates, cls = probe.read(tokens, geometry)
        torch.testing.assert_close(coordinates[:, :3], expected, rtol=1e-5, atol=1e-5)
        assert (coordinates[:, 3:] == 0).all()
        torch.testing.assert_close(cls[:, :4], probe.cls(geometry), rtol=1e-5, atol=1e-5)


class TestTransformers:
    """What users of that package call."""

    def video(self, case: Case) -> tuple[nn.Module, Tensor]:
        return fv.make_flexible(case.build(), policy="static-patch"), case.clip(case.sizes[0])

    @pytest.mark.parametrize(
        "name", ["VideoMAE", "TimeSformer", "ViViT", "V-JEPA 2, classifier", "ViT", "DINOv2"]
    )
    def test_outputs_loss_and_patch(self, name: str) -> None:
        model, x = self.video(named(f"{name} (transformers)"))
        keyword = "pixel_values_videos" if "JEPA" in name else "pixel_values"
        found = model(**{keyword: x}, labels=torch.tensor([0, 1]), output_hidden_states=True)
        assert type(found).__module__ == "transformers.modeling_outputs"
        assert found.loss.isfinite()
        assert len(found.hidden_states) == 2
        assert torch.equal(found.logits, model(x, return_dict=False)[0])
        assert not torch.equal(model(**{keyword: x}, patch=4).logits, found.logits)
        assert not torch.equal(model(x, patch=(4, 16)).logits, found.logits)
        found.loss.backward()

    def test_records_hidden_states_as_the_plain_model_does(self) -> None:
        case = named("VideoMAE (transformers)")
        expected = case.build()(case.clip(case.base), output_hidden_states=True).hidden_states
        model = fv.make_flexible(case.build())
        found = model(case.clip(case.base), output_hidden_states=True).hidden_states
        assert len(found) == len(expected) == 2
        assert all(map(torch.equal, found, expected))

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        model, x = self.video(named("TimeSformer (transformers)"))
        with torch.no_grad():
            expected = model(x).logits
            model.save_pretrained(tmp_path)
            loaded = package("transformers").TimesformerForVideoClassification.from_pretrained(tmp_path)
            fv.make_flexible(loaded.eval(), policy="static-patch")
            assert torch.equal(loaded(x).logits, expected)
            for again in (model.from_pretrained(tmp_path), type(model)(model.config)):
                assert type(again) is package("transformers").TimesformerForVideoClassification
                again.load_state_dict(model.state_dict())
                assert torch.equal(fv.make_flexible(again.eval(), policy="static-patch")(x).logits, expected)

    @pytest.mark.parametrize("patch", [None, 12])
    @pytest.mark.parametrize(
        "name", ["ViT", "DeiT", "DINOv2", "CLIP", "SigLIP", "TimeSformer", "ViViT", "V-JEPA 2"]
    )
    def test_baked_saved_and_loaded(self, name: str, patch: int | None, tmp_path: Path) -> None:
        """Its configuration is that of a model built for its size, and names the class that it is of."""
        case = named(f"{name} (transformers)")
        size = (6, 48, 48) if "t" in case.layout else (1, 48, 48)
        model = fv.make_flexible(case.build(), policy="static-patch")
        model.save_pretrained(tmp_path / "flexible")
        config = json.loads((tmp_path / "flexible" / "config.json").read_text())
        assert config["architectures"] == [type(case.make()).__name__]
        with torch.no_grad():
            expected = case.call(model, case.clip(size), patch=patch)
            fv.bake(model, frames=size[0], size=48, patch=patch).save_pretrained(tmp_path / "baked")
            loaded = type(case.make()).from_pretrained(tmp_path / "baked").eval()
            assert torch.equal(case.call(loaded, case.clip(size)), expected)

    def test_a_baked_videomae_is_not_loaded_with_other_positions(self, tmp_path: Path) -> None:
        """Its table is in no file; numbered anew for the larger grid, every token would be elsewhere."""
        case = named("VideoMAE (transformers)")
        model = fv.make_flexible(case.build())
        for size, same in (((4, 48, 48), True), ((4, 64, 32), True), ((6, 48, 48), False)):
            with torch.no_grad():
                expected = case.call(model, case.clip(size))
                table = nullcontext() if same else pytest.warns(UserWarning, match="lacks videomae.*position")
                with table, nullcontext() if same else pytest.warns(UserWarning, match="keeps its sizes, by"):
                    baked = fv.bake(model, frames=size[0], size=size[1:])
                baked.save_pretrained(tmp_path)
                if same:
                    loaded = type(case.make()).from_pretrained(tmp_path).eval()
                    assert torch.equal(case.call(loaded, case.clip(size)), expected)
                else:
                    with pytest.raises(RuntimeError, match="mismatch"):
                        type(case.make()).from_pretrained(tmp_path)

    @pytest.mark.parametrize("name", ["DINOv2", "CLIP", "TimeSformer", "V-JEPA 2", "ViT", "ViViT"])
    def test_baked_for_frames_that_are_not_square(self, name: str, tmp_path: Path) -> None:
        """Where no configuration can say so, a warning does."""
        case = named(f"{name} (transformers)")
        model, size = fv.make_flexible(case.build(), policy="static-patch"), (case.base[0], 48, 64)
        squares_only = not name.startswith("Vi")
        expected = "will not give the baked model again, for .*Config can say of square frames"
        with pytest.warns(UserWarning, match=expected) if squares_only else nullcontext():
            baked = fv.bake(model, frames=size[0], size=size[1:])
        if not squares_only:
            baked.save_pretrained(tmp_path)
            loaded = type(case.make()).from_pretrained(tmp_path).eval()
            with torch.no_grad():
                assert torch.equal(case.call(loaded, case.clip(size)), case.call(model, case.clip(size)))

    def test_clip_of_frames_that_are_not_square(self) -> None:
        """As with its own option, which a flexible one needs not."""
        model = hf("CLIPVisionModel", "CLIPVisionConfig")().eval()
        x = torch.rand(2, 3, 48, 32)
        expected = model(x, interpolate_pos_encoding=True)[0]
        with pytest.raises(ValueError, match="doesn't match model"):
            model(x)
        fv.make_flexible(model, policy="static-patch", rule="paper")
        torch.testing.assert_close(model(x)[0], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(model(x, interpolate_pos_encoding=True)[0], expected, rtol=0, atol=1e-5)

    def test_beit_divides_by_one_number(self) -> None:
        model = hf("BeitModel", "BeitConfig", use_shared_relative_position_bias=True)()
        fv.make_flexible(model, policy="static-patch")
        with pytest.raises(GeometryError, match="one number for both sides of a frame and cannot take 4 x 8"):
            model(torch.rand(1, 3, 32, 32), patch=(4, 8))

    def test_configurations_are_only_read(self) -> None:
        model, x = self.video(named("TimeSformer (transformers)"))
        layer = model.timesformer.encoder.layer[0]
        read = []
        layer.register_forward_pre_hook(
            lambda module, _: read.append((module.config.num_frames, module.config.image_size))
        )
        model(x)
        assert read == [(8, 32)]
        assert layer.config is model.config
        assert (layer.config.num_frames, layer.config.image_size) == (4, 32)

    @pytest.mark.parametrize("case", TRANSFORMERS, ids=lambda case: case.name)
    def test_no_size_is_read_from_a_configuration_that_stays(self, case: Case) -> None:
        """Sizes in those that do not follow are replaced by what cannot be counted with."""
        model = case.build()
        plan = fv.plan_for(model)
        fv.make_flexible(model, policy=plan.policies[-1])
        expected = case.call(model, case.clip(case.sizes[0]))
        following = {state.name for state in plan.state}
        for path, module in model.named_modules():
            if "config" in vars(module) and f"{path}.config".lstrip(".") not in following:
                module.config = copy.copy(module.config)
                for name in ("image_size", "crop_size", "patch_size", "num_frames", "frames_per_clip"):
                    if name in vars(module.config):
                        vars(module.config)[name] = object()
        if "pre-training" in case.name:  # it paints patches, whose size stays
            vars(model.config)["patch_size"] = 4
        assert torch.equal(case.call(model, case.clip(case.sizes[0])), expected)

    @pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
    @pytest.mark.parametrize("reentrant", [True, False])
    @pytest.mark.parametrize("name", ["TimeSformer", "V-JEPA 2, classifier"])
    def test_gradient_checkpointing(self, name: str, reentrant: bool) -> None:
        """Layers that read the clip's sizes are run again in one backward pass for three clips."""
        case = named(f"{name} (transformers)")
        model = fv.make_flexible(case.build().train(), policy="static-patch")
        clips = [case.clip(size) for size in case.sizes]

        def gradients() -> list[Tensor]:
            model.zero_grad()
            sum(model(x).logits.square().sum() for x in clips).backward()
            return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

        expected = gradients()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.testing.assert_close(gradients(), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "encoder", "options"),
        [
            ("ViTForMaskedImageModeling", "vit", {}),
            ("DeiTForMaskedImageModeling", "deit", {}),
            ("ViTMAEForPreTraining", "vit", {"decoder_hidden_size": 12, "decoder_num_attention_heads": 2}),
        ],
    )
    def test_masked_images(self, name: str, encoder: str, options: dict[str, Any]) -> None:
        model = hf(name, f"{name.partition('For')[0]}Config", **options)()
        with pytest.raises(
            UnsupportedModelError,
            match=f"cannot flex, because it takes its own frames for square .*, `model.{encoder}`",
        ):
            fv.make_flexible(model)
        fv.make_flexible(getattr(model, encoder))

    @pytest.mark.parametrize(
        ("name", "config", "options"),
        [
            (
                "SwinModel",
                "SwinConfig",
                {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1]},
            ),
            ("DPTModel", "DPTConfig", HF),
            ("BlipVisionModel", "BlipVisionConfig", HF),
            ("Data2VecVisionModel", "Data2VecVisionConfig", HF | {"use_relative_position_bias": True}),
        ],
    )
    def test_no_model_that_is_unknown_is_changed(self, name: str, config: str, options: Any) -> None:
        transformers = package("transformers")
        if name == "SwinModel":
            options = {**options, "num_heads": [1, 2], "window_size": 4}
        model = getattr(transformers, name)(getattr(transformers, config)(**options))
        kinds = [type(module) for module in model.modules()]
        with pytest.raises((PlanError, UnsupportedModelError)):
            fv.make_flexible(model)
        assert [type(module) for module in model.modules()] == kinds


class TestTimm:
    def test_entry_points(self) -> None:
        model = fv.make_flexible(named("ViT (timm)").build(), policy="static-patch")
        x = torch.rand(2, 3, 48, 32)
        tokens = model.forward_features(x)
        assert tokens.shape == (2, 25, DIM)
        assert torch.equal(model.forward_head(tokens), model(x))
        final, maps = model.forward_intermediates(x, indices=1)
        assert torch.equal(final, tokens)
        assert maps[0].shape == (2, DIM, 6, 4)
        assert model.get_intermediate_layers(x, patch=4)[0].shape == (2, 96, DIM)

    def test_hybrid(self) -> None:
        class Backbone(nn.Conv2d):
            def __init__(self) -> None:
                super().__init__(3, DIM, 8, 8)

        hybrid = package("timm.models.vision_transformer_hybrid").HybridEmbed
        model = timm_vit(embed_layer=lambda **options: hybrid(Backbone(), **options), patch_size=1)()
        with pytest.raises(
            UnsupportedModelError, match="cannot flex, because its patches come from another net"
        ):
            fv.make_flexible(model)

    @pytest.mark.parametrize(
        ("module", "name", "options"),
        [
            ("vision_transformer_relpos", "VisionTransformerRelPos", {}),
            ("vision_transformer_sam", "VisionTransformerSAM", {}),
        ],
    )
    def test_no_model_that_is_unknown_is_changed(self, module: str, name: str, options: Any) -> None:
        model = getattr(package(f"timm.models.{module}"), name)(**TIMM, **options)
        with pytest.raises((PlanError, UnsupportedModelError)):
            fv.make_flexible(model)

    @pytest.mark.parametrize("options", [{"use_rel_pos_bias": True}, {"use_shared_rel_pos_bias": True}])
    def test_beit_with_relative_positions_keeps_its_grid(self, options: dict[str, bool]) -> None:
        model = package("timm.models.beit").Beit(**TIMM, **options).eval()
        x = torch.rand(1, 3, 32, 32)
        expected = model(x)
        fv.make_flexible(model)
        assert torch.equal(model(x), expected)
        assert model(torch.rand(1, 3, 48, 64)).isfinite().all()
        fv.make_flexible(model, policy="static-patch")
        with pytest.raises(
            GeometryError, match="relative positions for a grid of 4 x 4 tokens only, and cannot run 6 x 4"
        ):
            model(torch.rand(1, 3, 48, 32))

    def test_a_baked_one_says_its_size(self) -> None:
        model = fv.make_flexible(
            package("timm").create_model("flexivit_small", **TIMM), policy="static-patch"
        )
        baked = fv.bake(model, frames=1, size=(48, 32), patch=4)
        assert baked._traits["img_size"] == baked._model_args["img_size"] == (48, 32)
        assert model._model_args["img_size"] == 32

    def test_naflex(self) -> None:
        model = SIZE_FREE["NaFlexViT (timm)"]().eval()
        with pytest.raises(
            NothingToFlexError, match="call it as it is: timm's NaFlexViT takes images of any size"
        ):
            fv.make_flexible(model)
        assert model(torch.rand(1, 3, 48, 64)).shape == (1, 5)  # which is true


class TestHiera:
    def test_grids_that_cut_units(self) -> None:
        model = fv.make_flexible(named("Hiera, video").build(), policy="static-patch")
        with pytest.raises(
            GeometryError,
            match=r"Hiera works in units of 8 x 8 tokens, and cannot run a grid of 20 x 16: use frames whose "
            r"sides are multiples of 32 x 32 px\.",
        ):
            model(torch.rand(1, 3, 4, 80, 64))

    @pytest.mark.parametrize("name", ["Hiera, video", "Hiera, images"])
    def test_tokens_of_its_stages_are_put_back_in_order(self, name: str) -> None:
        case = named(name)
        model = fv.make_flexible(contract.zeroed(case.build(), case.probes[0]), policy="static-patch")
        x = case.clip(case.sizes[0])
        _, stages = model(x, return_intermediates=True)
        assert [stage.shape[-3:-1] for stage in stages] == [(24, 16), (12, 8), (6, 4), (3, 2)]
        frames = x.shape[2] if x.ndim == 5 else 1
        geometry = fv.StaticPatch().geometry(fv.plan_for(model).base, frames, *x.shape[-2:])
        expected = contract.own_coordinates(case, geometry, case.probes[0].axes)
        torch.testing.assert_close(stages[0][0, ..., :3].reshape(-1, 3), expected, rtol=1e-5, atol=1e-5)

    def test_masked_autoencoder(self) -> None:
        model = package("hiera.hiera_mae").MaskedAutoencoderHiera(
            input_size=(64, 64), embed_dim=8, stages=(1, 1, 1, 1), decoder_embed_dim=8, decoder_num_heads=1
        )
        with pytest.raises(
            UnsupportedModelError, match="cannot flex, because its decoder is built for one grid"
        ):
            fv.make_flexible(model)


def test_outermost_counts() -> None:
    model = named("VideoMAE (transformers)").build()
    assert fv.plan_for(nn.Sequential(model)).patch_embeds == (
        "0.videomae.embeddings.patch_embeddings.projection",
    )
    assert "VideoMAEForVideoClassification" in str(fv.plan_for(model))
    assert "VideoMAEModel" in str(fv.plan_for(model.videomae))
    pair = nn.ModuleList([model, named("ViT (transformers)").build()])
    with pytest.raises(
        PlanError, match=r"holds several models that could be made flexible: .* at `0`, .* at `1`"
    ):
        fv.plan_for(pair)
