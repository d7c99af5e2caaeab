"""What `make_flexible` promises, on our model and on one written elsewhere: one test a promise."""

import copy
import json
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hosts import BASE, HOSTS, SIZES, VisionMamba, clip, randomised
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import flexvideo as fv

FLEXED = ("patch_embed.proj.weight", "pos_embed", "temporal_pos_embedding")
POLICIES = ("temporal", "static-patch", "static-tokens", "flexivit", "flex-all")


@pytest.fixture(params=HOSTS)
def plain(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return randomised(HOSTS[request.param]())


@pytest.fixture
def model(plain: nn.Module) -> nn.Module:
    return fv.make_flexible(plain)


def gradients(model: nn.Module, *outputs: Tensor) -> dict[str, Tensor]:
    """Gradients of a sum over outputs, taken away from the parameters again."""
    model.zero_grad()
    sum((output * torch.arange(output.numel()).view_as(output)).sum() for output in outputs).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_same_object_parameters_and_keys(plain: nn.Module) -> None:
    kind, keys = type(plain), list(plain.state_dict())
    parameters = dict(plain.named_parameters())
    model = fv.make_flexible(plain)
    assert model is plain
    assert isinstance(model, kind)
    assert list(model.state_dict()) == keys
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert model.no_weight_decay() == {"pos_embed", "cls_token", "temporal_pos_embedding"}


@pytest.mark.parametrize("policy", POLICIES)
def test_bitwise_identity_at_the_base(plain: nn.Module, policy: str) -> None:
    x = clip(BASE)
    expected = plain(x)
    before = gradients(plain, expected)
    model = fv.make_flexible(plain, policy=policy)
    output = model(x)
    assert torch.equal(output, expected)
    assert_same(gradients(model, output), before)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_planned_parameter_gets_a_gradient(
    plain: nn.Module, policy: str, size: tuple[int, int, int]
) -> None:
    model = fv.make_flexible(plain, policy=policy)
    assert fv.plan_for(model).parameters == FLEXED
    parameters = dict(model.named_parameters())
    tokens = []
    model.layers[0].register_forward_hook(lambda _, args, output: tokens.append(args[0]))
    output = model(clip(size))
    found = gradients(model, output)
    for name in FLEXED:
        assert found[name].shape == parameters[name].shape
        assert found[name].isfinite().all()
        assert found[name].abs().max() > 0
    model(clip(size))
    found = torch.autograd.grad(tokens[1].square().sum(), [parameters[name] for name in FLEXED])
    assert all((gradient != 0).all() for gradient in found)  # no row of a table is left out


@pytest.mark.parametrize("size", SIZES)
def test_entry_points(model: nn.Module, size: tuple[int, int, int]) -> None:
    x = clip(size)
    features = model.forward_features(x)
    assert features.shape == (2, 8)
    assert torch.equal(model.head(features), model(x))
    assert torch.equal(model(x=x), model(x))
    assert torch.equal(model.forward_features(x=x, patch=4), model.forward_features(x, patch=(4, 4)))


def test_patch_for_one_call(plain: nn.Module) -> None:
    model = fv.make_flexible(plain, policy="flex-all")
    grids = []
    model.patch_embed.register_forward_hook(lambda _, args, output: grids.append(tuple(output.shape[-2:])))
    x = clip((4, 48, 96))
    default = model(x)
    assert not torch.equal(model(x, patch=16), default)
    model.forward_features(x, patch=(24, 12))
    model.forward(x, patch=6)
    assert torch.equal(model(x), default)
    assert grids == [(6, 12), (3, 6), (2, 8), (8, 16), (6, 12)]


def test_two_threads_at_two_sizes(model: nn.Module) -> None:
    model.eval()
    clips = [clip(size) for size in (BASE, *SIZES)]
    with torch.no_grad():
        expected = [model(x) for x in clips]
    wrong: list[object] = []
    together = threading.Barrier(len(clips))

    def work(index: int) -> None:
        try:
            together.wait()
            for _ in range(3):
                with torch.no_grad():
                    if not torch.equal(model(clips[index]), expected[index]):
                        wrong.append(index)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(clips))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_optimizer_made_before(plain: nn.Module) -> None:
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    model = fv.make_flexible(plain)
    for size in SIZES:
        optimizer.zero_grad()
        model(clip(size)).square().sum().backward()
        optimizer.step()
    after = model.state_dict()
    assert not any(torch.equal(after[name], before[name]) for name in FLEXED)
    assert all(after[name].shape == before[name].shape for name in before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_their_own(model: nn.Module, duplicate) -> None:
    x = clip(SIZES[0])
    expected = model(x)
    twin = duplicate(model)
    assert type(twin) is type(model)
    assert torch.equal(twin(x), expected)
    fv.make_flexible(twin, policy="static-patch", rule="pi")
    with torch.no_grad():
        twin.pos_embed.zero_()
        twin.patch_embed.proj.weight.zero_()
    assert torch.equal(model(x), expected)
    assert not torch.equal(twin(x), expected)
    fv.restore(twin)
    assert torch.equal(model(x), expected)


def test_shallow_copy_shares_parameters(model: nn.Module) -> None:
    x = clip(SIZES[0])
    twin = copy.copy(model)
    assert twin.pos_embed is model.pos_embed
    assert torch.equal(twin(x), model(x))


def test_pickles_into_another_process(tmp_path: Path) -> None:
    x = clip(SIZES[1])
    for name, host in HOSTS.items():
        model = fv.make_flexible(randomised(host()))
        for protocol in (2, 4, 5):
            saved = {"model": model, "clip": x, "output": model(x)}
            torch.save(saved, tmp_path / f"{name}{protocol}.pt", pickle_protocol=protocol)
    code = """
import glob, sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
for path in glob.glob(sys.argv[2] + "/*.pt"):
    saved = torch.load(path, weights_only=False)
    assert torch.equal(saved["model"](saved["clip"]), saved["output"]), path
    print(path)
"""
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, check=True, cwd=Path(__file__).parents[1], capture_output=True)
    assert len(done.stdout.splitlines()) == 6


