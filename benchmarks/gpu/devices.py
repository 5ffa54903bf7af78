"""The device under measurement: its clock, its memory, CUDA graphs, the compiler, and what it is. The tests have a stand-in."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.measuring import Row, commit
from dmlcore.kernels import extension

Run = Callable[[], object]
RIVALS = ("pytorch-metric-learning", "memeff", "cupy-cuda13x", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cuvs", "triton")


class Device(Protocol):
    """What the tables need of a device."""

    torch: torch.device

    def now(self) -> float:
        """Seconds of a wall clock."""
        ...

    def seconds(self, run: Run) -> float:
        """Seconds of the device for one call."""
        ...

    def calls(self, run: Run, count: int) -> float:
        """Wall seconds per call of `count` calls one after the other, waiting only at the end."""
        ...

    def peak(self, run: Run) -> float:
        """MB by which a call raises the allocated memory; the call's work is finished afterwards."""
        ...

    def graph(self, run: Run) -> Run:
        """The call as a captured graph's replay."""
        ...

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function under torch.compile."""
        ...

    def release(self) -> None:
        """Give unused memory back, also after a failure."""
        ...

    def about(self) -> Row:
        """Device, driver, versions and commit, for every row."""
        ...

    def build(self) -> Row:
        """Whether the kernels run on this device: `status` and `detail`."""
        ...


class Cuda:
    """The current CUDA device."""

    def __init__(self) -> None:
        self.torch = torch.device("cuda", torch.cuda.current_device())

    def now(self) -> float:
        return time.perf_counter()

    def seconds(self, run: Run) -> float:
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        run()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3

    def calls(self, run: Run, count: int) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            run()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    def peak(self, run: Run) -> float:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def graph(self, run: Run) -> Run:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # as torch asks: warmed up on another stream
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            run()
        return captured.replay

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        torch.compiler.reset()
        return torch.compile(function)

    def release(self) -> None:
        torch.cuda.empty_cache()

    def about(self) -> Row:
        module = extension.cuda()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={self.torch.index}"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip() or "unknown"
        except (OSError, subprocess.TimeoutExpired):
            driver = "unknown"
        major, minor = torch.cuda.get_device_capability(self.torch)
        return {
            "device": torch.cuda.get_device_name(self.torch),
            "capability": f"{major}.{minor}",
            "driver": driver,
            "cuda": torch.version.cuda,
            "kernels": getattr(module, "archs", "not built"),
            "runtime": getattr(module, "runtime_version", ""),
            **versions(),
        }

    def build(self) -> Row:
        module = extension.cuda()
        if module is None:
            return {"status": "error", "detail": extension.why_not("cuda")}
        major, minor = torch.cuda.get_device_capability(self.torch)
        archs = module.archs.replace("+PTX", "").split(";")
        own = str(10 * major + minor)
        if own in archs or any(arch.isdigit() and int(arch) // 10 == major and int(arch) <= int(own) for arch in archs):
            return {"status": "ok", "detail": f"machine code of {module.archs} runs on sm_{own}"}
        if "+PTX" in module.archs and int(own) >= max(int(arch) for arch in archs if arch.isdigit()):
            return {"status": "ok", "detail": f"PTX of {module.archs} is compiled for sm_{own} by the driver"}
        detail = f"the kernels are built for {module.archs}, not for sm_{own}; set DML_CUDA_ARCHS={own} and build again"
        return {"status": "error", "detail": detail}


def versions() -> Row:
    """Versions of what takes part, and the commit; an empty text where something is not installed."""
    versions_of: Row = {"torch": torch.__version__, "commit": commit()}
    for name in RIVALS:
        try:
            versions_of[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions_of[name] = ""
    return versions_of


def why_not_measured() -> str:
    """Why there is nothing to measure, as one line; empty on a machine with a CUDA device."""
    if torch.cuda.is_available():
        return ""
    built = "" if torch.version.cuda else "; this PyTorch is built without CUDA"
    driver = "" if Path("/proc/driver/nvidia/version").exists() else "; there is no NVIDIA driver"
    return f"python -m benchmarks gpu needs a CUDA device: torch sees none{built}{driver}"
