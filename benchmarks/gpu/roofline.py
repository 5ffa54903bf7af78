"""A step of the CUDA kernels on paper: operations, bytes and launches, and what the vendor's peaks make of them. Nothing is
measured. `python -m benchmarks.gpu.roofline` prints the tables of docs/design/cuda.md.

A step is forward and backward of K losses without slots over a batch with itself, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

SIZES = (512, 2048, 8192, 32768, 65536)
WIDTH, LOSSES = 128, 5
CHUNK_BYTES = 16 << 20  # WORKSPACE of dmlcore/kernels/cuda.py
INSTRUCTIONS = 16  # per pair, loss and pass: an assumption, to be replaced by a count of ncu
LAUNCH = 5e-6  # seconds of the host per launch through PyTorch: an assumption
TILE = 128  # rows and columns of a tile of the kernel that is not built


@dataclass(frozen=True)
class Peaks:
    """What the vendor publishes for a device, without sparsity.

    Source: NVIDIA H100 Tensor Core GPU Architecture (white paper, SXM5) and NVIDIA H200 Tensor Core GPU (data sheet, SXM).

    Attributes:
        tensor: operations per second of tensor cores in tf32.
        scalar: float32 operations per second; a fused multiply-add counts as two.
        memory: bytes per second of the device memory. No figure is published for the second-level cache, which is faster.
        multiprocessors: of the device.
    """

    name: str
    tensor: float
    scalar: float
    memory: float
    multiprocessors: int


H100 = Peaks("H100", 494.7e12, 66.9e12, 3.35e12, 132)
H200 = Peaks("H200", 494.7e12, 66.9e12, 4.8e12, 132)


@dataclass(frozen=True)
class Step:
    """A step of the kernels as they are.

    Attributes:
        n, d, losses: samples, dimension, number of losses.
    """

    n: int
    d: int = WIDTH
    losses: int = LOSSES

    @property
    def rows(self) -> int:
        """Of a chunk: as `csrc/cuda/pass.cu` plans them."""
        rows = max(CHUNK_BYTES // 4 // self.n, 32)
        return min(rows // 128 * 128 if rows > 128 else rows, self.n)

    @property
    def chunks(self) -> int:
        return -(-self.n // self.rows)

    @property
    def is_kept(self) -> bool:
        """Whether backward finds the products of forward."""
        return self.chunks == 1

    @property
    def operations(self) -> float:
        """Of the products: similarities, in backward again unless kept, and a gradient for either side."""
        return (6 if self.is_kept else 8) * self.n**2 * self.d

    @property
    def chunk_bytes(self) -> float:
        """Reads and writes of similarities and slopes. The first loss writes slopes, every other adds to them."""
        forward = 1 + self.losses
        backward = (0 if self.is_kept else 1) + self.losses + (2 * self.losses - 1) + 2
        return 4 * self.n**2 * (forward + backward)

    @property
    def vector_bytes(self) -> float:
        """Reads of all vectors by the products of each chunk, and the sum of gradients that each chunk adds to."""
        return 4 * self.n * self.d * self.chunks * (2 + (0 if self.is_kept else 1) + 2)

    @property
    def instructions(self) -> float:
        """Of the functors in both passes."""
        return 2 * self.losses * INSTRUCTIONS * self.n**2

    @property
    def launches(self) -> int:
        """Sort, gather and scatter, and for every chunk the products and a kernel per loss and pass."""
        return 3 + self.chunks * (3 + (0 if self.is_kept else 1) + 2 * self.losses)

    @property
    def gradient_tiles(self) -> int:
        """Output tiles of a chunk's slopes times the vectors: a product without split sums uses so many multiprocessors."""
        return -(-self.rows // TILE) * -(-self.d // TILE)

    def seconds(self, peaks: Peaks) -> dict[str, float]:
        """What each part takes at least on a device, by what binds it."""
        return {
            "products": self.operations / peaks.tensor,
            "bytes": (self.chunk_bytes + self.vector_bytes) / peaks.memory,
            "functors": self.instructions / (peaks.scalar / 2),
            "launches": self.launches * LAUNCH,
        }

    def in_registers(self, peaks: Peaks) -> dict[str, float]:
        """The same for a kernel that is not built: wgmma products of 128 x 128 tiles, the functors on their registers.

        Nothing of size N^2 goes through memory. Forward and backward load the vectors of their tiles. Backward takes the slopes
        of both directions in every tile. So it needs one product for the gradient instead of two, but runs functors twice.
        """
        return {
            "products": 6 * self.n**2 * self.d / peaks.tensor,
            "bytes": 2 * self.n**2 * self.d * 4 * 2 / TILE / peaks.memory,
            "functors": 1.5 * self.instructions / (peaks.scalar / 2),
            "launches": 6 * LAUNCH,
        }


def table(sizes: tuple[int, ...] = SIZES) -> str:
    """The steps as Markdown."""
    header = [
        "N",
        "chunks",
        "tiles",
        "launches",
        "GFLOP",
        "GB",
        "products",
        "bytes, H100",
        "bytes, H200",
        "functors",
        "launches",
    ]
    header += ["bound by", "in registers", "bound by"]
    lines = [header, ["---"] * len(header)]
    for n in sizes:
        step = Step(n)
        now, later = step.seconds(H100), step.in_registers(H100)
        of_h200 = step.seconds(H200)["bytes"]
        milliseconds = [now["products"], now["bytes"], of_h200, now["functors"], now["launches"]]
        bound, bound_later = max(now, key=now.__getitem__), max(later, key=later.__getitem__)
        lines.append(
            [
                *(f"{count:,}" for count in (n, step.chunks, step.gradient_tiles, step.launches)),
                *(_digits(size / 1e9) for size in (step.operations, step.chunk_bytes + step.vector_bytes)),
                *(_digits(1e3 * time) for time in milliseconds),
                *(bound, _digits(1e3 * later[bound_later]), bound_later),
            ]
        )
    return _markdown(lines)


def table_together(sizes: tuple[int, ...] = SIZES) -> str:
    """Steps whose losses share one launch per chunk and pass, as Markdown: launches and bytes are those of one loss."""
    header = ["N", "launches", "together", "ms of launches", "together", "GB", "together", "ms of bytes, H100", "together"]
    lines = [header, ["---"] * len(header)]
    for n in sizes:
        steps = (Step(n), Step(n, losses=1))
        seconds = [step.seconds(H100) for step in steps]
        lines.append(
            [
                f"{n:,}",
                *(f"{step.launches:,}" for step in steps),
                *(_digits(1e3 * of["launches"]) for of in seconds),
                *(_digits((step.chunk_bytes + step.vector_bytes) / 1e9) for step in steps),
                *(_digits(1e3 * of["bytes"]) for of in seconds),
            ]
        )
    return _markdown(lines)


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(entries) + " |" for entries in lines)


def _digits(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    print(table(), table_together(), sep="\n\n")
