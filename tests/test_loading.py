"""Augmentation, and loading batches with and without workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import feature_file, image_folder
from dmlcore_plugins.samplers.class_balanced import ClassBalancedSampler

from dmlcore.data import (
    CropAugmentation,
    OrderedBatches,
    ShiftAugmentation,
    batches,
    loading,
    open_data,
)
from dmlcore.data.loading import default_workers


@pytest.mark.parametrize("augmentation", [ShiftAugmentation(flip=True), CropAugmentation()], ids=["shift", "crop"])
def test_augmentation_follows_its_generator(augmentation):
    images = torch.rand(6, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    first = augmentation(images, torch.Generator().manual_seed(1))
    assert first.shape == images.shape and torch.isfinite(first).all() and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, augmentation(images, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, augmentation(images, torch.Generator().manual_seed(2)))


def test_augmentation_of_nothing_is_nothing():
    images = torch.rand(4, 1, 16, 16)
    still = ShiftAugmentation(shift=0, turn=0, slant=0, scale=1)
    assert torch.allclose(still(images, torch.Generator()), images, atol=1e-5)
    assert torch.allclose(CropAugmentation(area=1, aspect=1, flip=False)(images, torch.Generator()), images, atol=1e-5)


def test_shift_moves_by_pixels():
    images = torch.zeros(64, 1, 32, 32)
    images[:, :, 15:17, 15:17] = 1
    moved = ShiftAugmentation(shift=0.25, turn=0, slant=0, scale=1)(images, torch.Generator().manual_seed(0))
    columns = (moved.sum(2)[:, 0] * torch.arange(32)).sum(1) / moved.sum((1, 2, 3)) - 15.5
    assert 6 < columns.abs().max() <= 8  # a quarter of 32


def test_augmentation_choice(tmp_path):
    save = {"y": np.arange(40) % 8}
    grey = str(feature_file(tmp_path / "g.npz", x=np.zeros((40, 120, 120), np.uint8), **save))
    colour = str(feature_file(tmp_path / "c.npz", x=np.zeros((40, 120, 120, 3), np.uint8), **save))
    assert open_data(grey).train.augmentation == ShiftAugmentation()
    assert open_data(grey, options={"flip": True}).train.augmentation == ShiftAugmentation(flip=True)
    assert open_data(colour).train.augmentation == CropAugmentation(flip=True)
    assert open_data(colour, options={"augment": "none"}).train.augmentation is None


def _stream(folder: Path, workers: int, memory_mb: int, steps: int = 6) -> list:
    train = open_data(str(folder), options={"memory_mb": memory_mb}).train
    sampler = ClassBalancedSampler(train.dense_labels, 3, 2, seed=5, steps=steps)
    return list(batches(train, sampler, workers=workers, augment=True, seed=7))


def test_batches_are_the_same_with_any_number_of_workers(tmp_path):
    image_folder(tmp_path, size=(40, 44), mode="RGB")
    expected = _stream(tmp_path, 0, 512)
    assert len(expected) == 6
    for workers in (0, 1, 2):
        torch.manual_seed(workers)
        before = torch.random.get_rng_state()
        for (samples, labels), (expected_samples, expected_labels) in zip(_stream(tmp_path, workers, 0), expected, strict=True):
            assert torch.equal(samples, expected_samples) and torch.equal(labels, expected_labels)
            assert labels.dtype == torch.int64
        assert torch.equal(before, torch.random.get_rng_state())


def test_workers_where_nothing_is_said(tmp_path, monkeypatch):
    image_folder(tmp_path, size=(40, 44), mode="RGB")
    files, memory = (open_data(str(tmp_path), options={"memory_mb": size}).train for size in (0, 512))
    sampler = ClassBalancedSampler(files.dense_labels, 3, 2, seed=5, steps=2)
    ordered = OrderedBatches(len(files), 4)
    for threads, workers in ((1, 0), (2, 1), (4, 3), (64, 8)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert default_workers(files, sampler) == workers
        assert default_workers(memory, sampler) == 0 == default_workers(files, ordered)
        monkeypatch.setattr(loading, "_FEW", 1)
        assert default_workers(files, ordered) == workers
        monkeypatch.undo()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_resume_exactly(tmp_path, workers):
    image_folder(tmp_path)
    expected = _stream(tmp_path, 0, 0, steps=8)
    train = open_data(str(tmp_path), options={"memory_mb": 0}).train
    sampler = ClassBalancedSampler(train.dense_labels, 3, 2, seed=5, steps=8)
    stream = batches(train, sampler, workers=workers, augment=True, seed=7)
    for _ in range(3):
        next(stream)
    sampler = ClassBalancedSampler(train.dense_labels, 3, 2, seed=5, steps=8)
    sampler.load_state_dict(stream.state_dict())
    assert sampler.step == 3
    resumed = list(batches(train, sampler, workers=0, augment=True, seed=7))
    assert len(resumed) == 5
    for (samples, labels), (expected_samples, expected_labels) in zip(resumed, expected[3:], strict=True):
        assert torch.equal(samples, expected_samples) and torch.equal(labels, expected_labels)


def test_ordered_batches_and_loader_interface(tmp_path):
    test = open_data(str(feature_file(tmp_path / "f.npz"))).test
    in_order = list(batches(test, OrderedBatches(len(test), 4)))
    assert torch.equal(torch.cat([samples for samples, _ in in_order]), test.batch(range(len(test))))
    assert torch.cat([labels for _, labels in in_order]).tolist() == test.dense_labels.tolist()
    loaded = torch.utils.data.DataLoader(test, batch_size=4)
    assert torch.equal(next(iter(loaded))[0], in_order[0][0])
    with pytest.raises(IndexError):
        test[len(test)]
