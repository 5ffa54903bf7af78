"""`python -m benchmarks products`: what share of the peak the matrix products reach, the vendor's, our own, and our own within
a ranking, and how long losses take with either. One thread, CPU time, in turn. The peak is measured too, by a loop of
multiplications and additions that needs no memory.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from benchmarks.measuring import Row, environment, interleaved, write

SIZES = ((2048, 128), (2048, 512), (2048, 1024), (8192, 128), (8192, 512))
PEAK = """
#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif
typedef float V __attribute__((vector_size(WIDTH)));
float run(long n, float a, float b) {
  V s[12], x = a - (V){}, y = b - (V){}, sum = {};
  for (int k = 0; k < 12; ++k) s[k] = x * (float)k;
  for (long i = 0; i < n; ++i) {
#pragma GCC unroll 12
    for (int k = 0; k < 12; ++k) s[k] = s[k] * x + y;
  }
  for (int k = 0; k < 12; ++k) sum += s[k];
  return sum[0];
}
long lanes(void) { return WIDTH / 4; }
"""
STEPS = ((128, 128), (512, 128), (2048, 128), (2048, 512))
FIVE = ("ms", "contrastive", "sup_con", "circle", "triplet")
ROUNDS = 1_000_000  # of the loop, about 4 ms


def _peak(folder: Path) -> tuple[Callable[[], object], float]:
    """A call that does nothing but multiply and add, and how many operations it does."""
    source, library = folder / "peak.c", folder / "peak.so"
    source.write_text(PEAK)
    flags = ["-O2", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-o", str(library)]
    subprocess.run([os.environ.get("CC", "cc"), *flags, str(source)], check=True)
    code = ctypes.CDLL(str(library))
    code.run.argtypes, code.run.restype = (ctypes.c_long, ctypes.c_float, ctypes.c_float), ctypes.c_float
    return lambda: code.run(ROUNDS, 0.5, 1.0), 2.0 * 12 * code.lanes() * ROUNDS


def main(options: argparse.Namespace) -> list[Row]:
    """Measure, print and store products and losses."""
    products, steps = run(*[1.0] * options.quick), run_steps(*[0.3] * options.quick)
    for row in products:
        rate = f"{row['gigaflops']:6.0f} GFLOP/s, {row['share_of_peak']:.2f} of the peak"
        print(f"{row['case']:18} N = {row['n']:5} d = {row['d']:4} {rate}")
    for row in steps:
        print(f"{row['case']:18} N = {row['n']:5} d = {row['d']:4} own / vendor {row['ratio']:.2f}")
    rows = [{"benchmark": "products", **row, **environment()} for row in (*products, *steps)]
    write(rows, options.csv or Path(__file__).with_name("results") / "products-cpu.csv")
    return rows


def run(seconds: float = 6.0) -> list[Row]:
    """Rows of the peak, of whole products, and of the ranking, which makes half of a product and compares what it gives.

    Args:
        seconds: of each size.
    """
    from dmlcore.kernels import extension, neighbours

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            peak, operations = _peak(Path(folder))
            for n, d in SIZES:
                x = functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(0)))
                y, out = torch.arange(n) // 2, torch.empty(n, n)
                arms: dict[str, Callable[[], object]] = {
                    "peak": peak,
                    "vendor": lambda x=x, out=out: torch.mm(x, x.T, out=out),
                    "own": lambda x=x, n=n, d=d, out=out: extension.CPU.multiply(
                        x.data_ptr(), n, x.data_ptr(), n, d, out.data_ptr()
                    ),
                    "own, with ranking": lambda x=x, y=y: neighbours.rank_positives(x, y, None, None, (1,), "dot"),
                }
                work = {
                    "peak": operations,
                    "vendor": 2.0 * n * n * d,
                    "own": 2.0 * n * n * d,
                    "own, with ranking": 1.0 * n * n * d,
                }
                for arm in arms.values():
                    arm()
                times = interleaved(arms, budget=seconds, most=60)
                rates = {name: work[name] / min(times[name]) / 1e9 for name in arms}
                rows += [
                    {"case": name, "n": n, "d": d, "gigaflops": rate, "share_of_peak": rate / rates["peak"]}
                    for name, rate in rates.items()
                ]
    finally:
        torch.set_num_threads(threads)
    return rows


def run_steps(seconds: float = 4.0) -> list[Row]:
    """Rows of losses, forward and backward, with the vendor's products and with our own.

    Args:
        seconds: of each loss and size.
    """
    import dmlcore
    from dmlcore.kernels import extension, info
    from dmlcore.losses import create

    threads, before = torch.get_num_threads(), info()["cpu"]["blas"]
    torch.set_num_threads(1)
    rows: list[Row] = []
    try:
        for n, d in STEPS:
            generator = torch.Generator().manual_seed(0)
            labels = (torch.arange(n) // 4)[torch.randperm(n, generator=generator)]
            leaf = torch.randn(n, d, generator=generator).requires_grad_()
            losses = {"ms": create("ms"), "five": dmlcore.LossEnsemble([create(name) for name in FIVE])}
            for name, loss in losses.items():

                def step(kind: str, loss: torch.nn.Module = loss, leaf: torch.Tensor = leaf, y: torch.Tensor = labels) -> None:
                    extension.use_blas(kind)
                    loss(leaf, y).backward()
                    leaf.grad = None

                arms = {kind: lambda kind=kind, step=step: step(kind) for kind in ("vendor", "own")}
                for arm in arms.values():
                    arm()
                times = {kind: min(each) for kind, each in interleaved(arms, budget=seconds, most=200).items()}
                own, vendor = times["own"], times["vendor"]
                rows.append({"case": name, "n": n, "d": d, "own_seconds": own, "vendor_seconds": vendor, "ratio": own / vendor})
    finally:
        extension.use_blas(before)
        torch.set_num_threads(threads)
    return rows
