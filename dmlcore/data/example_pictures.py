"""A small data set of pictures to try things on, made on the spot: signs of many scripts as somebody may photograph them, in
any colour, light and place. A class is a character, in the hands of different type designers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from dmlcore.config import check_range
from dmlcore.data.opening import default_source, load_table
from dmlcore.data.stores import PixelStore
from dmlcore.errors import ConfigError, DataError
from dmlcore.files import make_folder, write_error

_LEAST_CONTRAST = 70  # of brightness in 0..255, between a sign and what is around it


def write_example(folder: Path, *, classes: int = 40, samples: int = 12, size: int = 96, seed: int = 0) -> dict[str, int | str]:
    """Write colour photographs as JPEG, in one folder per class.

    Args:
        folder: that is new or empty. It is there in full or not at all.
        classes: number of classes, 6..500.
        samples: pictures of each, 2..100.
        size: height and width, 32..512 pixels.
        seed: of all that is drawn.

    Returns:
        The folder, and how many classes and pictures it holds.

    Raises:
        ConfigError: a number out of range, or the folder holds something.
        DataError: fewer characters than classes.
        TrainingError: it cannot be written.
    """
    for name, value, least, most in (("classes", classes, 6, 500), ("samples", samples, 2, 100), ("size", size, 32, 512)):
        check_range(name, value, least=least, most=most)
    check_range("seed", seed, least=0)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not an empty folder. Choose another one")
    drawings = _drawings(classes, samples, np.random.default_rng((seed, 0)))
    make_folder(folder.parent)
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    try:
        for number, (name, rows) in enumerate(drawings.items()):
            (temporary / name).mkdir(parents=True)
            for place, drawing in enumerate(rows):
                generator = np.random.default_rng((seed, 1, number, place))
                picture = photograph(drawing, size, generator)
                picture.save(temporary / name / f"{place:02d}.jpg", quality=int(generator.integers(70, 95)))
        with contextlib.suppress(OSError):
            folder.rmdir()
        os.rename(temporary, folder)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {"folder": str(folder), "classes": classes, "pictures": classes * samples}


def photograph(drawing: np.ndarray, size: int, generator: np.random.Generator) -> Image.Image:
    """A drawing as a sign in a photograph: on a surface with light and shadow, tilted, blurred, with the noise of a camera.

    Args:
        drawing: uint8 [H, W], 0 (paper) to 255 (ink).
        size: of the picture, pixels.
        generator: of all that is drawn at random.

    Returns:
        RGB.
    """
    surface = _surface(size, generator)  # [S, S, 3]
    mask = _placed(drawing, size, generator)  # [S, S] in 0..1
    shadow = np.roll(mask, generator.integers(1, max(2, size // 24) + 1, 2), axis=(0, 1))
    shadow = np.asarray(_picture(shadow * 255).filter(ImageFilter.GaussianBlur(size / 48)), dtype=np.float64)[..., None] / 255
    surface = surface * (1 - generator.uniform(0.2, 0.6) * shadow)
    inside = (surface * mask[..., None]).sum((0, 1)) / max(mask.sum(), 1)
    colour = generator.uniform(0, 255, 3)
    while abs(colour.mean() - inside.mean()) < _LEAST_CONTRAST:
        colour = generator.uniform(0, 255, 3)
    ink = colour + _clouds(size, 3, generator, 25)[..., None]
    pixels = surface * (1 - mask[..., None]) + ink * mask[..., None]
    pixels = pixels * (1 + _slope(size, generator) * generator.uniform(0, 0.35))[..., None]  # light from one side
    picture = _picture(pixels).filter(ImageFilter.GaussianBlur(generator.uniform(0, size / 120)))
    noisy = np.asarray(picture, dtype=np.float64) + generator.normal(0, generator.uniform(1, 7), (size, size, 3))
    return _picture(noisy)


def _drawings(classes: int, samples: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Drawings uint8 [samples, H, W] by the name of their character, which any file system takes."""
    _, table = load_table(default_source())
    if not isinstance(table.samples, PixelStore):
        raise DataError("the default data hold no drawings to make pictures of")
    counts = np.bincount(table.labels, minlength=len(table.class_names))
    named = {label: name for label, text in enumerate(table.class_names) if (name := _file_name(text))}
    fitting = [label for label in named if counts[label] >= samples]
    if len(fitting) < classes:
        raise DataError(f"there are {len(fitting)} characters with {samples} drawings each, fewer than {classes}")
    chosen_labels = sorted(generator.permutation(fitting)[:classes].tolist())
    pixels = table.samples.pixels[:, 0]
    rows = {label: generator.permutation(np.flatnonzero(table.labels == label))[:samples] for label in chosen_labels}
    return {named[label]: pixels[rows[label]] for label in chosen_labels}


def _file_name(character: str) -> str:
    """The name of a character in Unicode; empty for what is no single one."""
    name = unicodedata.name(character, "") if len(character) == 1 else ""
    return name.lower().replace(" ", "_")


def _picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def _clouds(size: int, cells: int, generator: np.random.Generator, strength: float) -> np.ndarray:
    """Smooth noise [S, S] around 0, of about so many lights and darks along a side."""
    coarse = generator.normal(0, strength, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)


def _slope(size: int, generator: np.random.Generator) -> np.ndarray:
    """A plane [S, S] through -1..1 that rises in a random direction."""
    angle = generator.uniform(0, 2 * np.pi)
    along = np.linspace(-1, 1, size)
    return (np.cos(angle) * along[None, :] + np.sin(angle) * along[:, None]) / np.sqrt(2)


def _surface(size: int, generator: np.random.Generator) -> np.ndarray:
    """A wall, cloth or table [S, S, 3]: one colour with clouds and grain, and sometimes bars or spots of another."""
    base = generator.uniform(20, 235, 3)
    pixels = base + np.stack([_clouds(size, 4, generator, 22) for _ in range(3)], -1)
    pixels = pixels + _clouds(size, 16, generator, 8)[..., None] + _clouds(size, size // 2, generator, 5)[..., None]
    pattern, other = generator.integers(3), generator.uniform(20, 235, 3)
    if pattern == 1:  # bars
        wave = np.sin(_slope(size, generator) * generator.uniform(6, 30) + generator.uniform(0, 6))
        pixels = pixels + 0.35 * ((wave > generator.uniform(0, 0.8))[..., None] * (other - base))
    elif pattern == 2:  # spots
        spots = _clouds(size, int(generator.integers(5, 10)), generator, 1) > generator.uniform(0.4, 1.2)
        pixels = pixels + 0.5 * (spots[..., None] * (other - base))
    return pixels


def _placed(drawing: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """The ink of a drawing [S, S] in 0..1, enlarged, turned, seen from a side, and not quite in the middle."""
    height, width = drawing.shape
    angle, scale = generator.uniform(-0.45, 0.45), size / max(height, width) * generator.uniform(0.6, 0.95)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    turn = turn @ (np.eye(2) + generator.uniform(-0.15, 0.15, (2, 2)))
    centre = size / 2 + generator.uniform(-0.08, 0.08, 2) * size
    move = np.array([width, height]) / 2 - turn @ centre
    tilt = generator.uniform(-0.25, 0.25, 2) / size
    matrix = (*turn[0], move[0], *turn[1], move[1], *tilt)
    placed = Image.fromarray(drawing).transform(
        (size, size), Image.Transform.PERSPECTIVE, matrix, Image.Resampling.BICUBIC, fillcolor=0
    )
    return np.asarray(placed, dtype=np.float64) / 255
