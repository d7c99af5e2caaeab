"""VideoMamba against the numbers of the official code, and its contract with everything around it."""

import copy
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import flexvideo as fv
from flexvideo.data import clips
from flexvideo.errors import ConfigError, GeometryError
from flexvideo.models.videomamba import DropPath, RMSNorm

GOLDEN = Path(__file__).parent / "data" / "videomamba_official_a.safetensors"
SMALL = {
    "img_size": 32,
    "depth": 2,
    "embed_dim": 32,
    "num_frames": 2,
    "num_classes": 5,
    "drop_path_rate": 0.0,
}


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN, "pt") as file:
        return json.loads(file.metadata()["config"]), {key: file.get_tensor(key) for key in list(file.keys())}


def official(golden, **overrides):
    config, tensors = golden
    model = fv.VideoMamba(**config, drop_path_rate=0.0, **overrides).eval()
    state = {key.removeprefix("state."): x for key, x in tensors.items() if key.startswith("state.")}
    model.load_state_dict(state)
    return model, tensors


def small(**overrides):
    """A model in which every parameter matters: the initial embeddings of time and class are zero."""
    model = fv.VideoMamba(**SMALL | overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def error(a, b):
    return float((a.detach() - b).norm() / b.norm())


# --- the official numbers ---


@pytest.mark.parametrize("backend", ["reference", "chunked", "cpu"])
def test_forward_and_backward_of_the_official_model(golden, backend):
    agrees_with_the_official_model(golden, backend, device="cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton", "mamba-ssm", "chunked"])
