"""Compile `cpu.c` with the system's C compiler at first use, and keep the library in the user's cache.

The file name is a hash of the source, the flags and everything that the compiler defines for this processor
(its own version included), so that a home shared by different machines is safe, and so is a compiler update.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("cpu.c")
FLAGS = ("-O3", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-fno-trapping-math")


class CompileError(Exception):
    """The C kernels cannot be built here; the text is one sentence."""


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels, from the cache where possible.

    Raises:
        CompileError: no compiler, or one that fails.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CompileError(
            "no C compiler was found (looked for $CC, cc, gcc and clang): install one, such as gcc, for "
            "scans several times as fast."
        )
    tune = "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"
    command = (*compiler.split(), tune, *FLAGS)
    target = _run((*compiler.split(), tune, "-dM", "-E", "-x", "c", os.devnull))
    key = hashlib.sha256(b"\0".join((SOURCE.read_bytes(), " ".join(command).encode(), target))).hexdigest()
    path = cache_folder() / f"scan-{key[:32]}.so"
    if path.exists():
        with contextlib.suppress(OSError):  # a file that was damaged is made anew
            return ctypes.CDLL(str(path))
    _compile(command, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompileError(f"the compiled library {path} cannot be loaded ({error}).") from error


@functools.cache
def team() -> ctypes.c_void_p:
    """The function by which torch's OpenMP runs another in its threads; null where torch has no OpenMP.

    LLVM's and Intel's libraries know the GNU name of it too. The search starts from torch's own library, as
    other packages bring OpenMP libraries of their own.
    """
    try:
        return ctypes.cast(ctypes.CDLL(torch._C.__file__).GOMP_parallel, ctypes.c_void_p)
    except (OSError, AttributeError):
        return ctypes.c_void_p()


def _compile(command: tuple[str, ...], path: Path) -> None:
    # a name of its own and a rename: processes that start together never see half a file
    handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        _run((*command, "-o", unfinished, str(SOURCE)))
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())  # where power fails, half a library would kill every later process
        os.replace(unfinished, path)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _run(command: tuple[str, ...]) -> bytes:
    try:
        return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise CompileError(f"the C compiler failed: {lines[0]} (command: {' '.join(command)}).") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"the C compiler could not be run ({error}).") from error


def cache_folder() -> Path:
    """The user's cache, or where that cannot be written a private folder of this process."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flexvideo"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"Compiled kernels cannot be kept, so every process compiles them anew ({error}): set "
            "XDG_CACHE_HOME to a folder that can be written.",
            stacklevel=2,
        )
        return Path(tempfile.mkdtemp(prefix="flexvideo-"))
