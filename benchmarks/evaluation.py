"""Exact retrieval metrics: ours, the bare product of all similarities, and what users run today.

One thread, process CPU time, all arms interleaved; `ratio_to_product` divides by the product of the same round.
"""

from __future__ import annotations

import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 1024  # queries at a time in the product and in chunked top-k
SLOWEST = 60.0  # CPU seconds of one repetition beyond which a rival is not run at the next size
Case = tuple[int, int, int]  # N, d, samples per class
GOAL: Case = (60000, 512, 4)
QUERIES = 100_000  # of larger sets only so many are ranked among all
PRODUCT_QUERIES = 10_000  # whose product with all stands for that of all queries


def cases(quick: bool, only: str | None = None) -> list[Case]:
    """Sizes: all of four samples per class, and one of 64, 256 and 1024 per class, where positives are looked up. Of these the
    ones with a text in their names."""
    out = [(n, d, 4) for n in ((2048, 8192) if quick else (2048, 8192, 16384, 32768)) for d in (128, 512)]
    out += [(8192, 128, samples) for samples in (64, 256, 1024)]
    return [case for case in out if only is None or only in _name(case)]


def _name(case: Case) -> str:
    n, d, samples = case
    return f"N={n} d={d} m={samples}"


def _data(case: Case) -> tuple[Tensor, Tensor]:
    n, d, samples = case
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % (n // samples)
    centres = torch.randn(n // samples, d, generator=generator)
    return functional.normalize(0.6 * centres[labels] + torch.randn(n, d, generator=generator)), labels


def _product(x: Tensor, y: Tensor) -> None:
    s = torch.empty(min(CHUNK, len(x)), len(x))
    for i in range(0, len(x), CHUNK):
        torch.mm(x[i : i + CHUNK], x.T, out=s[: len(x[i : i + CHUNK])])


def _ours(x: Tensor, y: Tensor) -> float:
    from dmlcore.evaluation import retrieval_metrics

    return retrieval_metrics(x, y)["map@r"]


def _map_at_r(neighbours: Tensor, y: Tensor) -> float:
    """From [N, 1 + R] nearest references, the query itself among them."""
    own = neighbours == torch.arange(len(y))[:, None]
    hits = ((y[neighbours] == y[:, None]) & ~own).double()
    rank = torch.arange(1, neighbours.shape[1] + 1) - own.cumsum(1)
    precision = hits.cumsum(1) / rank.clamp_min(1)
    return float(((precision * hits).sum(1) / (neighbours.shape[1] - 1)).mean())


def _topk(x: Tensor, y: Tensor) -> float:
    most = int(torch.bincount(y).max())  # the query and its R positives
    neighbours = torch.cat([(x[i : i + CHUNK] @ x.T).topk(most).indices for i in range(0, len(x), CHUNK)])
    return _map_at_r(neighbours, y)


def _faiss(x: Tensor, y: Tensor) -> float:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x.numpy())
    return _map_at_r(torch.from_numpy(index.search(x.numpy(), int(torch.bincount(y).max()))[1]), y)


def _pml(x: Tensor, y: Tensor) -> float:
    import faiss
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    faiss.omp_set_num_threads(1)
    calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count", device=torch.device("cpu"))
    return calculator.get_accuracy(x, y)["mean_average_precision_at_r"]


RIVALS: dict[str, Callable[[Tensor, Tensor], float | None]] = {
    "product": _product,
    "dmlcore": _ours,
    "torch topk": _topk,
    "faiss": _faiss,
    "pml": _pml,
}


def _high_water() -> int:
    """KiB; not getrusage, whose maximum a child takes over from its parent."""
    line = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(line[1]) if line else 0


def _in_child(queue: Any, name: str, case: Case) -> None:
    torch.set_num_threads(1)
    x, y = _data(case)
    RIVALS[name](x[:64], y[:64] % 16)  # libraries loaded
    before = _high_water()
    RIVALS[name](x, y)
    queue.put((_high_water() - before) / 1024)


def _peak_mb(name: str, case: Case) -> float:
    """Growth of the high-water mark in a process of its own, MiB: beyond what making the data needed."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue, name, case))
    child.start()
    child.join()
    return queue.get() if child.exitcode == 0 else float("nan")


def run(cases: list[Case], repeats: int, names: list[str]) -> list[dict[str, Any]]:
    """Time every rival on every case.

    Args:
        chosen: the cases.
        repeats: rounds per case; slow cases run fewer.
        names: the rivals, among them `product` and `dmlcore`.

    Returns:
        A row per case and rival: case, rival, N, d, cpu_seconds (median), cpu_seconds_min, ratio_to_product (median over
        rounds), ratio_of_minima, peak_mb.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows, last_seconds = [], dict.fromkeys(names, 0.0)
    try:
        for case in cases:
            n, d, _ = case
            x, y = _data(case)
            running = [name for name in names if last_seconds[name] * 4 < SLOWEST]
            results = {name: RIVALS[name](x, y) for name in running}
            for name, value in results.items():
                if value is not None and abs(value - _expected(results)) > 1e-4:
                    raise AssertionError(f"{name} finds MAP@R {value}, dmlcore {results['dmlcore']} at {case}")
            times = _times(running, x, y, repeats)
            for name in running:
                last_seconds[name] = min(times[name])
                ratios = [seconds / product for seconds, product in zip(times[name], times["product"], strict=False)]
                rows.append(
                    {
                        "case": _name(case),
                        "rival": name,
                        "N": n,
                        "d": d,
                        "cpu_seconds": statistics.median(times[name]),
                        "cpu_seconds_min": min(times[name]),
                        "ratio_to_product": statistics.median(ratios),
                        "ratio_of_minima": min(times[name]) / min(times["product"]),
                        "peak_mb": float("nan") if name == "product" else _peak_mb(name, case),
                    }
                )
    finally:
        torch.set_num_threads(threads)
    return rows


def run_large(n: int, d: int = 128, samples: int = 4) -> dict[str, Any]:
    """Rank the first `QUERIES` samples of a large set among all of it, once; a row as of `run`.

    Args:
        n: samples.
        d: their dimensions.
        samples: per class.
    """
    from dmlcore.evaluation import retrieval_metrics

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x, y = _data((n, d, samples))
        queries, some = min(n, QUERIES), min(n, PRODUCT_QUERIES)
        started, before = time.process_time(), _high_water()
        retrieval_metrics(x[:queries], y[:queries], x, y)
        seconds, megabytes = time.process_time() - started, (_high_water() - before) / 1024
        started = time.process_time()
        s = torch.empty(CHUNK, n)
        for i in range(0, some, CHUNK):
            torch.mm(x[i : min(i + CHUNK, some)], x.T, out=s[: min(CHUNK, some - i)])
        product = (time.process_time() - started) * queries / some
    finally:
        torch.set_num_threads(threads)
    return {
        "case": f"{queries} queries of {_name((n, d, samples))}",
        "rival": "dmlcore",
        "N": n,
        "d": d,
        "cpu_seconds": seconds,
        "cpu_seconds_min": seconds,
        "ratio_to_product": seconds / product,
        "ratio_of_minima": seconds / product,
        "peak_mb": megabytes,
    }


def _times(names: list[str], x: Tensor, y: Tensor, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every rival in each round, the rivals in turn; three rounds of those that take long."""
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            if number >= 3 and times[name][0] > 2.0:
                continue
            start = time.process_time()
            RIVALS[name](x, y)
            times[name].append(time.process_time() - start)
    return times


def _expected(results: dict[str, float | None]) -> float:
    value = results["dmlcore"]
    assert value is not None
    return value