def test_forward_and_backward_of_the_official_model_on_a_gpu(golden, backend, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    agrees_with_the_official_model(golden, backend, device="cuda")


def agrees_with_the_official_model(golden, backend, *, device):
    model, tensors = official(golden, scan_backend=backend)
    model, tensors = model.to(device), {key: value.to(device) for key, value in tensors.items()}
    assert error(model.forward_features(tensors["input"]), tensors["features"]) < 2e-6
    logits = model(tensors["input"])
    assert error(logits, tensors["logits"]) < 2e-6
    logits.square().mean().backward()
    parameters = dict(model.named_parameters())
    checked = [key.removeprefix("grad.") for key in tensors if key.startswith("grad.")]
    assert len(checked) >= 20
    for key in checked:
        assert error(parameters[key].grad, tensors[f"grad.{key}"]) < 2e-5, key


def test_recomputing_mixers_changes_no_gradient(golden):
    model, tensors = official(golden)
    again, _ = official(golden, use_checkpoint=True, checkpoint_num=3)
    for m in (model, again):
        m(tensors["input"]).square().mean().backward()
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize(
    ("build", "image", "video"),
    [
        (fv.videomamba_tiny, 7_148_008, 7_035_280),
        (fv.videomamba_small, 25_796_584, 25_571_728),
        (fv.videomamba_middle, 74_217_448, 73_880_464),
        (fv.videomamba_base, 97_598_440, None),
    ],
)
def test_parameter_counts_of_the_official_models(build, image, video):
    def count(model):
        return sum(parameter.numel() for parameter in model.parameters())

    if video is not None:
        assert count(build(num_frames=16, num_classes=400, device="meta")) == video
    model = build(num_frames=1, device="meta")
    assert count(model) - model.temporal_pos_embedding.numel() == image


def test_state_dict_of_the_official_layout():
    model = fv.VideoMamba(
        embed_dim=40, depth=1, num_frames=4, kernel_size=2, num_classes=7, img_size=(32, 48)
    )
    mixer, norm = "layers.0.mixer.", "layers.0.norm."
    rank = math.ceil(40 / 16)
    expected = {
        "cls_token": (1, 1, 40),
        "pos_embed": (1, 7, 40),
        "temporal_pos_embedding": (1, 2, 40),
        "patch_embed.proj.weight": (40, 3, 2, 16, 16),
        "patch_embed.proj.bias": (40,),
        mixer + "in_proj.weight": (160, 40),
        mixer + "out_proj.weight": (40, 80),
        norm + "weight": (40,),
        "norm_f.weight": (40,),
        "head.weight": (7, 40),
        "head.bias": (7,),
    }
    for end in ("", "_b"):
        expected |= {
            f"{mixer}A{end}_log": (80, 16),
            f"{mixer}D{end}": (80,),
            f"{mixer}conv1d{end}.weight": (80, 1, 4),
            f"{mixer}conv1d{end}.bias": (80,),
            f"{mixer}x_proj{end}.weight": (rank + 32, 80),
            f"{mixer}dt_proj{end}.weight": (80, rank),
            f"{mixer}dt_proj{end}.bias": (80,),
        }
    assert {key: tuple(x.shape) for key, x in model.state_dict().items()} == expected


def test_official_initialisation():
    model = fv.VideoMamba(img_size=64, depth=4, embed_dim=192, num_frames=4)
    mixer = model.layers[1].mixer
    for linear in (mixer.in_proj, mixer.x_proj, mixer.x_proj_b, mixer.dt_proj, mixer.dt_proj_b, model.head):
        assert 0.017 < linear.weight.std() < 0.023
    assert mixer.dt_proj.bias.abs().max() == 0
    assert 0.017 < model.pos_embed.std() < 0.023
    assert model.cls_token.abs().max() == model.temporal_pos_embedding.abs().max() == 0
    # kaiming_uniform(a=sqrt(5)) draws from [-1 / sqrt(fan_in), 1 / sqrt(fan_in)]
    bound = 1 / math.sqrt(2 * 192) / math.sqrt(4)
    assert 0.99 * bound < mixer.out_proj.weight.abs().max() <= bound
    torch.testing.assert_close(mixer.A_b_log.exp()[5], torch.arange(1.0, 17.0))


def test_mamba_initialisation_keeps_the_step_sizes():
    mixer = fv.VideoMamba(**SMALL | {"embed_dim": 192}, init="mamba").layers[0].mixer
    steps = nn.functional.softplus(torch.cat((mixer.dt_proj.bias, mixer.dt_proj_b.bias)))
    assert steps.min() >= 1e-3 * 0.99
    assert steps.max() <= 0.1 * 1.01
    assert 0.2 < ((steps.log() - math.log(1e-3)) / math.log(100)).mean() < 0.8


# --- what the forward pass is made of ---


def test_class_token_has_no_place_in_time():
    model = small()
    x = torch.randn(1, 3, 2, 32, 32)
    tokens = model.embed(x)
    assert tokens.shape == (1, 1 + 2 * 4, 32)
    torch.testing.assert_close(tokens[:, :1], model.cls_token + model.pos_embed[:, :1])
    patch = model.patch_embed.proj(x)[0, :, 1, 0, 1]
    expected = patch + model.pos_embed[0, 2] + model.temporal_pos_embedding[0, 1]
    torch.testing.assert_close(tokens[0, 1 + 4 + 1], expected)


def test_all_tokens_begin_with_the_features():
    model, x = small().eval(), torch.randn(2, 3, 2, 32, 32)
    tokens = model.forward_features(x, all_tokens=True)
    assert tokens.shape == (2, 9, 32)
    torch.testing.assert_close(tokens[:, 0], model.forward_features(x))
    torch.testing.assert_close(model.head(tokens[:, 0]), model(x))


def test_rectangles_tubelets_and_other_channels():
    model = small(
        img_size=(32, 48), patch_size=(16, 12), channels=1, num_frames=4, kernel_size=2, num_classes=0
    )
    assert model.patch_embed.grid_size == (2, 4)
    assert model(torch.randn(2, 1, 4, 32, 48)).shape == (2, 32)


def test_drop_path_rates_are_one_block_late():
    model = fv.VideoMamba(**SMALL | {"depth": 4, "drop_path_rate": 0.3})
    rates = [layer.drop_path.rate for layer in model.layers]
    assert rates == pytest.approx([0, 0, 0.1, 0.2])
    assert model.drop_path.rate == 0.3


def test_drop_path_drops_samples_and_keeps_the_mean():
    x = torch.ones(4000, 2, 3)
    out = DropPath(0.25)(x)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert 0.95 < out.mean() < 1.05
    assert DropPath(0.25).eval()(x) is x
    assert DropPath(0.0)(x) is x


def test_a_model_of_dropped_mixers_is_its_embedding():
    model = small(drop_path_rate=0.999999, depth=1)
    x = torch.randn(3, 3, 2, 32, 32)
    expected = model.norm_f(model.embed(x)[:, 0])
    torch.testing.assert_close(model.forward_features(x), expected)


def test_norm_is_worked_in_the_wider_dtype():
    norm = RMSNorm(8, eps=1e-5, dtype=torch.bfloat16)
    x = torch.randn(3, 8)
    out = norm(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)).bfloat16())


# --- precision ---


def test_bfloat16_autocast_and_model():
    model, x = small(depth=3).eval(), torch.randn(2, 3, 2, 32, 32)
    truth = copy.deepcopy(model).double()(x.double()).detach().float()
    assert error(model(x), truth) < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    assert error(out.float(), truth) < 0.03
    low = copy.deepcopy(model).bfloat16()
    out = low(x.bfloat16())
    assert out.dtype == torch.bfloat16
    assert error(out.float(), truth) < 0.06
    out.float().square().sum().backward()
    assert all(parameter.grad.dtype == torch.bfloat16 for parameter in low.parameters())


