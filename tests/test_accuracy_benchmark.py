"""The evidence run at a toy size: it resumes, fills what is missing, and draws from its files alone."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training import ToySource

import flexvideo as fv
from flexvideo.data import Batch, FlexLoader
from flexvideo.data.mocap import Take
from flexvideo.data.motion import MotionSet
from flexvideo.data.skeleton import INDEX
from flexvideo.demo.recipe import SHIPPED, Recipe
from flexvideo.errors import ConfigError
from flexvideo.evaluate import NativeSize
from flexvideo.train import loss_sum

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _on_the_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def module(name: str):
    return importlib.import_module(name)


def takes(style: str = "calm") -> list[Take]:
    """A take of every action: somebody stands, and holds a hand as high as the number of the action."""
    recipes = module("_evidence_recipes")
    names = sorted({recipes.WALK, *(step for recipe in recipes.RECIPES.values() for step in recipe)})
    found = []
    for number, name in enumerate(names):
        joints = torch.rand(1, 21, 3, generator=torch.Generator().manual_seed(0)).repeat(90, 1, 1)
        joints[:, INDEX["UpperLeg_L"]] = torch.tensor([0.1, 0.9, 0.0])
        joints[:, INDEX["UpperLeg_R"]] = torch.tensor([-0.1, 0.9, 0.0])
        joints[:, INDEX["Hips"]] = torch.tensor([0.0, 1.0, 0.0])
        joints[:, INDEX["Hand_L"], 1] = 2.0 + number
        found.append(Take(joints, name, style, number))
    return found


def test_recipes_of_a_group_differ_in_order_alone():
    recipes = module("_evidence_recipes").RECIPES
    groups: dict[str, list[tuple[str, ...]]] = {}
    for name, steps in recipes.items():
        groups.setdefault(name[0], []).append(steps)
    assert len(recipes) == 12
    for members in groups.values():
        assert len(set(members)) == 4
        assert len({tuple(sorted(steps)) for steps in members}) == 1
        for one in members:
            swapped = [sum(a != b for a, b in zip(one, other, strict=True)) for other in members]
            assert sorted(swapped) == [0, 4, 4, 4]  # two pairs of two


def test_a_recipe_is_its_steps_in_order():
    recipes = module("_evidence_recipes")
    clips = recipes.MocapRecipes(takes(), fps=15.0, split="train", per_class=2)
    assert len(clips) == 24
    assert clips.labels[13] == 1
    height = clips.joints(1, torch.arange(0, clips.duration(1), 1 / 15))[:, INDEX["Hand_L"], 1]
    heights = {take.action: 2.0 + n for n, take in enumerate(takes())}
    ground = float(height.min()) - min(heights.values())
    wanted = [heights[step] + ground for step in recipes.RECIPES[clips.classes[1]]]
    held = [round(float(value)) for value in (height - ground)]
    order = [value for value, before in zip(held, [None, *held], strict=False) if value != before]
    steps = [value for value in order if value != round(heights[recipes.WALK])]
    reached = iter(steps)
    assert all(any(value == round(step - ground) for value in reached) for step in wanted)
    assert 15 < clips.duration(1) < 40


def test_recipes_are_functions_of_their_number_and_turn_to_the_camera():
    recipes = module("_evidence_recipes")
    one, same, other = (
        recipes.MocapRecipes(takes(), fps=15.0, split=split, per_class=1)
        for split in ("train", "train", "test")
    )
    assert torch.equal(one.sample(3, frames=2, size=16), same.sample(3, frames=2, size=16))
    assert not torch.equal(one.sample(3, frames=2, size=16), other.sample(3, frames=2, size=16))
    joints = one.joints(3, torch.arange(0, one.duration(3), 0.1))
    across = joints[:, INDEX["UpperLeg_L"]] - joints[:, INDEX["UpperLeg_R"]]
    facing = torch.atan2(-across[:, 2], across[:, 0]).rad2deg()
    assert facing.abs().max() < 75
    assert facing.std() > 5
    step = joints[:, INDEX["Hips"]].diff(dim=0).norm(dim=1)
    assert step.max() < 0.3  # metres in a tenth of a second: nobody jumps at a seam


def test_vanilla_comes_with_every_baseline():
    scale, evidence = module("_evidence_scale"), module("_evidence_arms")
    for kind in scale.FULL.kinds:
        found = evidence.arms(scale.FULL, kind)
        rows = [row for arm in found for row in arm.rows]
        assert {*evidence.FLEXIBLE, *module("_evidence_tables").ROWS} == set(rows)
        assert all(arm.quarter for arm in found if arm.name in evidence.FLEXIBLE)
        assert len(scale.FULL.grid(kind)) == 8 * 4 + 2
        own = scale.FULL.model["num_frames"]
        assert [arm.frames for arm in found if arm.frames] == [t for t in kind.lengths if t != own]
        for name in evidence.FLEXIBLE:
            policy = scale.FULL.policy(name, kind)
            assert policy.name == name


@pytest.mark.parametrize("kind", ["short", "long"])
def test_arms_of_a_quarter_learn_as_vanilla_does(kind):
    """A quarter of the epochs, no larger steps in clips or tokens, and the same rate."""
    evidence, scale = module("_evidence_arms"), module("_evidence_scale").FULL
    kind, clips = scale.kind(kind), 2000
    for arm in evidence.arms(scale, kind):
        config = evidence.config_of(scale, kind, arm, 0, clips)
        policy = evidence.policy_of(scale, kind, arm)
        assert config.tokens <= scale.tokens
        if not arm.quarter:
            assert config.epochs * config.steps == scale.epochs * -(-clips // scale.clips)
            continue
        loader = FlexLoader(
            ToySource(clips=clips),
            policy=policy,
            base=scale.base,
            tokens=config.tokens,
            clips=config.clips,
            specs=config.specs,
        )
        a_step = loader.summary(config.epochs).total() / loader.total_steps(config.epochs)
        assert config.epochs * 4 == scale.epochs
        assert config.lr * a_step / 256 == pytest.approx(scale.lr, rel=0.2)
        assert scale.clips / 2 < a_step <= scale.clips


def test_only_what_was_trained_to_its_end_is_measured(tmp_path, monkeypatch):
    arms, scale = module("_evidence_arms"), module("_evidence_scale").TOY
    place = module("_evidence_place").Place(scale, tmp_path, tmp_path, None, "cpu", lambda: 1.0, print)
    kind, vanilla = scale.kinds[0], arms.arms(scale, scale.kinds[0])[0]
    model, facts = tmp_path / "short-0-vanilla" / "model.safetensors", tmp_path / "short-0-vanilla-run.json"

    def begin(*_):
        raise RuntimeError("a training begins")

    monkeypatch.setattr(arms, "load_start", begin)
    model.parent.mkdir()
    model.touch()  # of a training that was stopped
    with pytest.raises(RuntimeError, match="a training begins"):
        arms.run_arm(place, kind, vanilla, 0)
    model.unlink()  # lost, and known to be finished
    facts.touch()
    with pytest.raises(RuntimeError, match="a training begins"):
        arms.run_arm(place, kind, vanilla, 0)
    assert not facts.exists()


@pytest.mark.slow
def test_the_whole_run_in_parts(tmp_path, capsys):
    accuracy, scale = module("accuracy"), module("_evidence_scale").TOY
    arms = module("_evidence_arms").arms(scale, scale.kinds[0])
    asked, trials = ([arm for arm in arms if arm.trial is trial] for trial in (False, True))
    words = ["--toy", "--out", str(tmp_path), "--kinds", "short", "--seeds", "0"]
    assert accuracy.main([*words, "--minutes", "0"]) == 0
    assert "the start goes on with the next call" in capsys.readouterr().out
    calls = 0
    while f"{len(asked)} of {len(asked)} trainings are done and measured" not in (
        out := _said(accuracy, words, capsys, minutes=0.1)
    ):
        assert "the time is over" in out
        calls += 1
        assert calls < 20
    assert calls > 0
    kept = {path: path.read_bytes() for path in tmp_path.glob("short-*.json")}
    assert len(kept) == len(asked) + 2 * sum(len(arm.rows) for arm in asked)
    (tmp_path / "short-0-flexivit-probe.json").unlink()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("short-*.json")}
    _said(accuracy, words, capsys, minutes=5)
    assert {path: path.read_bytes() for path in tmp_path.glob("short-*.json")} == kept
    again = {path.name for path, time in written.items() if path.stat().st_mtime_ns != time}
    assert again == {"short-0-flexivit-retrieval.json"}
    (tmp_path / "short-0-temporal-probe.json").unlink()
    out = _said(accuracy, [*words, "--side-by-side", "2"], capsys, minutes=5)
    assert f"{len(asked)} of {len(asked)} trainings are done and measured" in out
    assert {path: path.read_bytes() for path in tmp_path.glob("short-*.json")} == kept
    out = _said(accuracy, [*words, "--only", *(arm.name for arm in trials)], capsys, minutes=5)
    assert f"{len(trials)} of {len(trials)} trainings are done and measured" in out
    assert accuracy.main([*words, "--table", "--figures"]) == 0
    shown = capsys.readouterr().out
    for row in module("_evidence_tables").ROWS:
        assert f"| {row} " in shown
    assert (tmp_path / "retrieval-heat.png").exists()


@pytest.mark.slow
def test_the_models_of_the_demo(tmp_path, capsys, monkeypatch):
    demo = module("train_demo")
    few = Recipe(
        clips=1,
        start=replace(SHIPPED.start, steps=2, warmup=0),
        training=replace(SHIPPED.training, epochs=1, warmup_epochs=0, steps=2),
    )
    monkeypatch.setattr(demo, "SHIPPED", few)
    measure, kept = demo.measure_pair, []
    monkeypatch.setattr(demo, "measure_pair", lambda files: measure(files, frames=(8,), sizes=(24, 48)))
    monkeypatch.setattr(demo, "write_results", lambda name, rows: kept.append((name, rows)))
    assert demo.main(["--out", str(tmp_path), "--threads", "1"]) == 0
    assert "static tokens" in capsys.readouterr().out
    ((name, (summary, *rows)),) = kept
    assert (name, len(rows)) == ("demo", 3 * 2)
    assert "training_cpu_seconds" in summary
    files = [tmp_path / "vanilla.safetensors", tmp_path / "static-tokens.safetensors"]
    plain, flexible = map(fv.load, files)
    assert plain.labels == flexible.labels == MotionSet().classes
    assert next(plain.parameters()).dtype == torch.float16


def _said(accuracy, words: list[str], capsys, *, minutes: float) -> str:
    assert accuracy.main([*words, "--minutes", str(minutes)]) == 0
    return capsys.readouterr().out


def test_clips_of_another_set_are_not_taken_for_this_one(tmp_path):
    drawn, few = module("_evidence_data").drawn, MotionSet(actions=("bow",), per_class=1)
    path = tmp_path / "short-train.bin"
    found = drawn(path, few, frames=2, size=8, device="cpu")
    assert torch.equal(drawn(path, few, frames=2, size=8, device="cpu"), found)
    with pytest.raises(ConfigError, match=r"short-train.bin holds the clips of another set or size"):
        drawn(path, few, frames=2, size=16, device="cpu")
    assert path.stat().st_size == found.numel()


def test_a_folder_is_of_one_set_and_scale(tmp_path):
    """What it is of is said by the first call that makes something."""
    evidence, scale = module("_evidence_place"), module("_evidence_scale").TOY
    mocap, other = tmp_path / "a.npz", tmp_path / "b.npz"
    mocap.write_bytes(b"a")
    other.write_bytes(b"b")

    def claim(mocap, *, out="out", work="work", scale=scale):
        evidence.claim(
            evidence.Place(scale, tmp_path / out, tmp_path / work, mocap, "cpu", lambda: 1.0, print)
        )

    claim(mocap)
    claim(mocap)
    (tmp_path / "moved.npz").write_bytes(b"a")
    claim(tmp_path / "moved.npz")
    more = replace(scale, epochs=scale.epochs + 1)
    for out, work, named in (("out", "new", "out"), ("new", "work", "work")):
        for source in (None, other):
            with pytest.raises(ConfigError, match=rf"/{named} is of another set than asked for \(made-of"):
                claim(source, out=out, work=work)
        with pytest.raises(ConfigError, match=rf"/{named} is of another scale than asked for"):
            claim(mocap, out=out, work=work, scale=more)
        with pytest.raises(ConfigError, match="of another set and scale than asked for"):
            claim(other, out=out, work=work, scale=more)


def test_the_other_set_is_refused_before_it_is_made(tmp_path, capsys, monkeypatch):
    accuracy = module("accuracy")
    monkeypatch.setattr(accuracy, "make_start", lambda place: False)
    words = ["--toy", "--out", str(tmp_path / "out")]
    assert accuracy.main([*words, "--table"]) == 0
    assert not (tmp_path / "out").exists()
    assert accuracy.main(words) == 0
    mocap = tmp_path / "mocap.npz"
    with pytest.raises(SystemExit):
        accuracy.main([*words, "--mocap", str(mocap)])
    assert f"--mocap: there is no file {mocap}" in capsys.readouterr().err
    mocap.touch()
    with pytest.raises(ConfigError, match="is of another set than asked for"):
        accuracy.main([*words, "--mocap", str(mocap)])
    assert accuracy.main([*words, "--mocap", str(mocap), "--table"]) == 0


def test_own_size_often_is_every_second_draw_of_each():
    evidence, scale = module("_evidence_arms"), module("_evidence_scale").FULL
    for kind in scale.kinds:
        (arm,) = [arm for arm in evidence.arms(scale, kind) if arm.own_often]
        policy, others = evidence.policy_of(scale, kind, arm), scale.policy("static-tokens", kind)
        assert set(policy.specs(scale.base)) == set(others.specs(scale.base))
        drawn = [policy.sample(scale.base, seed=0, epoch=0, step=step) for step in range(2000)]
        assert sum(spec.frames == scale.base.frames for spec in drawn) == pytest.approx(1000, abs=100)
        assert sum(spec.height == scale.base.height for spec in drawn) == pytest.approx(1000, abs=100)


def test_only_names_trainings(tmp_path, capsys):
    with pytest.raises(SystemExit):
        module("accuracy").main(["--toy", "--out", str(tmp_path), "--only", "static tokens"])
    assert "no training 'static tokens'; there are 'vanilla', 'static-tokens', " in capsys.readouterr().err


def test_a_trial_differs_from_static_tokens_in_what_it_says():
    evidence, scale = module("_evidence_arms"), module("_evidence_scale").FULL
    for kind in scale.kinds:
        found = {arm.name: arm for arm in evidence.arms(scale, kind)}
        trials = [arm for arm in found.values() if arm.trial]
        assert [arm.rows for arm in trials] == [(arm.name,) for arm in trials]
        for arm in trials:
            one, other = (
                evidence.config_of(scale, kind, each, 0, 2000) for each in (arm, found["static-tokens"])
            )
            assert replace(one, specs=1, lr=other.lr) == other
            assert arm.longer or one.lr == other.lr  # for as many clips a step
            lengths = kind.lengths[1:] if arm.longer else kind.lengths
            policy = replace(scale.policy("static-tokens", kind), frames=lengths)
            assert evidence.policy_of(scale, kind, arm) == policy
        assert [(arm.rule, arm.specs, arm.distilled, arm.alike, arm.longer) for arm in trials] == [
            ("paper", 1, False, False, False),
            (None, 4, False, False, False),
            (None, 1, True, False, False),
            (None, 1, False, True, False),
            (None, 1, False, False, True),
        ]


def batch(frames: int, size: int, patch: int) -> Batch:
    spec, weights = fv.ClipSpec(frames, size, size, (patch, patch)), torch.tensor([1.0, 0.0, 1.0])
    targets = torch.rand(3, 5).softmax(1)
    return Batch(
        torch.rand(3, 3, frames, size, size),
        torch.tensor([0, 4, 2]),
        (0, 1, 2),
        (0, 1, 2),
        spec,
        weights,
        targets,
    )


def test_the_distilled_learn_from_their_own_size():
    """Both cross-entropies by halves, and the divergence from a teacher that it does not move."""
    torch.manual_seed(0)
    plain = fv.VideoMamba(img_size=16, patch_size=8, depth=1, embed_dim=16, num_frames=2, num_classes=5)
    clips = batch(3, 24, 12)
    own = NativeSize(plain).fit(clips.clips)
    model = fv.make_flexible(plain, policy=fv.StaticTokens(frames=(2, 3), sizes=(16, 24))).eval()
    criterion = module("_evidence_losses").Distilled(fv.plan_for(model).base)
    drawn, taught = model(clips.clips, patch=(12, 12)), model(own)
    teacher, learned = taught.detach().softmax(1), drawn.softmax(1)
    divergence = (teacher * (teacher / learned).log()).sum(1)[[0, 2]].sum()
    expected = (loss_sum(drawn, clips) + loss_sum(taught, clips)) / 2 + divergence
    found = criterion(model, clips)
    torch.testing.assert_close(found, expected)
    weights = list(model.parameters())
    torch.testing.assert_close(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights))
    same = batch(2, 16, 8)  # one pass is both
    torch.testing.assert_close(criterion(model, same), loss_sum(model(same.clips), same))


def test_clips_count_alike_in_steps_of_many_and_of_few():
    torch.manual_seed(0)
    model = fv.VideoMamba(img_size=16, patch_size=8, depth=1, embed_dim=16, num_frames=2, num_classes=5)
    fv.make_flexible(model).eval()
    criterion, clips = module("_evidence_losses").ClipsAlike(6), batch(3, 24, 12)
    torch.testing.assert_close(criterion(model, clips), loss_sum(model(clips.clips), clips) / 2)


def test_without_a_gpu_only_the_toy_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        module("accuracy").main(["--out", str(tmp_path)])
    assert "no GPU is visible, without which this takes weeks: try it with --toy" in capsys.readouterr().err
