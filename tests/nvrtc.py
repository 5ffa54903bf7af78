"""The run-time compiler of CUDA, which needs no GPU and no driver, by ctypes. Not a test itself."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
from pathlib import Path

INTEGERS = """
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long long int64_t;
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;
typedef unsigned long long uint64_t, uintptr_t;
"""
"""`<cstdint>`: the compiler has no headers of the host's library."""


def library() -> Path | str | None:
    """libnvrtc: the one that comes with PyTorch's CUDA build, else the system's; None where there is none."""
    found = importlib.util.find_spec("nvidia")
    for folder in (found.submodule_search_locations or ()) if found else ():
        paths = [path for path in Path(folder).glob("*/lib/libnvrtc.so*") if "alt" not in path.name]
        if paths:
            return sorted(paths)[-1]
    return ctypes.util.find_library("nvrtc")


class Compiler:
    """Compiles to machine code; errors are the compiler's own text."""

    def __init__(self, path: Path | str) -> None:
        for builtins in Path(path).parent.glob("libnvrtc-builtins.so*"):  # it finds them by name once they are loaded
            if "alt" not in builtins.name:
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self.nvrtc = ctypes.CDLL(str(path))

    def archs(self) -> list[int]:
        """The processors it knows, as 90 for sm_90."""
        count = ctypes.c_int()
        self._check(self.nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        archs = (ctypes.c_int * count.value)()
        self._check(self.nvrtc.nvrtcGetSupportedArchs(archs))
        return list(archs)

    def compile(self, source: str, arch: int, include: Path, headers: dict[str, str]) -> bytes:
        """The cubin of a source.

        Args:
            source: CUDA C++.
            arch: as 90 for sm_90.
            include: folder of headers.
            headers: text by name, for what has no file.

        Raises:
            ValueError: it does not compile; the text is the compiler's. Spilled registers are the business of the nvcc build.
        """
        program = ctypes.c_void_p()
        texts = (ctypes.c_char_p * len(headers))(*[text.encode() for text in headers.values()])
        names = (ctypes.c_char_p * len(headers))(*[name.encode() for name in headers])
        self._check(
            self.nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"source.cu", len(headers), texts, names)
        )
        flags = [f"-arch=sm_{arch}", f"-I{include}", "-std=c++17", "-DDML_LEVEL=cuda", "-default-device"]
        options = (ctypes.c_char_p * len(flags))(*[flag.encode() for flag in flags])
        try:
            if self.nvrtc.nvrtcCompileProgram(program, len(flags), options):
                raise ValueError(self._text(program, "ProgramLog").decode())
            return self._text(program, "CUBIN")
        finally:
            self.nvrtc.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self.nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self._check(getattr(self.nvrtc, f"nvrtcGet{what}")(program, text))
        return text.raw.rstrip(b"\0") if what != "CUBIN" else text.raw

    def _check(self, status: int) -> None:
        if status:
            self.nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise RuntimeError(self.nvrtc.nvrtcGetErrorString(status).decode())