def test_residual_is_float32_in_a_bfloat16_model():
    model = small().bfloat16()
    hidden, residual = model.layers[0](model.embed(torch.randn(1, 3, 2, 32, 32).bfloat16()))
    assert hidden.dtype == torch.bfloat16
    assert residual.dtype == torch.float32


def test_every_parameter_gets_a_gradient():
    model = small()
    # of all tokens: the class token is the first step of the last forward scan and sees no decay
    tokens = model.forward_features(torch.randn(2, 3, 2, 32, 32), all_tokens=True)
    model.head(tokens).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


# --- contract ---


def test_config_builds_the_same_model():
    model = small(img_size=(32, 48), drop_path_rate=0.2, init="mamba", scan_backend="chunked")
    twin = fv.VideoMamba(**json.loads(json.dumps(model.config)))
    assert twin.config == json.loads(json.dumps(model.config))
    twin.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 2, 32, 48)
    assert torch.equal(twin.eval()(x), model.eval()(x))


def test_a_model_and_its_clips_share_their_normalisation():
    assert fv.VideoMamba.mean is clips.IMAGENET_MEAN
    assert fv.VideoMamba.std is clips.IMAGENET_STD


def test_what_the_official_recipe_asks_for():
    model = small()
    assert model.no_weight_decay() == {"pos_embed", "cls_token", "temporal_pos_embedding"}
    assert model.get_num_layers() == 2


@pytest.mark.parametrize("size", [(2, 48, 48), (3, 32, 32), (2, 16, 64), (2, 32, 48)])
def test_another_size_names_the_remedy(size):
    message = f"runs clips of 2 x 32 x 32 .* got {size[0]} x {size[1]} x {size[2]}; flexvideo.make_flexible"
    with pytest.raises(GeometryError, match=message):
        small()(torch.randn(1, 3, *size))


@pytest.mark.unchecked
@pytest.mark.parametrize("shape", [(1, 1, 2, 32, 32), (3, 2, 32, 32), (1, 2, 3, 32, 32)])
def test_another_shape_names_the_remedy(shape):
    message = r"This VideoMamba takes clips of shape \(batch, 3 channels, .* got \({}\): bring the dim"
    for entry in (small(), small().forward_features):
        with pytest.raises(GeometryError, match=message.format(", ".join(map(str, shape)))):
            entry(torch.randn(shape))


@pytest.mark.unchecked
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_another_dtype_names_the_remedy(dtype):
    message = f"takes normalised clips of torch.float32, and this one holds {dtype}: give .*clip"
    with pytest.raises(GeometryError, match=message):
        small()(torch.zeros(1, 3, 2, 32, 32, dtype=dtype))


@pytest.mark.unchecked
def test_whole_numbers_for_a_narrow_model():
    with pytest.raises(
        GeometryError, match=r"give \(\(clip / 255 - mean\) / std\)\.to\(torch.bfloat16\), wh"
    ):
        small().bfloat16()(torch.zeros(1, 3, 2, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 8}, "A clip of 2 x 8 x 8 .* holds no patch of 1 x 16 x 16"),
        ({"num_frames": 1, "kernel_size": 2}, "A clip of 1 x 32 x 32 .* holds no patch of 2 x 16 x 16"),
        ({"num_frames": 5, "kernel_size": 2}, "5 frames cannot .* kernel_size=2: use num_frames=4 or 6"),
        ({"depth": 0}, "`depth` must be a whole number from 1, got 0"),
        ({"embed_dim": -3}, "`embed_dim` must be a whole number from 1, got -3"),
        ({"embed_dim": 8.0}, "`embed_dim` must be a whole number from 1, got 8.0"),
        ({"channels": 0}, "`channels` must be a whole number from 1, got 0"),
        ({"num_classes": -1}, "`num_classes` must be a whole number from 0, got -1"),
        ({"kernel_size": 0}, "`kernel_size` must be a whole number from 1, got 0"),
        ({"checkpoint_num": -1}, "`checkpoint_num` must be a whole number from 0, got -1"),
        ({"norm_epsilon": -1.0}, "`norm_epsilon` must be a number from 0 to below 1, got -1.0"),
        ({"drop_path_rate": 1.5}, "`drop_path_rate` must be a number from 0 to below 1, got 1.5"),
        ({"drop_rate": float("nan")}, "`drop_rate` must be a number from 0 to below 1, got nan"),
        ({"fc_drop_rate": "0.1"}, "`fc_drop_rate` must be a number from 0 to below 1, got '0.1'"),
        ({"img_size": "a"}, r"`img_size` must be a positive whole number of pixels .*, got \['a'\]"),
        ({"patch_size": 0}, "`patch_size` must be a positive whole number of pixels .*, got 0"),
        ({"img_size": 2.5}, "`img_size` must be a positive whole number of pixels .*, got 2.5"),
        ({"dtype": torch.int32}, "`dtype` must be a floating-point one, got torch.int32"),
        ({"init": "xavier"}, "Unknown init 'xavier'; known: 'official', 'mamba'"),
        (
            {"scan_backend": "typo"},
            "Unknown scan backend 'typo'; known: 'auto', 'reference', 'chunked', 'cpu'",
        ),
    ],
)
@pytest.mark.unchecked
def test_impossible_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        fv.VideoMamba(**SMALL | arguments)


