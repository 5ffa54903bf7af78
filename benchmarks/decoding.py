"""`python -m benchmarks decoding`: views of JPEG files as training and tests read them, beside torchvision's transforms of
the same files, interleaved on one thread.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measuring import Row, interleaved, quantiles

SIZES = ((500, 375), (1600, 1200))  # width and height: of the field's data sets, and of a camera
SIDE = 224
PICTURES = 64  # files of each size, read in turn
TEST = 256


def run(budget: float = 15.0) -> list[Row]:
    """Rows with microseconds per picture, for training's random crops and for the views of tests.

    Args:
        budget: seconds for each size and view.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[Row] = []
    try:
        for width, height in SIZES:
            with tempfile.TemporaryDirectory() as folder:
                paths = _photographs(Path(folder), width, height)
                for view, arms in (("training", _training_arms(paths)), ("test", _test_arms(paths))):
                    for arm in arms.values():
                        arm()
                    times = interleaved(arms, budget=budget, least=5, most=200, clock=time.process_time)
                    rows += _rows(f"{width} x {height} to {SIDE}, {view} view", times)
    finally:
        torch.set_num_threads(threads)
    return rows


def _rows(case: str, times: dict[str, list[float]]) -> list[Row]:
    figures = {arm: [1e6 * value / PICTURES for value in quantiles(seconds)] for arm, seconds in times.items()}
    return [
        {
            "case": case,
            "rival": arm,
            "microseconds": median,
            "low": low,
            "high": high,
            "repeats": len(times[arm]),
            "ratio_to_torchvision": median / figures["torchvision"][0],
        }
        for arm, (median, low, high) in figures.items()
    ]


def _photographs(folder: Path, width: int, height: int) -> list[str]:
    """JPEG files with coarse shapes and fine grain, of about 0.35 bytes per pixel as photographs have."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(PICTURES):
        coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        shapes = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        grain = shapes + generator.integers(-12, 13, (height, width, 1), dtype=np.int16)
        paths.append(str(folder / f"{number}.jpg"))
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def _training_arms(paths: list[str]) -> dict[str, Callable[[], object]]:
    from torchvision.transforms import v2

    from dmlcore.data import ImageFiles, PathImages
    from dmlcore.data.crops import RandomCrop

    store = ImageFiles(PathImages(paths), (SIDE, SIDE), 3, crop=RandomCrop())
    everything, generator = np.arange(len(paths)), torch.Generator().manual_seed(0)
    transform = v2.Compose([v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip(), v2.PILToTensor(), _to_float(v2)])
    torch.manual_seed(0)
    return {
        "dmlcore": lambda: store.fetch_crops(everything, generator),
        "torchvision": lambda: torch.stack([transform(Image.open(path).convert("RGB")) for path in paths]),
    }


def _test_arms(paths: list[str]) -> dict[str, Callable[[], object]]:
    from torchvision.transforms import v2

    from dmlcore.data import ImageFiles, PathImages

    store = ImageFiles(PathImages(paths), (SIDE, SIDE), 3, resize=TEST)
    everything = np.arange(len(paths))
    transform = v2.Compose([v2.Resize(TEST), v2.CenterCrop(SIDE), v2.PILToTensor(), _to_float(v2)])
    return {
        "dmlcore": lambda: store.fetch(everything),
        "torchvision": lambda: torch.stack([transform(Image.open(path).convert("RGB")) for path in paths]),
    }


def _to_float(v2: object) -> object:
    return v2.ToDtype(torch.float32, scale=True)  # type: ignore[attr-defined]