def test_state_dict_from_the_plain_model(model: nn.Module, plain: nn.Module) -> None:
    x = clip(SIZES[0])
    fresh = HOSTS["official" if isinstance(model, VisionMamba) else "ours"]()
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fv.make_flexible(fresh)(x), model(x))
    fresh.load_state_dict(model.state_dict(), strict=True, assign=True)
    assert torch.equal(fresh(x), model(x))


def test_moving_average(model: nn.Module) -> None:
    x = clip(SIZES[0])
    average = AveragedModel(model)
    average.update_parameters(model)
    assert torch.equal(average(x), model(x))
    with torch.no_grad():
        model.pos_embed.mul_(3)
    average.update_parameters(model)
    assert not torch.equal(average.module.pos_embed, model.pos_embed)
    assert average(x).shape == (2, 5)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # inner reentrant, as in torch
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("what", ["whole", "features", "blocks", "nested"])
def test_activation_checkpointing_with_mixed_sizes(model: nn.Module, what: str, reentrant: bool) -> None:
    clips = [clip(size).requires_grad_() for size in (BASE, *SIZES)]
    expected = gradients(model, *(model(x) for x in clips))

    def again(function, *args):
        return checkpoint(function, *args, use_reentrant=reentrant)

    if what in ("blocks", "nested"):
        for block in model.layers:
            block.forward = lambda *args, forward=block.forward, **kwargs: checkpoint(
                forward, *args, use_reentrant=reentrant, **({} if reentrant else kwargs)
            )
    if what in ("whole", "nested"):
        outputs = [again(model, x) for x in clips]
    elif what == "features":
        outputs = [model.head(again(model.forward_features, x)) for x in clips]
    else:
        outputs = [model(x) for x in clips]
    found = gradients(model, *outputs)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_per_sample_gradients(model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    x = clip(SIZES[0])

    def loss(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, (sample[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index in range(len(x)):
        model.zero_grad()
        loss(parameters, x[index]).backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(each[name][index], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    model = fv.make_flexible(randomised(VisionMamba()))
    x = clip(SIZES[0])
    expected = model(x)
    output = model.to(dtype)(x.to(dtype))
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), expected, rtol=0.2, atol=0.1)
    assert all(found.dtype == dtype for found in gradients(model, output).values())


def test_autocast_keeps_the_resampling_exact(plain: nn.Module) -> None:
    model = fv.make_flexible(plain, policy="static-patch")
    geometry = {"frames": 8, "size": (48, 32)}
    baked = fv.bake(model, **geometry)
    x = clip((8, 48, 32))
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = model(x), baked(x)
    assert torch.equal(output, expected)


def test_exception_inside_forward(model: nn.Module) -> None:
    x = clip(SIZES[0])
    expected = model(x)

    def fail(*_: object) -> None:
        raise RuntimeError("stop")

    hook = model.layers[-1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        model(x, patch=4)
    hook.remove()
    assert model.pos_embed is dict(model.named_parameters())["pos_embed"]
    assert torch.equal(model(x), expected)


def test_attributes_are_plain_outside_an_entry_point(model: nn.Module) -> None:
    model(clip(SIZES[0]))
    parameters = dict(model.named_parameters())
    assert model.pos_embed is parameters["pos_embed"]
    nn.init.constant_(model.temporal_pos_embedding, 7.0)
    assert (parameters["temporal_pos_embedding"] == 7).all()
    assert model.patch_embed.img_size == (32, 32)
    assert not hasattr(model, "no_such_thing")


def test_attributes_can_be_set(model: nn.Module) -> None:
    x = clip(SIZES[0])
    model.pos_embed = nn.Parameter(torch.zeros_like(model.pos_embed))
    assert (model.state_dict()["pos_embed"] == 0).all()
    model(x).sum().backward()
    assert model.pos_embed.grad is not None
    with pytest.raises(TypeError, match="cannot assign"):
        model.pos_embed = torch.zeros(1)


def test_replica_whose_tables_are_plain_attributes(model: nn.Module) -> None:
    """As DataParallel and FullyShardedDataParallel make them: set, read, and deleted again."""
    x = clip(SIZES[0])
    replica = model._replicate_for_data_parallel()
    for name, parameter in model.named_parameters(recurse=False):
        setattr(replica, name, parameter * 1)
    output = replica(x)
    assert torch.equal(output, model(x))
    assert gradients(model, output)["pos_embed"].abs().max() > 0
    del replica.pos_embed
    with pytest.raises(AttributeError, match="pos_embed"):
        replica(x)
    with pytest.raises(AttributeError, match="pos_embed"):
        del replica.pos_embed


def test_no_failure_inside_a_table_goes_unnoticed(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AttributeError("inner")

    monkeypatch.setattr(fv.Table, "follow", broken)
    with pytest.raises(RuntimeError, match=r"Making '.*' follow Geometry.* failed: inner"):
        model(clip(SIZES[0]))


def test_hooks_survive(plain: nn.Module) -> None:
    seen = []
    plain.patch_embed.proj.register_forward_hook(lambda *_: seen.append("conv"))
    plain.register_forward_hook(lambda *_: seen.append("root"))
    model = fv.make_flexible(plain)
    model(clip(SIZES[0]))
    fv.restore(model)(clip(BASE))
    assert seen == ["conv", "root"] * 2


def test_restore(plain: nn.Module) -> None:
    kind, conv, attributes = type(plain), type(plain.patch_embed.proj), set(plain.__dict__)
    x = clip(BASE)
    model = fv.make_flexible(plain)
    assert type(model) is not kind
    with torch.no_grad():
        model.pos_embed.add_(1)
    expected = model(x)
    assert fv.restore(model) is plain
    assert (type(plain), type(plain.patch_embed.proj), set(plain.__dict__)) == (kind, conv, attributes)
    assert all("_flex" not in name for module in plain.modules() for name in module.__dict__)
    assert torch.equal(plain(x), expected)
    assert fv.make_flexible(plain)(clip(SIZES[0])).shape == (2, 5)


def test_second_call_changes_policy_or_rule_and_nothing_else(model: nn.Module) -> None:
    x = clip((4, 48, 48))
    kinds = [type(module) for module in model.modules()]
    first = model(x)
    fv.make_flexible(model)
    assert torch.equal(model(x), first)
    fv.make_flexible(model, policy="static-patch")
    second = model(x)
    assert not torch.equal(second, first)
    fv.make_flexible(model, rule="paper")
    assert fv.flex_config(model)["policy"]["name"] == "static-patch"
    assert not torch.equal(model(x), second)
    fv.make_flexible(model, policy=fv.StaticTokens(), rule="auto")
    assert torch.equal(model(x), first)
    assert [type(module) for module in model.modules()] == kinds


def test_config_round_trip(plain: nn.Module) -> None:
    model = fv.make_flexible(plain, policy=fv.FlexAll(frames=(2, 4), sizes=(48, (96, 48))), rule="pi")
    config = json.loads(json.dumps(fv.flex_config(model)))
    twin = fv.make_flexible(fv.restore(copy.deepcopy(model)), **config)
    assert fv.flex_config(twin) == fv.flex_config(model)
    assert torch.equal(twin(clip(SIZES[0])), model(clip(SIZES[0])))


def test_one_class_for_all_models_of_a_kind(plain: nn.Module) -> None:
    other = copy.deepcopy(plain)
    assert type(fv.make_flexible(plain, policy="temporal")) is type(fv.make_flexible(other, rule="pi"))


def test_inference_mode_first_then_training(model: nn.Module) -> None:
    x = clip(SIZES[2])
    with torch.inference_mode():
        expected = model(x)
    output = model(x)
    torch.testing.assert_close(output, expected)
    assert gradients(model, output)["pos_embed"].isfinite().all()