def test_flops_equal_the_closed_form():
    depth, d, tokens, rank, n = 2, 32, 1 + 2 * 4, 2, 16
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        fv.VideoMamba(**SMALL).eval()(torch.zeros(1, 3, 2, 32, 32))
    e = 2 * d
    matmul = 2 * tokens * (d * 2 * e + e * d + 2 * e * (rank + 2 * n) + 2 * rank * e)
    scan = 2 * (9 * tokens * e * n + tokens * e) + tokens * e
    conv = 2 * 2 * 4 * tokens * e
    whole = matmul + scan + conv
    # the last block: all tokens of the backward direction, one of the forward one, of the gate and the output
    one_way = 2 * (e * (rank + 2 * n) + rank * e) + 9 * e * n + 2 * e + 2 * 4 * e
    last = (tokens + 1) * one_way + 2 * d * e * tokens + 2 * 2 * d * e
    patches = 2 * (tokens - 1) * 3 * 16 * 16 * d
    assert counter.get_total_flops() == (depth - 1) * whole + last + patches + 2 * d * 5


@pytest.mark.parametrize("options", [{}, {"use_checkpoint": True, "checkpoint_num": 2}])
def test_the_class_token_alone_is_that_of_all_tokens(options):
    model, x = small(depth=2, **options), torch.randn(2, 3, 2, 32, 32)
    results = []
    for all_tokens in (False, True):
        model.zero_grad()
        out = model.forward_features(x, all_tokens=all_tokens)
        out = out[:, 0] if all_tokens else out
        out.square().sum().backward()
        results.append(
            [
                out.detach(),
                *(
                    parameter.grad
                    for parameter in model.parameters()
                    if parameter is not model.head.weight and parameter is not model.head.bias
                ),
            ]
        )
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["layers.1", "layers.1.mixer", "layers.1.mixer.out_proj"])
def test_what_is_attached_to_the_last_block_sees_all_tokens(name):
    model, shapes = small(), []
    model.get_submodule(name).register_forward_hook(lambda _, args, out: shapes.append(args[0].shape))
    model.forward_features(torch.randn(1, 3, 2, 32, 32))
    assert shapes == [(1, 9, 64 if name.endswith("proj") else 32)]


@pytest.mark.unchecked
def test_vmap_of_grad_on_the_reference():
    model = small(scan_backend="reference", depth=1).eval()
    clips = torch.randn(3, 3, 2, 32, 32)
    parameters = dict(model.named_parameters())

    def loss(parameters, clip):
        return torch.func.functional_call(model, parameters, (clip[None],)).square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, clips)
    alone = torch.func.grad(loss)(parameters, clips[1])
    for name in parameters:
        torch.testing.assert_close(grads[name][1], alone[name], rtol=1e-3, atol=1e-6)


@pytest.mark.unchecked
def test_compiles_whole():
    model, x = small().eval(), torch.randn(1, 3, 2, 32, 32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.unchecked
def test_exports_with_the_operators(tmp_path):
    model, x = small().eval(), torch.randn(1, 3, 2, 32, 32)
    program = torch.export.export(model, (x,))
    names = Counter(str(node.target) for node in program.graph.nodes)
    assert names["flexvideo.selective_scan.default"] == 3  # the last block runs its directions apart
    torch.export.save(program, tmp_path / "model.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "model.pt2").module()(x), model(x))


def onnx_error(model, x, folder):
    import onnxruntime

    with torch.no_grad():
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    program.save(folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return error(torch.from_numpy(out), model(x).detach())


# torch's own exporter warns of its own deprecated parts
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.unchecked
def test_onnx_runtime_agrees(tmp_path):
    model = small(depth=1, init="mamba").eval()
    assert onnx_error(model, torch.randn(1, 3, 2, 32, 32), tmp_path) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.unchecked
def test_onnx_runtime_agrees_on_videomamba_tiny(tmp_path):
    model = fv.videomamba_tiny(num_frames=8, init="mamba").eval()
    assert onnx_error(model, torch.randn(1, 3, 8, 224, 224), tmp_path) < 1e-4
