"""The run-time compiler takes the same headers as nvcc: every loss with every kernel, and the ranking. No GPU is needed. It
also holds the kernels to device code alone: a host header anywhere would not be found."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cuda_emulation import CSRC

from dmlcore.kernels.jit import nvrtc

ARCHS = (80, 90, 100)
pytestmark = [
    pytest.mark.skipif(isinstance(nvrtc.compiler(), str), reason=str(nvrtc.compiler())),
    pytest.mark.skipif(not CSRC.exists(), reason="the sources are not here"),
]
HEADERS = sorted(path.stem for path in (CSRC / "losses").glob("*.h"))
KERNEL = re.compile(r"template <class F>\s*__global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(")
"""A kernel of one functor, wherever in csrc/cuda it stands."""


def kernels() -> dict[str, list[str]]:
    """The kernels of one functor by header."""
    by_header = {path.name: KERNEL.findall(path.read_text()) for path in sorted((CSRC / "cuda").glob("*.h"))}
    return {header: names for header, names in by_header.items() if names}


def losses_source(headers: list[str]) -> str:
    """Every kernel instantiated for every functor of some headers, by taking its address."""
    lines = [f'#include "cuda/{header}"' for header in kernels()] + [f'#include "losses/{stem}.h"' for stem in headers]
    names = [name for listed in kernels().values() for name in listed]
    lines += ["DML_BEGIN", "template <class F> __device__ void keep(void** to) {"]
    lines += [f"  to[{k}] = reinterpret_cast<void*>(&{name}<F>);" for k, name in enumerate(names)]
    lines += [
        "}",
        "struct Table {",
        "  void** to;",
        "  template <template <class, bool> class F> __device__ void add(const char*) {",
        "    if constexpr (!IsCpuOnly<F<float, false>>::value) keep<F<float, false>>(to), keep<F<float, true>>(to);",
        "  }",
        "};",
        "__global__ void all(void** to) {",
        "  Table table{to};",
        *[f"  {stem}_functors::list(table);" for stem in headers],
        "}",
        "DML_END",
    ]
    return "\n".join(lines)


RANKING = """
#include "cuda/neighbours_kernels.h"
DML_BEGIN
template <class T> __device__ void keep(void** to) {
  to[0] = reinterpret_cast<void*>(&arrange_kernel<T>);
  to[1] = reinterpret_cast<void*>(&positives_kernel<T>);
  to[2] = reinterpret_cast<void*>(&count_kernel<T, false>);
  to[3] = reinterpret_cast<void*>(&count_kernel<T, true>);
  to[4] = reinterpret_cast<void*>(&conclude_kernel<T>);
}
__global__ void all(void** to) { keep<float>(to), keep<double>(to); }
DML_END
"""


@pytest.fixture(scope="module")
def compiler() -> nvrtc.Compiler:
    library = nvrtc.compiler()
    assert isinstance(library, nvrtc.Compiler)
    return library


def cubin(compiler: nvrtc.Compiler, source: str, arch: int) -> bytes:
    if arch not in compiler.archs:
        pytest.skip(f"this libnvrtc does not know sm_{arch}")
    return compiler.compile(source, arch, CSRC)[0]


@pytest.mark.parametrize(("stem", "arch"), [(stem, ARCHS[k % len(ARCHS)]) for k, stem in enumerate(HEADERS)])
def test_a_loss_with_every_kernel(compiler: nvrtc.Compiler, stem: str, arch: int) -> None:
    """For one processor in turn: nvcc builds all of them for each."""
    code = cubin(compiler, losses_source([stem]), arch)
    assert code[:4] == b"\x7fELF"


def test_the_kernels_are_found_and_instantiated(compiler: nvrtc.Compiler) -> None:
    names = [name for listed in kernels().values() for name in listed]
    assert names, "no kernel of one functor in csrc/cuda: this test has to learn how they look"
    code = cubin(compiler, losses_source(["ms"]), 90)
    for name in names:
        assert code.count(f"{name}I".encode()) >= 2, name  # narrow and wide


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_the_ranking(compiler: nvrtc.Compiler, arch: int) -> None:
    code = cubin(compiler, RANKING, arch)
    for name in ("arrange", "positives", "count", "conclude"):
        assert f"{name}_kernel".encode() in code


def test_errors_are_those_of_the_compiler(compiler: nvrtc.Compiler) -> None:
    with pytest.raises(ValueError, match=r"source\.cu\(1\)"):
        cubin(compiler, "#include <vector>\n", 90)


@pytest.mark.parametrize(("cuda", "chosen"), [("13.0", "libnvrtc.so.13"), ("12.8", "libnvrtc.so.12"), (None, "libnvrtc.so.13")])
def test_the_library_is_that_of_pytorch(cuda: str | None, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, name in (("a/cuda_nvrtc", "libnvrtc.so.12"), ("b/cu13", "libnvrtc.so.13"), ("b/cu13", "libnvrtc.alt.so.13")):
        (tmp_path / folder / "lib").mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "lib" / name).touch()
    packages = SimpleNamespace(submodule_search_locations=[str(tmp_path / "a"), str(tmp_path / "b")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: packages)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    path = nvrtc.library()
    assert isinstance(path, Path) and path.name == chosen
