"""Crops of photographs: what training and tests see of whole pictures, beside torchvision's transforms of the same pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dmlcore
from dmlcore.data import ImageFiles, PixelStore, batches, create_sampler, decode, open_data
from dmlcore.data.crops import RandomCrop, middle_box, resize_for_test
from dmlcore.data.images import decode_part
from dmlcore.errors import ConfigError
from dmlcore.serving.model_folder import write_model

WIDTH, HEIGHT = 600, 400
LEVELS = {"bilinear": 1, "bicubic": 4}  # of 255: both round the weights of pixels, and those of bicubic sum up from both signs


def coded(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A picture whose red says how far right a pixel is, and whose green how far down."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return Image.fromarray((np.stack([x, y, 0.5 + 0 * x], 2) * 255).round().astype(np.uint8))


def ranges(pixels: np.ndarray) -> list[float]:
    """First and last place that is seen, along x and along y, as fractions of the whole picture."""
    red, green = pixels[0] / 255, pixels[1] / 255
    return [red.min(), red.max(), green.min(), green.max()]


def noisy(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with large and small detail."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    fine = np.asarray(coarse).astype(int) + generator.integers(-25, 26, (height, width, 3))
    return Image.fromarray(fine.clip(0, 255).astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of 600 x 400 pixels whose places are coded, in eight classes."""
    for label in range(8):
        (tmp_path / f"class{label}").mkdir()
        for number in range(4):
            coded().save(tmp_path / f"class{label}" / f"{number}.png", compress_level=1)
    return tmp_path


def test_the_test_view_is_that_of_the_publications(tmp_path: Path) -> None:
    coded().save(tmp_path / "coded.png")
    seen = ranges(decode(str(tmp_path / "coded.png"), (227, 227), 3, resize=256))
    assert seen == pytest.approx([0.20, 0.79, 0.055, 0.94], abs=0.01)
    square = ranges(decode(str(tmp_path / "coded.png"), (227, 227), 3))
    assert square == pytest.approx([1 / 6, 5 / 6, 0, 1], abs=0.01)


