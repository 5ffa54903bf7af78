"""CUDA's run-time compiler, by ctypes: where it is, what it knows, source to machine code. It needs no GPU and no driver."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import torch

FLAGS = ("-std=c++17", "-DDML_LEVEL=cuda", "-default-device")
"""With which the headers of csrc compile: a functor's functions are not marked, and all are for the device."""

_INTEGERS = """
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long long int64_t;
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;
typedef unsigned long long uint64_t, uintptr_t;
"""
_HEADERS = {"cstdint": _INTEGERS}
"""The compiler has no headers of the host's library."""


def library() -> Path | str | None:
    """libnvrtc: that of the packages PyTorch's CUDA build brings, else a toolkit's, else the system's; None: nowhere."""
    packages = importlib.util.find_spec("nvidia")
    folders = [Path(place) for place in (packages.submodule_search_locations or ())] if packages else []
    homes = [Path(home) for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    places = [[path for folder in folders for path in folder.glob("*/lib/libnvrtc.so*")]]
    places += [list(home.glob("lib64/libnvrtc.so*")) for home in (*homes, Path("/usr/local/cuda"))]
    own = f".so.{(torch.version.cuda or '').partition('.')[0]}"  # faiss-gpu brings another beside PyTorch's
    for place in places:
        if paths := [path for path in place if "alt" not in path.name]:
            return max(paths, key=lambda path: (path.name.endswith(own), path.name))
    return ctypes.util.find_library("nvrtc")


@functools.cache
def compiler() -> Compiler | str:
    """The compiler, or the reason why there is none."""
    path = library()
    if path is None:
        return "there is no libnvrtc; it comes with PyTorch's CUDA build, or as nvidia-cuda-nvrtc"
    try:
        return Compiler(path)
    except (OSError, AttributeError, RuntimeError) as error:
        return f"{path} cannot be used: {error}"


class Compiler:
    """Compiles to machine code; errors are the compiler's own text.

    Attributes:
        version: as `13.0`.
        archs: the processors it knows, as 90 for sm_90.
    """

    def __init__(self, path: Path | str) -> None:
        for builtins in Path(path).parent.glob("libnvrtc-builtins.so*"):  # it finds them by name once they are loaded
            if "alt" not in builtins.name:
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self._nvrtc = ctypes.CDLL(str(path))
        self._nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._check(self._nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = f"{major.value}.{minor.value}"
        self._check(self._nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        archs = (ctypes.c_int * count.value)()
        self._check(self._nvrtc.nvrtcGetSupportedArchs(archs))
        self.archs = list(archs)

    def compile(self, source: str, arch: int, include: Path, names: Sequence[str] = ()) -> tuple[bytes, list[str]]:
        """The cubin of a source.

        Args:
            source: CUDA C++.
            arch: as 90 for sm_90.
            include: folder of headers.
            names: kernels to instantiate, as `f<float>`.

        Returns:
            The machine code, and the mangled names that the kernels have in it.

        Raises:
            ValueError: it does not compile; the text is the compiler's. Spilled registers are the business of the nvcc build.
        """
        program, count = ctypes.c_void_p(), len(_HEADERS)
        texts = (ctypes.c_char_p * count)(*[text.encode() for text in _HEADERS.values()])
        called = (ctypes.c_char_p * count)(*[name.encode() for name in _HEADERS])
        create = self._nvrtc.nvrtcCreateProgram
        self._check(create(ctypes.byref(program), source.encode(), b"source.cu", count, texts, called))
        flags = [f"-arch=sm_{arch}", f"-I{include}", *FLAGS]
        options = (ctypes.c_char_p * len(flags))(*[flag.encode() for flag in flags])
        try:
            for name in names:
                self._check(self._nvrtc.nvrtcAddNameExpression(program, name.encode()))
            if self._nvrtc.nvrtcCompileProgram(program, len(flags), options):
                raise ValueError(self._bytes(program, "ProgramLog").rstrip(b"\0").decode(errors="replace"))
            lowered = ctypes.c_char_p()
            symbols = []
            for name in names:
                self._check(self._nvrtc.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(lowered)))
                symbols.append((lowered.value or b"").decode())
            return self._bytes(program, "CUBIN"), symbols
        finally:
            self._nvrtc.nvrtcDestroyProgram(ctypes.byref(program))

    def _bytes(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._nvrtc, f"nvrtcGet{what}")(program, text))
        return text.raw

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(self._nvrtc.nvrtcGetErrorString(status).decode())
