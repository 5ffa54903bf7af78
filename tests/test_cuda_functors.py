"""Functors of plugins on CUDA: compiled by NVRTC without a GPU, kept, refused in one line; how their kernels reach a pass, with
the emulator in the driver's place; and, marked `gpu`, on a device."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from cases import BATCHES
from cuda_emulation import CSRC, missing
from test_runtime_functors import header, loss_class, value_and_gradient

from dmlcore.errors import ConfigError, DmlcoreError
from dmlcore.kernels import FunctorCall, Pass, extension, info, kept_functors
from dmlcore.kernels.cuda import CudaPass, NotTaken
from dmlcore.kernels.jit import cubins, cuda_functors, dispatch, headers, nvrtc

COMPILER = nvrtc.compiler()
pytestmark = [
    pytest.mark.skipif(isinstance(COMPILER, str), reason=str(COMPILER)),
    pytest.mark.skipif(not CSRC.exists(), reason="the sources are not here"),
]
TWO_FORMS = (
    "template <class T, bool> using Toy = ToyPairs<T>;",
    "template <class T, bool Wide> struct Toy : ToyPairs<T> {\n"
    "  DML_FN bool fits() const { return Wide || this->margin < T(0.5); }\n};",
)


def again(folder: Path, name: str) -> Path:
    """A copy of a built-in header under other names."""
    text = (CSRC / "losses" / f"{name}.h").read_text().replace(f"{name}_functors", f"again_{name}_functors")
    path = folder / f"again_{name}.h"
    path.write_text(re.sub(r'(add<\w+>\(")', r"\1again_", text))
    return path


class Emulated(cuda_functors.Driver):
    """A driver whose device has one processor, and whose kernels are the toy's on the emulator."""

    def __init__(self, launcher: int = 0) -> None:
        self.launcher = launcher
        self.loaded: list[bytes] = []
        self.asked_for: list[str] = []

    def capability(self, device: torch.device | None) -> int:
        return 90

    def load(self, code: bytes) -> int:
        self.loaded.append(code)
        return len(self.loaded)

    def kernel(self, library: int, symbol: str) -> int:
        assert symbol.encode() in self.loaded[library - 1]
        self.asked_for.append(symbol)
        return {"forward": 1, "close": 7, "backward": 2, "fits": 3}[re.sub(r".*rows_(\w+?)I.*", r"\1", symbol)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def driver(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Emulated:
    """Nothing has joined yet, and the extension is there."""
    monkeypatch.setenv("DML_CACHE", str(cache))
    monkeypatch.delenv("DML_JIT", raising=False)
    built_in = SimpleNamespace(headers=headers.fingerprint(CSRC, "cuda"), functors=lambda: {"ms": ("", 1)})
    monkeypatch.setattr(extension, "_CUDA", built_in)
    monkeypatch.setattr(extension, "CUDA_FUNCTORS", {})
    for name in ("_compiled", "_archs", "_outcomes", "_refused", "joined"):
        monkeypatch.setattr(cuda_functors, name, {})
    emulated = Emulated()
    monkeypatch.setattr(cuda_functors, "driver", lambda: emulated)
    return emulated


@pytest.mark.parametrize(
    ("name", "arch", "functor", "numbers"),
    [
        # values, bytes, given, fields of limits, sums, slopes, floats per positive; slots, partners, centres, table, CPU only
        ("toy", 80, "toy_copy", [(1, 4, 0, 0, 1, 1, 2, 0, 0, 0, 0, 0)]),
        ("ms", 90, "again_ms", [(1, 16, 0, 1, 2, 5, 2, 0, 0, 0, 0, 0), (1, 16, 0, 1, 3, 6, 2, 0, 0, 0, 0, 0)]),
        ("lifted_structure", 100, "again_lifted_structure", None),
    ],
)
def test_machine_code(name: str, arch: int, functor: str, numbers: Any, tmp_path: Path) -> None:
    path = header(tmp_path, "toy_copy") if name == "toy" else again(tmp_path, name)
    cubin = cubins.cubin_of(path, arch)
    assert cubin.arch == arch and cubin.compiled
    code, forms = cubin.file.read_bytes(), cubin.forms[functor]
    assert code[:4] == b"\x7fELF"
    for form in forms:
        assert set(form.symbols) == set(cubins.KERNELS)
        assert all(symbol.encode() in code for symbol in form.symbols.values())
    assert numbers is None or [form.numbers for form in forms] == numbers
    assert forms[0].numbers[8] == (name == "lifted_structure")  # partners
    assert not cubins.cubin_of(path, arch).compiled
    (entry,) = [entry for entry in kept_functors()["kernels"] if entry["header"] == str(path)]
    assert (entry["level"], entry["state"]) == (f"sm_{arch}", "current")


CHILD = """
import sys
from pathlib import Path
from types import SimpleNamespace
from dmlcore.kernels import extension
from dmlcore.kernels.jit import cubins, headers, nvrtc
extension._CUDA = SimpleNamespace(headers=headers.fingerprint(headers.folder(), "cuda"))
print(cubins.cubin_of(Path(sys.argv[1]), 90).compiled)
nvrtc.compiler = lambda: "there is no libnvrtc"
print(cubins.cubin_of(Path(sys.argv[1]), 90).compiled)
"""


def test_another_process_finds_it(tmp_path: Path) -> None:
    path = header(tmp_path, "toy_found")
    assert cubins.cubin_of(path, 90).compiled
    done = subprocess.run([sys.executable, "-P", "-c", CHILD, str(path)], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr
    path.write_text(path.read_text() + "// changed\n")
    assert cubins.cubin_of(path, 90).compiled


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("typo", ("r.push += hinge * hinge;", "r.push += hinje * hinge;"), r"^cuda_typo\.h:22: .*hinje"),
        ("part", ("static constexpr int kValues = 1;", ""), r"^cuda_part\.h:7: ToyPairs .*kValues"),
        ("host", ("#pragma once\n", "#pragma once\n#include <cmath>\n"), r"^cuda_host\.h:3: .*cmath"),
        ("list", ('add<Toy>("cuda_list")', "add<Toy>(NAME)"), r"^cuda_list\.h: list\(\) must say"),
        ("taken", ('add<Toy>("cuda_taken")', 'add<Toy>("ms")'), r"^the functor 'ms' has the name of one that is built in"),
        (
            "cpu",
            ("T margin;", "T margin; static constexpr bool kCpuOnly = true;"),
            r"'cuda_cpu' of cuda_cpu.h is for the CPU only",
        ),
        ("long", ("T margin;", "T margin, more[16];"), r"'cuda_long' of cuda_long.h has 17 options"),
    ],
)
def test_a_refused_header_is_one_message(name: str, change: tuple[str, str], words: str, tmp_path: Path) -> None:
    path = header(tmp_path, f"cuda_{name}", change)
    with pytest.warns(UserWarning, match="CUDA .*runs in plain PyTorch") as warned:
        reason = dispatch.why_not_loaded(f"cuda_{name}", path, "cuda")
        assert dispatch.why_not_loaded(f"cuda_{name}", path, "cuda") == reason
    assert len(warned) == 1
    assert re.search(words, reason) and "\n" not in reason
    assert reason in info()["runtime"]["cuda"]["failed"].values()
    assert f"cuda_{name}" not in extension.functors("cuda")


def test_what_may_be_missing(driver: Emulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(name: str) -> str:
        return dispatch.why_not_loaded(name, header(tmp_path, name), "cuda")

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="there is no libnvrtc") as warned:
        patch.setattr(nvrtc, "compiler", lambda: "there is no libnvrtc")
        assert reason("no_compiler") == reason("no_compiler") == "there is no libnvrtc"
        assert info()["runtime"]["cuda"]["compiler"] == "there is no libnvrtc"
    assert len(warned) == 1
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="does not know the processor sm_35"):
        patch.setattr(driver, "capability", lambda device: 35)
        cuda_functors._archs.clear()
        assert "sm_35" in reason("no_processor")
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="install again"):
        patch.delattr(extension.cuda(), "headers")
        assert "are not those the extension was built with" in reason("other_headers")
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")  # who asked for it needs no warning
        patch.setenv("DML_JIT", "0")
        assert reason("switched_off") == "DML_JIT=0 switches run-time compilation off"
    assert "no form for cuda" in dispatch.why_not_loaded("nobody", None, "cuda")
    assert "that is built in" in dispatch.why_not_loaded("ms", header(tmp_path, "mine"), "cuda")
    assert dispatch.why_not_loaded("ms", None, "cuda") == ""
    (tmp_path / "open.h").write_text(header(tmp_path, "open").read_text())
    (tmp_path / "open.h").chmod(0o666)
    with pytest.raises(ConfigError, match="can be written by everybody, so it is not compiled"):
        cubins.cubin_of(tmp_path / "open.h", 90)


