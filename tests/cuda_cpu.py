"""The CUDA kernels on a CPU: built by g++ with `cuda_on_cpu.h`, called as `nvrtc.run` calls them."""

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from torch import Tensor

from flexvideo.scan import nvrtc

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
SCAN = nvrtc.FOLDER
FLAGS = ("-x", "c++", "-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-include", str(HEADER), f"-I{SCAN}")


@functools.cache
def library(source: str, defines: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
    """One variant of a .cu file as a shared library, kept between runs of the tests."""
    texts = [HEADER.read_bytes(), *nvrtc.texts_of(source).values()]
    macros = [f"-D{name}={value}" for name, value in defines]
    key = hashlib.sha256(b"\0".join((*texts, " ".join((*FLAGS, *macros)).encode()))).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"flexvideo-cuda-on-cpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{key[:24]}.so"
    if not path.exists():
        unfinished = path.with_suffix(f".{os.getpid()}")
        subprocess.run(["g++", *FLAGS, *macros, str(SCAN / source), "-o", str(unfinished)], check=True)
        unfinished.replace(path)
    return ctypes.CDLL(str(path))


def run(
    source: str,
    kernel: str,
    grid: tuple[int, int, int],
    threads: int,
    *arguments: Tensor | int,
    defines: dict[str, int],
    shared: int = 0,
    reversed_order: bool = False,
) -> None:
    """Stands in for `nvrtc.run`: pointers for tensors, 64-bit integers for numbers."""
    function = getattr(library(source, tuple(defines.items())), f"{kernel}_on_cpu")
    values = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    words = (ctypes.c_longlong * len(values))(*values)
    at = ctypes.addressof(words)
    pointers = (ctypes.c_void_p * len(values))(*range(at, at + 8 * len(values), 8))
    sizes = (ctypes.c_int * 4)(*grid, threads)
    assert function(sizes, int(reversed_order), pointers) == 0, f"{kernel}: threads wait for ever"
