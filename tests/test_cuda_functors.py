"""Functors of plugins on CUDA: compiled by NVRTC without a GPU, kept, refused in one line; how their kernels reach a pass, with
the emulator in the driver's place; and, marked `gpu`, on a device."""

from __future__ import annotations

import ctypes
import inspect
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cases import BATCHES
from cuda_emulation import CSRC, missing
from test_runtime_functors import header, loss_class, value_and_gradient

from dmlcore.errors import ConfigError, DmlcoreError, PluginError
from dmlcore.kernels import FunctorCall, Pass, Relations, cuda, extension, info, kept_functors, plan_options
from dmlcore.kernels.cuda import CudaPass, NotTaken
from dmlcore.kernels.jit import cubins, cuda_functors, dispatch, headers, nvrtc, sets
from dmlcore.kernels.jit import driver as driving
from dmlcore.kernels.jit.driver import Driver

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


class Kernel:
    """As cupy's `Function`, for the toy's kernels on the emulator."""

    def __init__(self, cupy: StandIn, symbol: str) -> None:
        self.cupy = cupy
        handles = {"forward": 1, "close": 7, "backward": 2, "fits": 3, "forward_set": 11, "backward_set": 12}
        self.ptr = handles[re.sub(r".*rows_([a-z_]+)[IJ].*", r"\1", symbol)]

    def __call__(
        self, grid: tuple[int], block: tuple[int], args: tuple[Any, ...], shared_mem: int = 0, stream: Any = None
    ) -> None:
        assert stream.source.__cuda_stream__() == (0, 0)
        assert all(value.size == 1 if isinstance(value, np.ndarray) else isinstance(value, int) for value in args)
        values = [np.array(value, dtype=np.int64) if isinstance(value, int) else value for value in args]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        launch = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3)(
            self.cupy.launcher
        )
        if status := launch(self.ptr, *grid, 1, 1, *block, 1, 1, shared_mem, 0, pointers, None):
            raise RuntimeError(f"CUDA_ERROR_{status}")


class StandIn:
    """As much of cupy as the driver uses. `test_the_stand_in_is_like_cupy` holds it to the real one."""

    def __init__(self) -> None:
        self.launcher = 0
        self.loaded: list[bytes] = []
        self.asked_for: list[str] = []
        self.cuda = SimpleNamespace(
            Device=lambda index: nullcontext(index),
            Stream=SimpleNamespace(from_external=lambda source: SimpleNamespace(source=source)),
        )

    def RawModule(self, *, path: str) -> Any:
        code = Path(path).read_bytes()
        if code not in self.loaded:
            self.loaded.append(code)

        def get_function(symbol: str) -> Any:
            if symbol.encode() not in code:
                raise RuntimeError("CUDA_ERROR_NOT_FOUND: named symbol not found")
            self.asked_for.append(symbol)
            return SimpleNamespace(kernel=Kernel(self, symbol))

        return SimpleNamespace(get_function=get_function)


class Emulated(Driver):
    """A driver whose device is the CPU, with one processor."""

    def __init__(self) -> None:
        self.cupy = StandIn()
        super().__init__(self.cupy, 0)

    def current(self) -> torch.device:
        return torch.device("cpu")

    def capability(self, device: torch.device) -> int:
        return 90


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


def test_what_loads_the_code_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError(name)

    opened = driving.driver.__wrapped__
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cupy", None)  # what is None cannot be imported
        with pytest.raises(DmlcoreError, match=r"^losses compiled at run time need .* Run `pip install 'dmlcore\[gpu\]'`$"):
            opened()
    monkeypatch.setitem(sys.modules, "cupy", StandIn())
    monkeypatch.setattr(ctypes, "CDLL", broken)
    with pytest.raises(DmlcoreError, match=r"no CUDA driver \(libcuda.so.1\)"):
        opened()


def test_a_driver_that_refuses(driver: Emulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cpu = cubins.cubin_of(header(tmp_path, "toy_refused"), 90).file, torch.device("cpu")
    with pytest.raises(DmlcoreError, match=r"^the CUDA driver cannot load toy_refused-.*\.cubin: CUDA_ERROR_NOT_FOUND"):
        driver.kernel(file, "nobody", cpu)
    with pytest.raises(DmlcoreError, match="cannot launch a functor compiled at run time: CUDA_ERROR_400"):
        driver.cupy.launcher, refuse = _refusing()
        driver.takes(Kernel(driver.cupy, "rows_fitsI"), (0.5,), cpu)
    assert refuse
    file.chmod(0o666)
    with pytest.raises(ConfigError, match=r"toy_refused-.*\.cubin"):
        driver.kernel(file, "rows_forwardI", cpu)


def _refusing() -> tuple[int, Any]:
    """The address of a launcher that always fails, and what keeps it alive."""
    refuse = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda kernel: 400)
    return ctypes.cast(refuse, ctypes.c_void_p).value or 0, refuse