def test_the_nearest_processor() -> None:
    compiler: Any = SimpleNamespace(archs=[80, 86, 90, 100, 103], version="13.0")
    assert [cubins.nearest(compiler, arch) for arch in (80, 89, 90, 101, 103)] == [80, 86, 90, 100, 103]
    with pytest.raises(DmlcoreError, match="does not know the processor sm_75"):
        cubins.nearest(compiler, 75)


def test_a_driver_that_is_missing_or_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", broken)
    with pytest.raises(DmlcoreError, match=r"no CUDA driver \(libcuda.so.1\)"):
        cuda_functors.Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    with pytest.raises(DmlcoreError, match="older than CUDA 12"):
        cuda_functors.Driver()


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_it_joins_a_pass_on_the_emulator(
    driver: Emulated, emulated: ModuleType, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extension, "_CUDA", emulated)
    library = ctypes.CDLL(str(built / "plain" / "external.so"))
    driver.launcher = ctypes.cast(library.external_launch, ctypes.c_void_p).value or 0
    path = header(tmp_path, "toy_joined", TWO_FORMS)
    assert dispatch.why_not_loaded("toy_joined", path, "cuda") == ""
    assert extension.functors("cuda")["toy_joined"][1] == 1 and "toy_joined" in info()["fused"]["cuda"]
    x, y = BATCHES["odd"][0].float(), BATCHES["odd"][1]
    plain = loss_class(path)

    def step(*numbers: float) -> CudaPass:
        calls = (
            FunctorCall("ms", (2.0, 50.0, 0.5, 0.1)),
            FunctorCall("toy_joined", numbers),
            FunctorCall("triplet_all", (0.1,)),
        )
        return CudaPass(Pass(x, y, None, None, calls, (True, True)), module=emulated)

    for margin, form in ((0.2, "Lb0"), (0.7, "Lb1")):
        driver.asked_for.clear()
        value, gradient = value_and_gradient(plain(margin=margin).reference, x, y)
        pass_ = step(margin)
        values, counts, _ = pass_.forward()
        cotangents = torch.tensor([[0.0], [1.0 / len(y)], [0.0]]).expand(3, len(y))
        torch.testing.assert_close(values[1].sum() / counts[1].sum(), value, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(pass_.backward(cotangents)[0], gradient, rtol=1e-4, atol=1e-5)
        asked = [re.sub(r".*rows_(\w+?)I.*(Lb\d).*", r"\1 \2", symbol) for symbol in driver.asked_for]
        assert asked == ["fits Lb0", f"forward {form}", f"close {form}", f"backward {form}"]
        step(margin)
        assert len(driver.asked_for) == 4 and len(driver.loaded) == 1  # the answer, the handles and the code are kept
    with pytest.raises(NotTaken, match="takes 1 options, got 2"):
        step(0.2, 1.0)
    assert "toy_joined.h lists no functor 'toy_absent'" in dispatch.why_not_loaded("toy_absent", path, "cuda")
    with pytest.warns(UserWarning, match="'toy_joined' has the name of one of"):
        (tmp_path / "other").mkdir()
        other = header(tmp_path / "other", "toy_other", ('"toy_other"', '"toy_joined"'))
        assert str(path) in dispatch.why_not_loaded("toy_other", other, "cuda")
    assert str(path) in dispatch.why_not_loaded("toy_joined", other, "cuda")
