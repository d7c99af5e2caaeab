"""CUDA C compiled when first used by NVRTC, NVIDIA's compiler in a library, and launched by the driver.

Nothing has to be installed beside torch's own CUDA wheels: no toolkit, no headers, no C compiler. What is
compiled is kept in the user's cache under a hash of sources, flags and compiler version.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from flexvideo.errors import BackendError, CheckpointError
from flexvideo.scan.native import cache_folder
from flexvideo.weights import write_atomically

FOLDER = Path(__file__).parent
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
Defines = tuple[tuple[str, int], ...]
_LEFT = ctypes.byref(ctypes.c_void_p())  # where the driver says which context was left
DIGEST = 32  # bytes that follow a kept cubin
MOST_WORDS = 512  # 4 KiB, as much as a kernel takes


class _Places(threading.local):
    """Where a thread puts what it gives to a kernel, which the driver copies before a launch returns.

    A model starts hundreds of kernels, and to make new places for each takes longer than to start it.
    """

    def __init__(self) -> None:
        self.words = (ctypes.c_longlong * MOST_WORDS)()
        at = ctypes.addressof(self.words)
        self.pointers = (ctypes.c_longlong * MOST_WORDS)(*range(at, at + 8 * MOST_WORDS, 8))


_places = _Places()


def run(
    source: str,
    kernel: str,
    grid: tuple[int, int, int],
    threads: int,
    *arguments: Tensor | int,
    defines: dict[str, int],
    shared: int = 0,
) -> None:
    """Launch a kernel on the current stream of the first argument's device.

    Every argument takes 8 bytes: a tensor is the pointer to its first element, a number is a `long long`.
    They lie side by side, so that the last of them may be the fields of one struct.

    Args:
        source: file name of the CUDA C beside this module.
        kernel: name of its `extern "C" __global__` function.
        grid: blocks in x, y and z.
        threads: of a block.
        arguments: tensors and numbers, a tensor first.
        defines: macros, all of which become part of the compiled variant.
        shared: bytes of dynamic shared memory.

    Raises:
        BackendError: a kernel that does not compile, load or start.
    """
    first = arguments[0]
    assert isinstance(first, Tensor)
    if 0 in grid:
        return  # an empty batch: the driver refuses to do nothing
    device = first.get_device()
    function, context = _loaded(source, kernel, tuple(defines), tuple(defines.values()), device, shared)
    words = [x if isinstance(x, int) else x.data_ptr() for x in arguments]
    struct.pack_into(f"{len(words)}q", _places.words, 0, *words)
    stream = torch._C._cuda_getCurrentRawStream(device)  # as Triton does; the public way makes an object
    driver = _driver()
    # a thread of the backward pass may have no context yet
    _check(driver.cuCtxPushCurrent_v2(context), "enter the context")
    started = driver.cuLaunchKernel(function, *grid, threads, 1, 1, shared, stream, _places.pointers, None)
    driver.cuCtxPopCurrent_v2(_LEFT)
    _check(started, f"start {kernel}")


def unavailable(capability: tuple[int, int] | None = None) -> str | None:
    """Why nothing can be compiled, in one sentence.

    Args:
        capability: compute capability of the device that it is for; None asks for the compiler alone.
    """
    try:
        compiler = _compiler()
    except BackendError as error:
        return str(error)
    known = _architectures(compiler)
    if capability is None or 10 * capability[0] + capability[1] in known:
        return None
    return (
        f"NVRTC {_version(compiler).decode()} compiles for compute capabilities {min(known) / 10} to "
        f"{max(known) / 10}, not for {capability[0]}.{capability[1]}: install a torch for a newer CUDA."
    )


def compiled(source: str, defines: Defines, architecture: str) -> bytes:
    """The cubin of one variant of a source, from the cache where possible.

    Args:
        source: file name beside this module.
        defines: macros by name and value.
        architecture: of the device, as in "sm_90".

    Raises:
        BackendError: no compiler, or a source that it refuses.
    """
    compiler = _compiler()
    options = [f"--gpu-architecture={architecture}", *(f"-D{name}={value}" for name, value in defines)]
    texts = texts_of(source)
    contents = [*texts.values(), " ".join(options).encode(), _version(compiler)]
    key = hashlib.sha256(b"\0".join(contents)).hexdigest()
    path = _folder() / f"{Path(source).stem}-{key[:32]}.cubin"
    kept = path.read_bytes() if path.exists() else b""
    if (
        hashlib.sha256(kept[:-DIGEST]).digest() == kept[-DIGEST:]
    ):  # the driver would refuse a damaged one for ever
        return kept[:-DIGEST]
    # NVRTC leaves the thread that calls it in the C locale, in which Python would decode files as ASCII
    with ThreadPoolExecutor(1) as thread:
        cubin = thread.submit(_compile, compiler, source, texts, options).result()
    try:
        write_atomically(path, cubin + hashlib.sha256(cubin).digest())
    except CheckpointError as error:
        warnings.warn(
            f"The CUDA kernels cannot be kept and are compiled anew next time: {error}", stacklevel=2
        )
    return cubin


def texts_of(source: str) -> dict[str, bytes]:
    """A source, and the headers beside it that it or these include, by name."""
    found = {source: (FOLDER / source).read_bytes()}
    for header in re.findall(rb'^#include "(\S+)"', found[source], re.MULTILINE):
        found |= texts_of(header.decode())
    return found


def _compile(compiler: ctypes.CDLL, source: str, texts: dict[str, bytes], options: list[str]) -> bytes:
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    included = {name.encode(): text for name, text in texts.items() if name != source}
    array = ctypes.c_char_p * len(included)
    headers, names = array(*included.values()), array(*included)
    flags = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    if compiler.nvrtcCreateProgram(
        ctypes.byref(program), texts[source], source.encode(), len(included), headers, names
    ):
        raise BackendError(f"NVRTC could not take {source}.")
    try:
        if compiler.nvrtcCompileProgram(program, len(options), flags):
            raise BackendError(
                f"NVRTC could not compile {source} ({' '.join(options)}): {_log(compiler, program)}"
            )
        compiler.nvrtcGetCUBINSize(program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        compiler.nvrtcGetCUBIN(program, cubin)
        return cubin.raw
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))


def _log(compiler: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    compiler.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    compiler.nvrtcGetProgramLog(program, log)
    lines = log.value.decode(errors="replace").splitlines()
    return next((line for line in lines if "error" in line), "no message")


@functools.cache
def _loaded(
    source: str, kernel: str, names: tuple[str, ...], values: tuple[int, ...], device: int, shared: int
) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """The kernel as the driver knows it, and the context in which it is."""
    if device < 0:
        raise BackendError(
            "The scan backend 'cuda' is for tensors on a CUDA device, and these are elsewhere: use 'auto'."
        )
    major, minor = torch.cuda.get_device_capability(device)
    defines = tuple(zip(names, values, strict=True))  # apart, they are found sooner
    cubin = compiled(source, defines, f"sm_{major}{minor}")
    driver, context = _driver(), _context(device)
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _check(driver.cuCtxPushCurrent_v2(context), "enter the context")
    try:
        _check(driver.cuModuleLoadData(ctypes.byref(module), cubin), f"load {source}")
        _check(driver.cuModuleGetFunction(ctypes.byref(function), module, kernel.encode()), f"find {kernel}")
        if shared > 48 << 10:  # more than every device has must be asked for
            _check(driver.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, shared), f"get {shared} bytes")
    finally:
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    return function, context


@functools.cache
def _context(device: int) -> ctypes.c_void_p:
    """The context that torch uses on this device."""
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    torch.cuda.init()
    _check(_driver().cuDeviceGet(ctypes.byref(handle), device), "find the device")
    _check(_driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), handle), "get the context")
    return context


def _check(result: int, what: str) -> None:
    if result:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        why = (text.value or b"unknown error").decode()
        raise BackendError(f"The CUDA driver could not {what}: {why} ({result}).")


@functools.cache
def _driver() -> ctypes.CDLL:
    driver, address, number = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p, ctypes.c_uint
    driver.cuLaunchKernel.argtypes = [address, *[number] * 7, address, address, address]
    return driver


@functools.cache
def _compiler() -> ctypes.CDLL:
    """NVRTC, that of torch's CUDA version first."""
    names = list(_candidates())
    for name in names:
        try:
            # it looks for this second library by name alone, and finds it where it is loaded already
            for builtins in Path(name).parent.glob("libnvrtc-builtins.so.*") if "/" in name else ():
                ctypes.CDLL(str(builtins))
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise BackendError(
        f"NVRTC, the compiler for CUDA kernels, was not found (looked for {', '.join(names)}): install it "
        "with `pip install nvidia-cuda-nvrtc` (CUDA 12: `nvidia-cuda-nvrtc-cu12`)."
    )


def _candidates() -> Iterator[str]:
    # torch's wheels bring the library of torch's own CUDA version; without CUDA any will do to compile
    majors = [torch.version.cuda.split(".")[0]] if torch.version.cuda else ["13", "12"]
    names = [f"libnvrtc.so.{major}" for major in majors]
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for name in names:
            yield from sorted(str(path) for path in Path(place).glob(f"*/lib/{name}"))
    yield from names
    for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        yield from (f"{home}/lib64/{name}" for name in names if home)


def _architectures(compiler: ctypes.CDLL) -> list[int]:
    """Compute capabilities that it compiles for, times 10."""
    count = ctypes.c_int()
    compiler.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    found = (ctypes.c_int * count.value)()
    compiler.nvrtcGetSupportedArchs(found)
    return list(found)


def _version(compiler: ctypes.CDLL) -> bytes:
    major, minor = ctypes.c_int(), ctypes.c_int()
    compiler.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}".encode()


@functools.cache
def _folder() -> Path:
    return cache_folder()