def test_the_stand_in_is_like_cupy() -> None:
    """Names, parameters and kinds of arguments. cupy loads without a device; what would use one ends in an error of CUDA."""
    cupy = pytest.importorskip("cupy")
    if torch.cuda.is_available():
        pytest.skip("test_cuda_functors_device.py has the real thing")
    function = cupy.cuda.function.Function
    assert hasattr(cupy.RawKernel, "kernel") and hasattr(function, "ptr")
    module = cupy.RawModule(path="absent.cubin")
    parameters = inspect.signature(StandIn().RawModule).parameters
    assert list(parameters) == ["path"] and "*, str path=None" in cupy.RawModule.__doc__.splitlines()[0]
    assert "(self, str name)" in cupy.RawModule.get_function.__doc__.splitlines()[0]
    with pytest.raises(RuntimeError):
        module.get_function("symbol").kernel  # noqa: B018  (it loads the file)
    stream = cupy.cuda.Stream.from_external(driving._Stream(torch.device("cpu")))
    functor = np.zeros(4, dtype=np.float32).view("V16")
    for call, error in (((functor, 64), RuntimeError), ((np.zeros(4, dtype=np.float32), 64), TypeError)):
        with pytest.raises(error):
            function.__new__(function)((1,), (1,), call, shared_mem=0, stream=stream)
    with pytest.raises(RuntimeError), cupy.cuda.Device(0):
        pass


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_it_joins_a_pass_on_the_emulator(
    driver: Emulated, emulated: ModuleType, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extension, "_CUDA", emulated)
    library = ctypes.CDLL(str(built / "plain" / "external.so"))
    driver.launcher = driver.cupy.launcher = ctypes.cast(library.external_launch, ctypes.c_void_p).value or 0
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

    taken = {0.2: ["fits Lb0", "close Lb0", "backward Lb0"], 0.7: ["forward Lb1", "close Lb1", "backward Lb1"]}
    for margin, kernels in taken.items():  # that were not asked for yet, as `forward Lb0` was to join
        driver.cupy.asked_for.clear()
        value, gradient = value_and_gradient(plain(margin=margin).reference, x, y)
        pass_ = step(margin)
        values, counts, _ = pass_.forward()
        cotangents = torch.tensor([[0.0], [1.0 / len(y)], [0.0]]).expand(3, len(y))
        torch.testing.assert_close(values[1].sum() / counts[1].sum(), value, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(pass_.backward(cotangents)[0], gradient, rtol=1e-4, atol=1e-5)
        asked = [re.sub(r".*rows_(\w+?)I.*(Lb\d).*", r"\1 \2", symbol) for symbol in driver.cupy.asked_for]
        assert asked == kernels
        step(margin)
        assert len(driver.cupy.asked_for) == 3 and len(driver.cupy.loaded) == 1  # the answer, the handles and the code are kept
    with pytest.raises(NotTaken, match="takes 1 options, got 2"):
        step(0.2, 1.0)
    assert "toy_joined.h lists no functor 'toy_absent'" in dispatch.why_not_loaded("toy_absent", path, "cuda")
    with pytest.warns(UserWarning, match="'toy_joined' has the name of one of"):
        (tmp_path / "other").mkdir()
        other = header(tmp_path / "other", "toy_other", ('"toy_other"', '"toy_joined"'))
        assert str(path) in dispatch.why_not_loaded("toy_other", other, "cuda")
    assert str(path) in dispatch.why_not_loaded("toy_joined", other, "cuda")


MS, SUP_CON = FunctorCall("ms", (2.0, 50.0, 0.5, 0.1)), FunctorCall("sup_con", (0.1,))
OTHERS = (FunctorCall("triplet_all", (0.1,)), FunctorCall("histogram", (9.0,), cells=18))


@pytest.fixture
def external(driver: Emulated, emulated: ModuleType, built: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """The emulator in the driver's place, with the kernels of one set."""
    monkeypatch.setattr(extension, "_CUDA", emulated)
    monkeypatch.setattr(sets, "_kernels", {})
    library = ctypes.CDLL(str(built / "plain" / "external.so"))
    driver.launcher = driver.cupy.launcher = ctypes.cast(library.external_launch, ctypes.c_void_p).value or 0
    return library


def state_of(calls: Any, module: ModuleType, against: Any, **plan: int) -> tuple[Any, ...]:
    x, y, references, labels, relations = against
    with plan_options(**plan):
        state = CudaPass(Pass(x, y, references, labels, tuple(calls), (True, True), relations), module=module)
        values, counts, tables = state.forward()
        generator = torch.Generator().manual_seed(1)
        of_values, of_tables = (torch.randn(numbers.shape, generator=generator) for numbers in (values, tables))
        return values, counts, tables, *(grad for grad in state.backward(of_values, of_tables) if grad is not None)


def situations() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(67, 17, generator=generator), torch.randint(9, (67,), generator=generator)
    r, ry = torch.randn(83, 17, generator=generator), torch.randint(9, (83,), generator=generator)
    starts, lists = torch.arange(68) * 3, torch.randint(83, (201,), generator=generator)
    long = torch.cat([torch.zeros(258, dtype=torch.int64), torch.arange(3)])  # more positives than shared memory holds
    return {
        "batch": (x, y, None, None, Relations()),
        "references": (x, y, r, ry, Relations()),
        "lists": (x, y, r, ry, Relations(torch.full((67,), -1), starts, lists)),
        "long": (x[:5], long[:5], torch.randn(261, 17, generator=generator), long, Relations(torch.arange(5))),
    }


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("situation", situations())
@pytest.mark.parametrize("plan", [{}, {"tile_rows": 7, "tile_columns": 10}, {"tile_rows": 16}])
def test_losses_share_a_launch(
    external: ctypes.CDLL, emulated: ModuleType, tmp_path: Path, situation: str, plan: dict[str, int]
) -> None:
    assert dispatch.why_not_loaded("toy_shared", header(tmp_path, "toy_shared", TWO_FORMS), "cuda") == ""
    against = situations()[situation]
    slots = () if "tile_columns" in plan else OTHERS  # triplets need whole rows
    calls = (MS, *slots[:1], FunctorCall("toy_shared", (0.2,)), SUP_CON, *slots[1:])
    alone = state_of(calls, emulated, against, **plan)
    before = external.external_set_launches()
    together = state_of(calls, emulated, against, one_launch=1, **plan)
    for right, result in zip(alone, together, strict=True):
        torch.testing.assert_close(result, right, rtol=1e-4, atol=1e-5)
    rows = 1 if "tile_rows" not in plan else -(-len(against[0]) // plan["tile_rows"])
    columns = 1 if "tile_columns" not in plan else -(-len(against[0] if against[2] is None else against[2]) // 10)
    assert external.external_set_launches() - before == 2 * rows * columns  # forward and backward of every chunk


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_which_losses_share_a_launch(external: ctypes.CDLL, emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    x, *_ = against = situations()["batch"]
    cpu, windows = x.device, torch.tensor([[-0.5], [0.9], [-0.9], [0.8]]).repeat(1, len(x))

    def shared(*calls: FunctorCall) -> Any:
        found = sets.shared_launch(calls, [call.functor for call in calls], cpu, emulated)
        return None if found is None else found[0]

    assert shared(MS, *OTHERS, SUP_CON) == [True, False, False, True]
    assert shared(MS, *OTHERS) is shared(MS) is shared(MS, replace(SUP_CON, windows=windows)) is None
    assert shared(*[MS] * 20) == [True] * 16 + [False] * 4
    (entry,) = [entry for entry in kept_functors()["kernels"] if entry["functors"] == ["MultiSimilarity", "SupCon"]]
    assert (entry["level"], entry["state"]) == ("sm_90", "current")
    sets._kernels.clear()
    monkeypatch.setattr(nvrtc, "compiler", lambda: "there is no libnvrtc")
    with pytest.warns(UserWarning, match="keep a launch each: there is no libnvrtc"):
        alone = state_of((MS, SUP_CON), emulated, against, one_launch=1)
    torch.testing.assert_close(alone, state_of((MS, SUP_CON), emulated, against))


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("is_faster", [False, True])
def test_the_faster_way_is_taken(
    external: ctypes.CDLL, emulated: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_faster: bool
) -> None:
    assert dispatch.why_not_loaded("toy_timed", header(tmp_path, "toy_timed", TWO_FORMS), "cuda") == ""
    calls, against, measured = (MS, FunctorCall("toy_timed", (0.2,)), SUP_CON), situations()["references"], []

    def seconds(run: Callable[[], None], device: torch.device) -> float:
        launches = external.external_set_launches()
        run()
        measured.append(external.external_set_launches() - launches)
        return 1.0 if bool(measured[-1]) != is_faster else 0.5

    monkeypatch.setattr(cuda, "_shared_is_faster", {})
    monkeypatch.setattr(sets, "seconds_of", seconds)
    alone = state_of(calls, emulated, against)
    for _ in range(2):
        before = external.external_set_launches()
        torch.testing.assert_close(state_of(calls, emulated, against, one_launch=2), alone, rtol=1e-4, atol=1e-5)
    assert measured == [0, 2]  # once, each way
    assert external.external_set_launches() - before == 2 * is_faster


def test_every_loss_that_can_joins_one_kernel() -> None:
    """Compiled for a processor, without a device: all built-in losses that share a launch, in both forms."""
    names = ("ms", "contrastive", "sup_con", "circle", "binomial_deviance", "nt_xent", "margin", "fast_ap")
    for wide in (False, True):
        members = [sets.Member(*sets._built_in()[name], wide) for name in names]
        file, symbols = sets.set_cubin(members, 90)
        assert all(symbol.encode() in file.read_bytes() for symbol in symbols)
    with pytest.raises(PluginError, match=r"do not compile together: .*TripletPairs.* has no member"):
        sets.set_cubin([sets.Member(*sets._built_in()[name], False) for name in ("ms", "triplet_all")], 90)
