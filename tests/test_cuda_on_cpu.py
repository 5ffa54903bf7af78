"""The emulator of CUDA itself: planted faults show, and what is right comes out right, in every order of the threads."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import cuda_emulation
import pytest

pytestmark = pytest.mark.skipif(bool(cuda_emulation.missing()), reason=cuda_emulation.missing())
in_every_order = pytest.mark.parametrize("order", range(4))
Numbers = ctypes.c_int * 64


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda_faults")
    cuda_emulation.build_faults(folder, sanitized=bool(cuda_emulation.sanitizers()))
    return folder


@pytest.fixture(scope="session")
def library(folder: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(folder / "plain.so"))
    for name in ("reverse", "reverse_in_warps", "rotate", "last_wins", "divergent", "shuffle", "unwritten", "launch"):
        getattr(library, f"fault_{name}").restype = ctypes.c_char_p
    for function in (library.fault_allowed_shared, library.run_warp_functions, library.run_atomics):
        function.restype = ctypes.c_char_p
    return library


@in_every_order
def test_a_missing_barrier_shows(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, order: int) -> None:
    monkeypatch.setenv("CUEMU_ORDER", str(order))
    for turn, (wait, right) in enumerate(((True, True), (False, False))):
        numbers = Numbers(*range(100 * turn, 100 * turn + 64))  # other ones, so that the last launch's memory is no help
        out = Numbers()
        assert library.fault_reverse(numbers, out, wait) is None
        assert (list(out) == list(numbers)[::-1]) is right


@in_every_order
def test_a_missing_barrier_of_a_warp_shows(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, order: int) -> None:
    monkeypatch.setenv("CUEMU_ORDER", str(order))
    numbers, out = Numbers(*range(64)), Numbers()
    for wait, right in ((True, True), (False, False)):
        assert library.fault_reverse_in_warps(numbers, out, wait) is None
        assert (list(out) == [k ^ 31 for k in range(64)]) is right


@in_every_order
def test_a_missing_barrier_before_memory_is_used_again_shows(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, order: int
) -> None:
    monkeypatch.setenv("CUEMU_ORDER", str(order))
    out = Numbers()
    for wait, right in ((True, True), (False, False)):
        assert library.fault_rotate(out, 5, wait) is None
        assert (list(out) == [(k + 5) % 64 for k in range(64)]) is right


def test_a_race_gives_other_results_in_other_orders(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    winners = set()
    for order in range(4):
        monkeypatch.setenv("CUEMU_ORDER", str(order))
        out = Numbers()
        assert library.fault_last_wins(out) is None
        winners.add(out[0])
    assert len(winners) >= 2


@in_every_order
def test_a_divergent_barrier_is_an_error(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, order: int) -> None:
    monkeypatch.setenv("CUEMU_ORDER", str(order))
    assert b"deadlock" in library.fault_divergent()


@in_every_order
def test_wrong_masks_are_errors(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, order: int) -> None:
    monkeypatch.setenv("CUEMU_ORDER", str(order))
    out = Numbers()
    assert library.fault_shuffle(out, 0) is None and set(out[:32]) == {17}
    assert library.fault_shuffle(out, 1) is None and set(out[16:32]) == {17}  # lanes that have returned are not waited for
    assert b"outside the mask" in library.fault_shuffle(out, 2)
    different = library.fault_shuffle(out, 3)  # half of the lanes go ahead; what is wrong shows at one of three places
    assert any(text in different for text in (b"different masks", b"outside the mask", b"deadlock"))
    assert b"not in its mask" in library.fault_shuffle(out, 4)


def test_limits_are_those_of_a_device(library: ctypes.CDLL) -> None:
    most = 2**31 - 1
    assert library.fault_launch(3, 2, 2, 1024, 1, 48 << 10) is None
    assert library.fault_launch(1, 65535, 1, 32, 1, 0) is None
    for x, y, z, threads, layers in (
        (0, 1, 1, 32, 1),
        (1, 0, 1, 32, 1),
        (1, 1, 0, 32, 1),
        (most + 1, 1, 1, 32, 1),
        (1, 65536, 1, 32, 1),
        (1, 1, 65536, 32, 1),
        (1, 1, 1, 0, 1),
        (1, 1, 1, 1025, 1),
        (1, 1, 1, 1, 65),
        (1, 1, 1, 512, 3),
    ):
        assert b"launch configuration" in library.fault_launch(x, y, z, threads, layers, 0)
    assert b"shared memory" in library.fault_launch(1, 1, 1, 32, 1, (48 << 10) + 1)
    assert library.fault_allowed_shared(100 << 10, 100 << 10) is None
    assert b"shared memory" in library.fault_allowed_shared(100 << 10, (100 << 10) + 1)
    assert b"shared memory" in library.fault_allowed_shared(228 << 10, 228 << 10)  # refused, so the old limit stays


@in_every_order
def test_shared_memory_begins_as_nan(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, order: int) -> None:
    monkeypatch.setenv("CUEMU_ORDER", str(order))
    out = (ctypes.c_float * 32)()
    assert library.fault_unwritten(out) is None
    assert all(number != number for number in out)


@in_every_order
def test_shuffles_votes_and_barriers_that_count(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, order: int) -> None:
    monkeypatch.setenv("CUEMU_ORDER", str(order))
    out = (ctypes.c_int * (9 * 64))()
    assert library.run_warp_functions(out) is None
    rows = [list(out[64 * k : 64 * k + 64]) for k in range(9)]
    warp = lambda t: t & ~31  # noqa: E731
    assert rows[0] == [warp(t) + 3 for t in range(64)]
    assert rows[1] == [t ^ 5 for t in range(64)]
    assert rows[2] == [t - 2 if t % 32 >= 2 else t for t in range(64)]
    assert rows[3] == [t + 2 if t % 32 < 30 else t for t in range(64)]
    assert rows[4] == [t ^ 5 for t in range(64)]
    assert {number & 0xFFFFFFFF for number in rows[5]} == {sum(1 << lane for lane in range(0, 32, 3))}
    assert set(rows[6]) == {2} and set(rows[7]) == {13} and set(rows[8]) == {2}


@in_every_order
def test_atomics(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, order: int) -> None:
    monkeypatch.setenv("CUEMU_ORDER", str(order))
    blocks = 7
    threads = 64 * blocks
    out, total, large = Numbers(0, -1, 10**6, 0, 0), ctypes.c_float(), ctypes.c_ulonglong()
    assert library.run_atomics(blocks, out, ctypes.byref(total), ctypes.byref(large)) is None
    assert out[:5] == [threads, threads - 1, 0, 2 * threads, 7]
    assert total.value == threads / 2 and large.value == threads << 33


GLOBAL = "library.fault_bounds(ctypes.c_void_p(libc.calloc(64, 4)), int(sys.argv[2]), out)"
DYNAMIC = "library.fault_shared_bounds(int(sys.argv[2]), 64 * 4, out)"
FIXED = "library.fault_array_bounds(int(sys.argv[2]), out)"


@pytest.mark.parametrize(
    ("call", "right", "wrong", "message"),
    [
        (GLOBAL, 63, 64, "heap-buffer-overflow"),
        (DYNAMIC, 63, 64, "use-after-poison"),
        (FIXED, 32, 33, "out of bounds for type"),
    ],
    ids=["global memory", "dynamic shared memory", "fixed shared memory"],
)
def test_an_access_out_of_bounds_shows(folder: Path, call: str, right: int, wrong: int, message: str) -> None:
    if not cuda_emulation.sanitizers():
        pytest.skip("the compiler's AddressSanitizer library is not installed")
    program = f"""
import ctypes, sys
library, libc = ctypes.CDLL(sys.argv[1]), ctypes.CDLL(None)
libc.calloc.restype = ctypes.c_void_p
out = (ctypes.c_int * 32)()
{call}
"""
    for count, fails in ((right, False), (wrong, True)):
        command = [sys.executable, "-c", program, str(folder / "sanitized.so"), str(count)]
        environment = cuda_emulation.sanitized_environment()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode != 0) is fails, done.stderr[-3000:]
        assert (message in done.stderr and "cuda_faults.cu" in done.stderr) is fails, done.stderr[-3000:]
