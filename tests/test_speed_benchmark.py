"""The speed benchmark: its official path computes what ours does, and no figure is lost to a fault."""

import copy
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from official_kernels import EXTENSIONS, add_norm

import flexvideo as fv

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _on_the_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def assert_official_agrees(device: str, *, padded: bool, add_norm, tolerance: float) -> None:
    torch.manual_seed(0)
    ours = fv.VideoMamba(img_size=32, depth=2, embed_dim=32, num_classes=5, num_frames=3, drop_path_rate=0.0)
    for name, parameter in ours.named_parameters():
        if name.endswith("bias") or "A" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    ours, clip = ours.to(device), torch.randn(2, 3, 3, 32, 32, device=device)
    theirs = module("_speed_official").OfficialVideoMamba(
        copy.deepcopy(ours), padded=padded, add_norm=add_norm
    )
    expected, found = ours(clip), theirs(clip)
    assert (found - expected).norm() <= tolerance * expected.norm()
    expected.square().sum().backward()
    found.square().sum().backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.model.parameters(), strict=True):
        assert (mine.grad - other.grad).norm() <= tolerance * mine.grad.norm() + 1e-7, name


@pytest.mark.parametrize("padded", [False, True])
def test_official_path_computes_what_ours_does(monkeypatch, padded):
    official = module("_speed_official")
    monkeypatch.setattr(official, "CHUNK", 16)
    monkeypatch.setattr(official, "extension", EXTENSIONS.__getitem__)
    assert_official_agrees("cpu", padded=padded, add_norm=add_norm, tolerance=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("padded", [False, True])
def test_official_path_on_its_own_kernels(padded):
    fused = module("_speed_official").official_add_norm()
    assert_official_agrees("cuda", padded=padded, add_norm=fused, tolerance=2e-3)


@pytest.mark.parametrize(("what", "column"), [("scan", "padded"), ("conv", "official"), ("norm", "official")])
def test_official_kernels_take_what_they_are_given(monkeypatch, what, column):
    kernels = module("_speed_kernels")
    monkeypatch.setattr(kernels, "CHUNK", 16)
    monkeypatch.setattr(kernels, "extension", EXTENSIONS.__getitem__)
    monkeypatch.setattr(kernels, "official_add_norm", lambda: add_norm)
    case = module("_speed_plan").Case(what, 2, 32, 1, column, "forward")
    subject = kernels.KernelSubject(case, torch.device("cpu"))
    for step in ("forward", "backward"):
        subject.run(step)()


def test_floor_is_the_counted_one():
    floor = module("_speed_floor")
    sizes = {"width": 576, "depth": 32, "weights": 74_000_000, "batch": 8, "tokens": 3137}
    assert floor.model_floor(**sizes, train=False) == pytest.approx(16.6, abs=0.1)
    assert 60 < floor.model_floor(**sizes, train=True) < 68
    assert floor.scan_forward(16 * 3137, 1152).milliseconds == pytest.approx(0.6, abs=0.01)


def test_plan_holds_every_case_once():
    plan = module("_speed_plan")
    for kind in ("quick", "full", "toy"):
        cases = plan.plan(kind, ["cuda", "triton"])
        assert len(cases) == len(set(cases))
        assert all(plan.case_of(case.row()) == case for case in cases)
    full = plan.plan("full", ["cuda", "triton"])
    assert set(plan.plan("quick", ["cuda", "triton"])) <= set(full)
    assert max(case.tokens for case in full) == 100_353
    geometries = {(case.frames, case.size) for case in full if case.what == "tiny"}
    assert {(8, 96), (8, 224), (16, 224), (32, 224), (64, 224), (16, 384)} <= geometries


def order(folder: Path, *only: str, seconds: float = 60.0, resume: bool = False) -> SimpleNamespace:
    return module("_speed_worker").Order("toy", only, seconds, resume, folder)


def rows_of(path: Path) -> list[dict]:
    return json.loads(path.read_text())["rows"]


def test_figures_are_written_and_resumed(tmp_path, monkeypatch):
    worker = module("_speed_worker")
    monkeypatch.setattr(module("_speed_timing"), "SECONDS", 0.0)
    first = rows_of(worker.work(order(tmp_path, "4x48x2 forward ours")))
    assert [row["column"] for row in first] == ["ours cpu"]
    assert first[0]["ms"] > 0
    assert first[0]["clips_per_s"] == pytest.approx(2e3 / first[0]["ms"], rel=0.01)
    both = rows_of(worker.work(order(tmp_path, "4x48x2 forward", resume=True)))
    assert both[0] == first[0]  # not measured again
    assert [row["column"] for row in both] == ["ours cpu", "vit", "floor"]


def test_a_case_that_ends_the_process_is_in_the_file(tmp_path, monkeypatch):
    worker = module("_speed_worker")
    monkeypatch.setattr(worker, "result", lambda case, subjects: sys.exit("a fault"))
    with pytest.raises(SystemExit):
        worker.work(order(tmp_path, "4x48x2 forward"))
    (path,) = tmp_path.glob("*.json")
    assert rows_of(path)[0]["error"] == worker.UNFINISHED
    monkeypatch.undo()
    rows = rows_of(worker.work(order(tmp_path, "4x48x2 forward", resume=True)))
    assert ["error" in row for row in rows] == [True, False, False]


def test_an_error_is_the_cell_and_the_rest_goes_on(tmp_path, monkeypatch):
    worker = module("_speed_worker")

    def fail(prepare, device):
        raise torch.OutOfMemoryError("64 GiB")

    monkeypatch.setattr(worker, "measure", fail)
    rows = rows_of(worker.work(order(tmp_path, "4x48x2 forward")))
    assert [row.get("error") for row in rows] == ["out of memory", "out of memory", None]
    assert module("_speed_table").text(rows[0]) == "OOM"


def test_an_error_after_which_nothing_can_run_is_kept(tmp_path, monkeypatch):
    """A fault of the device raises again when its memory is freed."""
    worker = module("_speed_worker")

    def fault(*_):
        raise RuntimeError("an illegal memory access was encountered\nand more")

    monkeypatch.setattr(worker, "measure", fault)
    monkeypatch.setattr(worker.Subjects, "drop", lambda self: fault() if self.last else None)
    with pytest.raises(RuntimeError, match="illegal"):
        worker.work(order(tmp_path, "4x48x2 forward"))
    (path,) = tmp_path.glob("*.json")
    assert rows_of(path)[0]["error"] == "RuntimeError: an illegal memory access was encountered"


def test_nothing_begins_after_the_budget(tmp_path, capsys):
    module("_speed_worker").work(order(tmp_path, "4x48x2 forward", seconds=-1.0))
    assert "Out of time: 3 of 3 cases left" in capsys.readouterr().out


def test_a_silent_process_is_ended(capsys):
    speed = module("speed")
    script = "import time; print(1, flush=True); time.sleep(60)"
    lines, status = speed.watch([sys.executable, "-c", script], hang=2.0)
    assert (lines, status != 0) == (1, True)
    assert "Nothing for 2 s" in capsys.readouterr().out
    assert speed.watch([sys.executable, "-c", "print(1); print(2); exit(3)"], hang=30.0) == (2, 3)


def row(column: str, tokens_of: tuple[int, int], batch: int, milliseconds: float, **more: object) -> dict:
    frames, size = tokens_of
    plan = module("_speed_plan")
    case = plan.Case("middle", frames, size, batch, column, str(more.pop("step", "forward")))
    return {**case.row(), "ms": milliseconds, "clips_per_s": 0.0, "peak_gib": 15.0, **more}


def test_targets_take_our_fastest_column():
    rows = [row("ours triton", (16, 224), 16, 80.0), row("ours cuda", (16, 224), 16, 50.0)]
    rows += [row("vit", (16, 224), 16, 40.0), row("ours cuda", (16, 224), 16, 240.0, step="train")]
    forward, train = module("_speed_table").targets(rows)[2:]
    assert [cell.strip() for cell in forward.split("|")[2:6]] == ["55 ms", "50 ms", "ours cuda", "yes"]
    assert [cell.strip() for cell in train.split("|")[2:4]] == ["250 ms, 16 GiB", "240 ms, 15.0 GiB"]


def test_crossing_lies_between_the_measured_lengths():
    table = module("_speed_table")
    assert table.crossing({1000: 2.0, 4000: 0.5}) == "from 2,000 tokens"
    assert table.crossing({1000: 0.9, 4000: 1.5}) == "not up to 4,000 tokens"
    assert table.crossing({1000: 0.9, 4000: 0.5}) == "from fewer than 1,000 tokens"
    rows = [row("ours cuda", (8, 224), 32, 64.0), row("ours cuda", (32, 224), 8, 64.0)]
    rows += [row("vit", (8, 224), 32, 32.0), row("vit", (32, 224), 8, 128.0)]
    assert "ours cuda against vit: from 3," in table.crossings(rows)[1]


def test_cost_of_a_token_over_the_lengths():
    rows = [row("ours cuda", (16, 224), 32, 100.384), row("ours cuda", (512, 224), 1, 110.3883)]
    (line,) = module("_speed_table").costs(rows)[2:]
    assert [cell.strip() for cell in line.split("|")[1:5]] == ["ours cuda", "1.000", "1.100", "10%"]


def test_picture_is_drawn_from_rows(tmp_path):
    rows = [row(column, (frames, 224), 16, 50.0) for column in ("ours cuda", "vit") for frames in (8, 16)]
    picture = module("_speed_picture").draw_tokens(rows, tmp_path / "speed.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_fastest_attention_is_one_that_runs(monkeypatch):
    vit, backends = module("_speed_vit"), torch.nn.attention.SDPBackend
    monkeypatch.setattr(vit, "FUSED", (backends.FLASH_ATTENTION, backends.CUDNN_ATTENTION))
    monkeypatch.setattr(module("_speed_timing"), "SECONDS", 0.0)
    case = module("_speed_plan").Case("toy", 2, 32, 2, "vit", "forward")
    assert vit.fastest_attention(case, 2, torch.device("cpu")) == backends.FLASH_ATTENTION


@pytest.mark.slow
def test_every_column_that_can_runs_on_a_cpu(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "speed.py"), "--toy", "--results", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.json")
    failed = {(row["column"], row["step"]) for row in rows_of(path) if "error" in row}
    needs_cuda = {(column, step) for column, step in failed if "graphed" in column + step}
    assert {column for column, _ in failed - needs_cuda} <= {"official", "padded"}
    assert "| what | clip " in done.stdout


def test_a_new_process_goes_on_after_one_that_died(tmp_path, monkeypatch):
    speed, ends, commands = module("speed"), [(3, -9), (0, 1), (7, 0)], []

    def watch(command, *, hang):
        commands.append(command)
        return ends.pop(0)

    monkeypatch.setattr(speed, "watch", watch)
    assert speed.main(["--toy", "--results", str(tmp_path), "--budget", "100"]) == 0
    assert ["--resume" in command for command in commands] == [False, True, True]
    assert all(float(command[command.index("--worker") + 1]) <= 100 for command in commands)
    ends.extend([(0, 1)] * speed.FAULTS)
    assert speed.main(["--toy", "--results", str(tmp_path)]) == 1


def test_without_a_gpu_nothing_is_tried(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))
    assert module("speed").main(["--quick", "--results", str(tmp_path)]) == 2
    assert "--toy tries every column on a CPU" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
