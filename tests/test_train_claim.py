"""One run at a time in a folder, whose model no other run writes over."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training import run, toy_train, weights

from flexvideo.errors import TrainingError
from flexvideo.train.checkpoint import FOLDER, checkpoints
from flexvideo.train.claim import FILE, claimed

pytestmark = pytest.mark.usefixtures("few_clips")
HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("process 7 on far")
file.flush()
print("held", flush=True)
time.sleep(60)
"""

KILLED = """
import os, signal, sys, time
from pathlib import Path
from flexvideo.train.claim import claimed
with claimed(Path(sys.argv[1])):
    child = os.fork()
    if not child:
        os.close(1)  # for which the test waits
        time.sleep(60)
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def held(folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder / FILE)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    process.stdout.close()
    return process


def test_a_second_run_is_refused_and_one_after_a_kill_is_not(tmp_path: Path, capsys):
    other = held(tmp_path / "a")
    codes = [run(tmp_path / "a", *more) for more in ((), ("--resume",))]
    other.kill()
    other.wait()
    said = (
        f"flexvideo train: Another run writes to {tmp_path}/a (process 7 on far): wait for its end, or "
        "choose another folder."
    )
    assert codes == [2, 2]
    assert capsys.readouterr().err.splitlines().count(said) == 2
    assert os.listdir(tmp_path / "a") == [FILE]
    assert run(tmp_path / "a", "--resume") == 0
    assert (tmp_path / "a" / FILE).read_text().startswith(f"process {os.getpid()} on ")


def test_processes_that_are_forked_do_not_hold_the_folder(tmp_path: Path):
    """As those that read clips, which live a second longer than a training that is killed."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    with claimed(tmp_path):
        os.kill(int(killed.stdout), signal.SIGKILL)  # it was there until now


def test_a_folder_that_cannot_be_locked(tmp_path: Path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    message = "cannot be locked, so no other run is kept out of it: .*No locks"
    with pytest.warns(UserWarning, match=message), claimed(tmp_path):
        pass


def test_a_model_without_checkpoints_is_not_written_over(tmp_path: Path):
    toy_train(tmp_path)
    before = weights(tmp_path)
    for path in checkpoints(tmp_path):
        path.unlink()
    (tmp_path / FOLDER).rmdir()
    for resume in (True, False):
        with pytest.raises(TrainingError, match=r"holds a model, .* and no checkpoint to go on from: choose"):
            toy_train(tmp_path, resume=resume)
    assert weights(tmp_path) == before


def test_resuming_where_nothing_is_says_so(tmp_path: Path, capsys):
    said = f"note: no checkpoint in {tmp_path}/a, starting from step 1\n"
    for expected in (True, False):
        assert run(tmp_path / "a", "--resume") == 0
        assert (said in capsys.readouterr().err) == expected