@pytest.mark.parametrize(("width", "height"), [(600, 400), (333, 500), (256, 256), (1999, 1201)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_test_view_beside_torchvision(tmp_path: Path, width: int, height: int, interpolation: str) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    picture = noisy(width, height)
    picture.save(tmp_path / "p.png", compress_level=1)
    how = v2.InterpolationMode(interpolation)
    right = v2.functional.center_crop(v2.functional.resize(picture, [256], interpolation=how), [224, 224])
    ours = decode(str(tmp_path / "p.png"), (224, 224), 3, interpolation, 256)  # type: ignore[arg-type]
    apart = np.abs(ours.transpose(1, 2, 0).astype(int) - np.asarray(right).astype(int))
    assert apart.max() <= LEVELS[interpolation] and apart.mean() < 0.35
    moved = np.abs(np.roll(ours, 1, 2).transpose(1, 2, 0).astype(int) - np.asarray(right).astype(int))
    assert moved.mean() > 10 * max(apart.mean(), 0.01)  # a shift by a pixel would be seen


@pytest.mark.parametrize(("width", "height"), [(600, 400), (375, 500), (90, 70)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_crops_beside_torchvision(tmp_path: Path, width: int, height: int, interpolation: str) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    picture = noisy(width, height)
    picture.save(tmp_path / "p.png", compress_level=1)
    crop = RandomCrop()
    draws = crop.draw(12, torch.Generator().manual_seed(3))
    mirrored = 0
    for row in draws:
        left, top, right, bottom = map(int, crop.box(row, width, height))
        ours = decode_part(str(tmp_path / "p.png"), crop, row, (64, 64), 3, interpolation)  # type: ignore[arg-type]
        how = v2.InterpolationMode(interpolation)
        theirs = v2.functional.resized_crop(picture, top, left, bottom - top, right - left, [64, 64], interpolation=how)
        if crop.is_mirrored(row):
            mirrored += 1
            theirs = v2.functional.hflip(theirs)
        apart = np.abs(ours.transpose(1, 2, 0).astype(int) - np.asarray(theirs).astype(int))
        assert apart.max() <= LEVELS[interpolation] and apart.mean() < 0.35
    assert 2 <= mirrored <= 10


def test_crops_are_drawn_as_by_torchvision() -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    theirs = v2.RandomResizedCrop(8)
    torch.manual_seed(0)
    picture = torch.empty(3, HEIGHT, WIDTH)
    drawn = [theirs.make_params([picture]) for _ in range(3000)]
    crop = RandomCrop()
    boxes = np.array([crop.box(row, WIDTH, HEIGHT) for row in crop.draw(3000, torch.Generator().manual_seed(1))])
    wide, tall = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    ours = np.stack([boxes[:, 0], boxes[:, 1], wide, tall, wide * tall, wide / tall], 1)
    left, top, wide, tall = (np.array([part[name] for part in drawn]) for name in ("left", "top", "width", "height"))
    right = np.stack([left, top, wide, tall, wide * tall, wide / tall], 1)
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        spread = right.std(0)
        np.testing.assert_allclose(np.quantile(ours, quantile, 0) / spread, np.quantile(right, quantile, 0) / spread, atol=0.12)
    # A long strip has no part of these ratios that is large: the middle is taken.
    assert RandomCrop(scale=(1, 1)).box(torch.rand(23), 1000, 100) == (433, 0, 566, 100)
    assert RandomCrop(scale=(1, 1)).box(torch.rand(23), 100, 1000) == (0, 433, 100, 566)


def test_crops_reach_the_whole_picture(photos: Path) -> None:
    splits = open_data(str(photos), options={"crops": "dml"}, image_size=64)
    assert isinstance(splits.train.samples, ImageFiles)
    generator = torch.Generator().manual_seed(0)
    seen = [splits.train.batch(range(8), augment=True, generator=generator).numpy() * 255 for _ in range(40)]
    limits = np.array([ranges(pixels) for batch in seen for pixels in batch])
    assert limits[:, [0, 2]].min(0) == pytest.approx([0, 0], abs=0.02)
    assert limits[:, [1, 3]].max(0) == pytest.approx([1, 1], abs=0.02)
    area = (limits[:, 1] - limits[:, 0]) * (limits[:, 3] - limits[:, 2])
    assert area.min() < 0.15 and area.max() > 0.8
    is_mirrored = np.array([pixels[0, 0, 0] > pixels[0, 0, -1] for batch in seen for pixels in batch])
    assert 0.4 < is_mirrored.mean() < 0.6
    narrow = open_data(str(photos), options={"crops": "dml", "crop_scale": (0.5, 0.6), "flip": False}, image_size=64)
    seen = narrow.train.batch(range(12), augment=True, generator=generator).numpy() * 255
    limits = np.array([ranges(pixels) for pixels in seen])
    area = (limits[:, 1] - limits[:, 0]) * (limits[:, 3] - limits[:, 2])
    assert area.min() > 0.45 and area.max() < 0.65
    assert all(pixels[0, 0, 0] < pixels[0, 0, -1] for pixels in seen)


def test_crops_are_the_same_with_any_number_of_workers(photos: Path) -> None:
    splits = open_data(str(photos), options={"crops": "dml", "memory_mb": 0}, image_size=32)
    draws = []
    for workers in (0, 1, 3):
        sampler = create_sampler("class_balanced", splits.train.dense_labels, 2, 2, seed=1, steps=4)
        source = batches(splits.train, sampler, workers=workers, augment=True, seed=5)
        draws.append([next(source)[0] for _ in range(4)])
        source.close()
    for other in draws[1:]:
        assert all(torch.equal(first, second) for first, second in zip(draws[0], other, strict=True))
    assert not torch.equal(draws[0][0], draws[0][1])


def test_tests_see_the_middle_whether_or_not_pictures_are_kept(photos: Path) -> None:
    kept = open_data(str(photos), options={"crops": "dml"}, image_size=64)
    streamed = open_data(str(photos), options={"crops": "dml", "memory_mb": 0}, image_size=64)
    plain = open_data(str(photos), options={"crops": "dml", "augment": "none"}, image_size=64)
    assert kept.train.samples.pixels is not None and streamed.train.samples.pixels is None
    assert isinstance(plain.train.samples, PixelStore) and plain.train.augmentation is None
    first = kept.test.batch([0, 3])
    assert torch.equal(first, streamed.test.batch([0, 3])) and torch.equal(first, plain.test.batch([0, 3]))
    assert ranges(first[0].numpy() * 255) == pytest.approx([0.21, 0.79, 0.07, 0.93], abs=0.01)  # 73 of 64 pixels
    assert torch.equal(plain.train.batch([1], augment=True, generator=torch.Generator()), plain.train.batch([1]))


def test_large_photographs_and_turned_ones(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    coded(1600, 1200).save(tmp_path / "large.jpg", quality=95)
    coded(1600, 1200).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    large = decode(str(tmp_path / "large.jpg"), (224, 224), 3, resize=256)
    assert ranges(large) == pytest.approx([0.172, 0.828, 0.0625, 0.9375], abs=0.015)
    turned = decode(str(tmp_path / "turned.jpg"), (224, 224), 3, resize=256)
    assert np.abs(turned.astype(int) - np.rot90(large, -1, (1, 2)).astype(int)).max() <= 3
    crop = RandomCrop(flip=False)
    for row in crop.draw(6, torch.Generator().manual_seed(2)):
        left, top, right, bottom = crop.box(row, 1200, 1600)
        pixels = decode_part(str(tmp_path / "turned.jpg"), crop, row, (32, 32), 3)
        # Red said how far right a pixel was: it is how far down now; green is how far from the right.
        place = [1 - right / 1200, 1 - left / 1200, top / 1600, bottom / 1600]
        assert [pixels[1].min() / 255, pixels[1].max() / 255, pixels[0].min() / 255, pixels[0].max() / 255] == pytest.approx(
            place, abs=0.03
        )


def test_what_cannot_be_is_refused(photos: Path) -> None:
    for options, message in (
        ({"resize": 256}, "resize is given, but it is for crops = dml"),
        ({"crop_scale": (0.5, 1)}, "crop_scale is given, but it is for crops = dml"),
        ({"crops": "dml", "augment": "crop"}, "crops dml draw crops already"),
        ({"crops": "dml", "crop_scale": (0.5, 1.5)}, "crop_scale is 0.5, 1.5, but must be two rising numbers in"),
        ({"crops": "dml", "crop_ratio": (2.0, 1.0)}, "crop_ratio is 2.0, 1.0, but must be two rising numbers above 0"),
        ({"crops": "dml", "resize": 32}, "resize is 32, but must be at least the side of the images, 64 pixels"),
        ({"crops": "wide"}, "crops"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_data(str(photos), options=options, image_size=64)
    with pytest.raises(ConfigError, match="drawn from image files"):
        x, y = np.zeros((40, 16, 16, 3), np.uint8), np.repeat(np.arange(8), 5)
        open_data((x, y), options={"crops": "dml"})


def test_sizes_before_the_cut() -> None:
    assert [resize_for_test(side, None) for side in (224, 227, 64, 448)] == [256, 256, 73, 512]
    assert resize_for_test(224, 280) == 280
    assert middle_box(256, 256, (224, 224), 256) == (16, 16, 240, 240)
    assert math.isclose(middle_box(512, 1024, (224, 224), 256)[1], 288)


def test_a_model_keeps_its_view(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    run = tmp_path / "run"
    dmlcore.train(
        data=str(photos),
        plugins="ms",
        steps=2,
        image_size=32,
        out=run,
        folder={"crops": "dml"},
        embedding_dim=8,
        compress=0,
        report=False,
    )
    model = dmlcore.load(run)
    assert model.preparation.resize == 37
    write_model(model, tmp_path / "exported")
    exported = dmlcore.load(tmp_path / "exported")
    assert exported.preparation == model.preparation
    assert "shorter side has 37 pixels" in (tmp_path / "exported" / "README.md").read_text()
    path = photos / "class0" / "0.png"
    own = model.embed(str(photos)).embeddings[0]
    for again in (exported.encode(str(path)), exported.encode(Image.open(path)), exported.embed(str(path)).embeddings[0]):
        np.testing.assert_allclose(np.asarray(again).ravel(), own, atol=1e-5)
    # A folder of an earlier version says nothing of a margin.
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    del config["preprocessing"]["resize"]
    (tmp_path / "exported" / "config.json").write_text(json.dumps(config))
    assert dmlcore.load(tmp_path / "exported").preparation.resize == 0
