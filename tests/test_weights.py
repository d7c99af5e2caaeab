"""Reading weight files that may be anything, and writing them whole or not at all."""

import argparse
import os
import pickle
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from flexvideo.errors import CheckpointError
from flexvideo.weights import read_weights, write_pickle, write_safetensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(400, dtype=torch.bfloat16)}


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_of_both_kinds_are_read(tmp_path, zipped):
    path = tmp_path / "weights.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    content, text = read_weights(path)
    assert same(content, TENSORS)
    assert text == {}
    shapes, _ = read_weights(path, shapes_only=True)
    assert {key: (value.shape, value.dtype, value.device.type) for key, value in shapes.items()} == {
        key: (value.shape, value.dtype, "meta") for key, value in TENSORS.items()
    }


def test_safetensors_are_read_whatever_they_are_called(tmp_path):
    path = tmp_path / "weights.pth"
    save_file(TENSORS, path, metadata={"format": "pt"})
    content, text = read_weights(path)
    assert same(content, TENSORS)
    assert text == {"format": "pt"}
    shapes, _ = read_weights(path, shapes_only=True)
    assert shapes["b"].dtype is torch.bfloat16
    assert shapes["b"].is_meta


@pytest.mark.parametrize("filler", range(0, 600, 40))
def test_a_safetensors_header_of_any_length_is_no_pickle(tmp_path, filler):
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, {"a": torch.ones(2)}, text={"flexvideo": "x" * filler})
    assert read_weights(path)[1] == {"flexvideo": "x" * filler}


def test_tensors_outlive_the_file_they_come_from(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(TENSORS, path)
    content, _ = read_weights(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert same(content, TENSORS)


def test_the_command_line_in_an_official_training_checkpoint_is_no_obstacle(tmp_path):
    path = tmp_path / "checkpoint-49.pth"
    torch.save({"model": TENSORS, "args": argparse.Namespace(lr=1e-3, output_dir="runs")}, path)
    content, _ = read_weights(path)
    assert same(content["model"], TENSORS)
    assert content["args"].lr == 1e-3


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.bool_])
def test_scores_of_numpy_beside_the_weights_are_no_obstacle(tmp_path, dtype):
    path = tmp_path / "best.pth"
    torch.save({"model": TENSORS, "best": dtype(1)}, path)
    content, _ = read_weights(path)
    assert same(content["model"], TENSORS)
    assert content["best"] == 1


def test_numpy_had_another_name_for_it_before(tmp_path):
    path = tmp_path / "best.pth"
    torch.save({"model": TENSORS, "best": np.float64(1)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_weights(path)[0]["best"] == 1


def test_objects_in_numpys_clothes_run_no_code(tmp_path):
    path, victim = tmp_path / "weights.pth", tmp_path / "was_here"
    torch.save({"model": TENSORS, "best": np.array([Malicious(victim)], dtype=object)}, path)
    with pytest.raises(CheckpointError, match=r"weights\.pth is refused: its pickle calls "):
        read_weights(path)
    assert not victim.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["inside", "beside"])
def test_a_pickle_with_code_is_refused_and_the_code_not_run(tmp_path, zipped, where):
    path, victim = tmp_path / "weights.pth", tmp_path / "was_here"
    content = {"model": Malicious(victim)} if where == "inside" else {**TENSORS, "args": Malicious(victim)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"weights\.pth is refused: its pickle calls \w+\.mkdir, and reading"
    ):
        read_weights(path)
    assert not victim.exists()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_pickle_with_code_is_not_run_either(tmp_path, protocol):
    path, victim = tmp_path / "weights.bin", tmp_path / "was_here"
    path.write_bytes(pickle.dumps({"a": Malicious(victim)}, protocol=protocol))
    with pytest.raises(CheckpointError, match=r"weights\.bin"):
        read_weights(path)
    assert not victim.exists()


def test_a_whole_model_is_refused_by_the_class_it_would_call(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match=r"its pickle calls torch\.nn\.modules\.linear\.Linear"):
        read_weights(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_program_is_named_as_such(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(path)
    with pytest.raises(CheckpointError, match="is a TorchScript program, not a state dict"):
        read_weights(path)


def test_a_tensor_alone_is_no_state_dict(tmp_path):
    path = tmp_path / "tensor.pth"
    torch.save(torch.ones(2), path)
    with pytest.raises(CheckpointError, match=r"holds a Tensor, expected a state dict"):
        read_weights(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@given(part=st.floats(0.001, 0.999))
@settings(deadline=None, max_examples=25)
def test_a_truncated_file_is_never_read(tmp_path_factory, kind, part):
    path = tmp_path_factory.mktemp("cut") / "weights.pth"
    if kind == "safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: max(1, int(part * len(whole)))])
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        read_weights(path)


@given(
    noise=st.binary(min_size=1, max_size=200),
    start=st.sampled_from([b"PK\x03\x04", b"\x80\x02", b"\x08" + b"\0" * 7 + b"{", b""]),
)
@settings(deadline=None, max_examples=150)
def test_noise_is_refused_in_words(tmp_path_factory, noise, start):
    path = tmp_path_factory.mktemp("noise") / "weights.pth"
    path.write_bytes(start + noise)
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer, .*git lfs pull"),
        (b"<!DOCTYPE html><html>", "is a web page, not a weight file"),
        (b"\n<html>", "is a web page, not a weight file"),
        (b"hello, world", r"is no weight file: it starts with b'hello, world'"),
    ],
)
def test_files_that_are_something_else_are_told_apart(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_weights(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read: No such file or directory"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_weights(tmp_path)


def test_the_same_content_is_the_same_bytes(tmp_path):
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    write_safetensors(first, TENSORS, text={"flexvideo": "{}"})
    write_safetensors(second, dict(reversed(TENSORS.items())), text={"flexvideo": "{}"})
    assert first.read_bytes() == second.read_bytes()
    write_pickle(first, TENSORS)
    write_pickle(second, TENSORS)
    assert first.read_bytes() == second.read_bytes()


def test_views_are_written_as_what_they_show(tmp_path):
    path = tmp_path / "w.safetensors"
    table = torch.arange(6.0).reshape(2, 3)
    write_safetensors(path, {"t": table.T, "row": table[1]}, text={})
    assert same(read_weights(path)[0], {"t": table.T, "row": table[1]})


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"w\.safetensors cannot be written: No such file or directory\.$"
    ):
        write_safetensors(tmp_path / "none" / "w.safetensors", TENSORS, text={})


@pytest.mark.parametrize("write", [write_pickle, lambda path, state: write_safetensors(path, state, text={})])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, write):
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, room[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot be written: File too large\.$"):
            write(path, {"a": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_permissions_are_those_of_any_new_file(tmp_path):
    write_safetensors(tmp_path / "w.safetensors", TENSORS, text={})
    (tmp_path / "plain").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
