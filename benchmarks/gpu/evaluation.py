"""The table of the exact evaluator: all ranks by counting, beside the R nearest by torch and by faiss.

A rival that would take minutes runs on the first queries only, against all references; `gigapairs` per second compares rates.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.devices import Device, Run
from benchmarks.gpu.turns import Budget, Build, Missing, measure
from benchmarks.measuring import Row

PER_CLASS = 4
RIVALS = ("products", "dmlcore", "torch topk", "faiss-gpu")
CHUNK_CELLS = 1 << 28  # similarities at a time of the product and of top-k
PART_CELLS = 2e10  # pairs of a rival's part


def vectors(device: Device, n: int, d: int) -> tuple[Tensor, Tensor]:
    """`[n, d]` of unit norm around the centres of n / 4 classes, made on the device, and the labels `[n]`."""
    generator = torch.Generator(device.torch).manual_seed(0)
    labels = torch.arange(n, device=device.torch) % max(1, n // PER_CLASS)
    centres = torch.randn(max(1, n // PER_CLASS), d, generator=generator, device=device.torch)
    noise = torch.randn(n, d, generator=generator, device=device.torch)
    return functional.normalize(noise.add_(centres[labels], alpha=0.6)), labels


def run(
    device: Device,
    budget: Budget,
    sizes: tuple[int, ...],
    widths: tuple[int, ...],
    seconds: float,
    rivals: tuple[str, ...] = RIVALS,
) -> Iterator[Row]:
    """Rows of the table `evaluation`."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")  # exact ranks need exact products
        for n in sizes:
            for d in widths:
                part = n if n * n <= PART_CELLS else max(1, int(PART_CELLS / n))
                arms: dict[str, Build] = {
                    "products": lambda n=n, d=d, part=part: products(device, n, d, part),
                    "dmlcore": lambda n=n, d=d: ours(device, n, d),
                    "torch topk": lambda n=n, d=d, part=part: topk(device, n, d, part),
                    "faiss-gpu": lambda n=n, d=d, part=part: faiss_gpu(device, n, d, part),
                }
                arms = {rival: arms[rival] for rival in rivals}
                for rival, row in measure(device, arms, budget, seconds).items():
                    queries = n if rival == "dmlcore" else part
                    if "milliseconds" in row:
                        row["gigapairs"] = queries * n / row["milliseconds"] / 1e6
                        del row["ratio"]  # of different numbers of queries: rates compare
                    columns = {"table": "evaluation", "case": f"m={PER_CLASS}", "rival": rival, "n": n, "d": d}
                    yield {**columns, "dtype": "float32", "precision": "highest", "queries": queries, **row}
    finally:
        torch.set_float32_matmul_precision(before)


def products(device: Device, n: int, d: int, part: int) -> Run:
    """All similarities of the first queries, chunk by chunk."""
    x, _ = vectors(device, n, d)
    rows = max(1, min(part, CHUNK_CELLS // n))
    s = x.new_empty(rows, n)

    def run() -> None:
        for i in range(0, part, rows):
            torch.mm(x[i : min(i + rows, part)], x.T, out=s[: min(rows, part - i)])

    return run


def ours(device: Device, n: int, d: int) -> Run:
    """The public measures: recall, R-precision, MAP@R, mAP of every sample against all others."""
    from dmlcore.evaluation import retrieval_metrics

    x, labels = vectors(device, n, d)
    return lambda: retrieval_metrics(x, labels)["map@r"]


def topk(device: Device, n: int, d: int, part: int) -> Run:
    """MAP@R of the R nearest by torch's product and top-k."""
    x, labels = vectors(device, n, d)
    rows = max(1, min(part, CHUNK_CELLS // n))

    def run() -> float:
        nearest = [(x[i : min(i + rows, part)] @ x.T).topk(min(PER_CLASS, n)).indices for i in range(0, part, rows)]
        return map_at_r(torch.cat(nearest), labels)

    return run


def faiss_gpu(device: Device, n: int, d: int, part: int) -> Run:
    """The same by a flat index of faiss on the GPU, tensors handed over without a copy."""
    try:
        faiss = importlib.import_module("faiss")
    except ImportError:
        raise Missing("faiss is not installed") from None
    if not hasattr(faiss, "StandardGpuResources"):
        raise Missing("the installed faiss has no GPU support")
    importlib.import_module("faiss.contrib.torch_utils")
    x, labels = vectors(device, n, d)
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), d)

    def run() -> float:
        index.reset()
        index.add(x)
        return map_at_r(index.search(x[:part], PER_CLASS)[1], labels)

    return run


def map_at_r(neighbours: Tensor, labels: Tensor) -> float:
    """From the [Q, 1 + R] nearest references of the first Q samples, each itself among them."""
    queries = torch.arange(len(neighbours), device=labels.device)[:, None]
    own = neighbours == queries
    hits = ((labels[neighbours] == labels[queries]) & ~own).double()
    rank = torch.arange(1, neighbours.shape[1] + 1, device=labels.device) - own.cumsum(1)
    precision = hits.cumsum(1) / rank.clamp_min(1)
    return float(((precision * hits).sum(1) / max(neighbours.shape[1] - 1, 1)).mean())
