"""Data, models and losses that a Python program gives as objects: read, trained, continued bit for bit, refused in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import dmlcore
from dmlcore.cli import main
from dmlcore.data import FeatureStore, PixelStore, open_data
from dmlcore.errors import ConfigError, DataError
from dmlcore.losses import Loss, create
from dmlcore.serving import TrainedRun, write_embeddings
from dmlcore.training import Logger, RunConfig

CLASSES, SAMPLES, WIDTH = 10, 5, 6
SHORT = {"steps": 6, "eval_every": 2, "compress": 0, "embedding_dim": 8, "device": "cpu"}


def features() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(CLASSES), SAMPLES)
    return (generator.normal(size=(CLASSES, WIDTH))[y] + generator.normal(size=(len(y), WIDTH))).astype(np.float32), y


def network(seed: int = 0, width: int = 12) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU(), nn.BatchNorm1d(width))


def pictures(count: int = CLASSES * SAMPLES, size: tuple[int, int] = (20, 16)) -> list[Image.Image]:
    generator = np.random.default_rng(1)
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


class Listed(Dataset):
    """Samples and labels of two lists."""

    def __init__(self, samples, labels, **about):
        self.samples, self.labels = samples, labels
        self.asked = 0
        for name, value in about.items():
            setattr(self, name, value)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.asked += 1
        return self.samples[index], self.labels[index]


class Noisy(Listed):
    def __getitem__(self, index):
        return self.samples[index] + torch.rand(WIDTH), self.labels[index]


def same(first, second) -> None:
    """Two data sets hold the same samples in the same parts."""
    for part in ("train", "validation", "test"):
        a, b = getattr(first, part), getattr(second, part)
        assert a.class_names == b.class_names and torch.equal(a.batch(range(len(a))), b.batch(range(len(b))))


def test_arrays_tensors_and_data_sets_are_one(tmp_path):
    x, y = features()
    np.savez(tmp_path / "f.npz", x=x, y=y)
    first = open_data(str(tmp_path / "f.npz"))
    items = Listed(list(torch.from_numpy(x)), y.tolist())
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    doubled = Subset(Listed([*tensors[0], *tensors[0]], [*y, *y]), range(len(x)))
    dicts = [{"x": sample, "label": label} for sample, label in zip(x, y, strict=True)]
    every = (x, y), [x, y.tolist()], tensors, {"x": x, "y": y}, items, TensorDataset(*tensors), DataLoader(items, 7), doubled
    for data in (*every, dicts):
        splits = open_data(data)
        assert splits.name == "python_data" and splits.kind == "features"
        same(first, splits)


def test_arrays_bring_names_and_splits():
    x, y = features()
    names = np.array([f"kind {label}" for label in range(CLASSES)])
    split = np.where(y < 6, "train", "test")
    splits = open_data({"x": x, "y": y, "class_name": names, "split": split})
    assert splits.test.class_names == [f"kind {label}" for label in range(6, CLASSES)]
    texts = open_data((x, names[y].astype(object)))  # as a column of a data frame holds text
    assert set(texts.train.class_names) < set(names)


def test_images_of_numbers():
    _, y = features()
    pixels = np.random.default_rng(0).integers(0, 256, (len(y), 3, 9, 8), dtype=np.uint8)
    for data, store in (((pixels, y), PixelStore), ((torch.from_numpy(pixels) / 255, torch.from_numpy(y)), FeatureStore)):
        splits = open_data(data)
        assert splits.kind == "images" and splits.sample_shape == (3, 9, 8) and isinstance(splits.train.samples, store)
        assert splits.train.augmentation is not None
    same(open_data((pixels, y)), open_data(Listed([torch.from_numpy(image) for image in pixels], y.tolist())))


def test_pictures_are_brought_to_one_size_and_kept_where_they_fit():
    _, y = features()
    classes = [f"kind {label}" for label in range(CLASSES)]
    data = Listed(pictures(), y.tolist(), classes=classes, targets=y.tolist())
    splits = open_data(data)
    assert splits.sample_shape == (3, 20, 16) and isinstance(splits.train.samples, PixelStore)
    assert set(splits.train.class_names) < set(classes)
    data = Listed([*pictures(25), *pictures(25, (31, 24))], y.tolist(), targets=y.tolist())
    splits = open_data(data, options={"memory_mb": 0}, image_size=12)
    assert splits.sample_shape == (3, 12, 12) and not splits.train.in_memory
    assert data.asked < 50 + 20  # labels of the list, sizes, the same sample twice: no pass over all
    same(splits, open_data(data, image_size=12))
    shifted = Listed(pictures(), y.tolist(), targets=(y + 1).tolist())  # what it gives is right, not its list
    assert "0" in {name for part in (splits.train, splits.validation, splits.test) for name in part.class_names}
    assert sum("0" in part.class_names for part in vars(open_data(shifted)).values() if hasattr(part, "dense_labels")) == 1


def test_samples_that_change_are_known_by_their_place():
    x, y = features()
    splits = open_data(Noisy(torch.from_numpy(x), y.tolist()))
    assert any("change each time" in note for note in splits.notes) and splits.train.augmentation is None
    assert not torch.equal(splits.train.batch([0]), splits.train.batch([0]))


def test_data_sets_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    x, y = features()
    names = [f"kind {label}" for label in range(CLASSES)]
    kinds = datasets.Features(
        {"embedding": datasets.Sequence(datasets.Value("float32"), WIDTH), "label": datasets.ClassLabel(names=names)}
    )
    data = datasets.Dataset.from_dict({"embedding": x.tolist(), "label": y.tolist()}, features=kinds)
    splits = open_data(data)
    same(splits, open_data({"x": x, "y": y, "class_name": np.array(names)}))
    same(open_data(data.select(range(40))), open_data({"x": x[:40], "y": y[:40], "class_name": np.array(names)}))
    parts = datasets.DatasetDict({"train": data.select(range(35)), "test": data.select(range(35, 50))})
    assert open_data(parts).test.class_names == names[7:]
    shown = datasets.Dataset.from_dict(
        {"image": pictures(), "label": y.tolist()},
        features=datasets.Features({"image": datasets.Image(), "label": kinds["label"]}),
    )
    splits = open_data(shown)
    assert splits.sample_shape == (3, 20, 16)
    for saved, first in ((data, open_data(data)), (shown, splits), (parts, open_data(parts))):
        saved.save_to_disk(str(tmp_path / "saved"))
        same(first, open_data(str(tmp_path / "saved")))
        for file in sorted((tmp_path / "saved").rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda x, y: (x, y[:-1]), "'y' in the data from Python has shape"),
        (lambda x, y: {"x": x}, "has no array 'y'"),
        (lambda x, y: {"x": x, "y": y, "labels": y}, "have 'labels', but arrays are called"),
        (lambda x, y: (np.where(x > 2, np.nan, x), y), "NaN or infinite in"),
        (lambda x, y: ([[1.0], [1.0, 2.0]] * 25, y), "'x' in the data from Python is no array"),
        (lambda x, y: ([object()] * 50, y), "holds Python objects"),
        (lambda x, y: 3, "type int cannot be read by number"),
        (lambda x, y: Listed([], []), "have no samples"),
        (lambda x, y: Listed(x, [[[0, 1]]] * 50), r"label 0 of the data from Python is \[1, 2\]"),
        (lambda x, y: Listed([*x[:-1], x[0, :3]], y), "samples of the data from Python differ"),
        (lambda x, y: Listed(x[:, :, None], y), r"are \[6, 1\], but must be"),
        (lambda x, y: list(x), r"item 0 of the data from Python is ndarray, but must be \(sample, label\)"),
        (lambda x, y: [{"a": 1}] * 9, "has the keys a, but a sample is called"),
        (lambda x, y: Listed(np.where(x > 2, np.inf, x), y), "is NaN or infinite"),
    ],
)
def test_data_that_cannot_be_used_are_one_line(data, message):
    with pytest.raises(DataError, match=message) as caught:
        open_data(data(*features()))
    assert "\n" not in str(caught.value)


def test_a_stream_cannot_be_read_by_number():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(DataError, match="Stream cannot be read by number"):
        open_data(Stream())


def distance_of_means(embeddings, labels):
    return (embeddings - embeddings.mean(0)).square().mean()


class Scaled(Loss):
    """A loss with something to learn, which nobody has registered."""

    name = "scaled"
    takes_references = False

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, embeddings, labels, **against):
        equal = (labels[:, None] == labels).float()
        return ((embeddings @ embeddings.T * self.scale - equal) ** 2).mean()


def test_a_run_of_objects(tmp_path):
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    losses = ["ms", create("triplet", margin=0.3, miner="batch_hard"), Scaled(), distance_of_means]
    result = dmlcore.train(data=features(), model=module, losses=losses, out=tmp_path / "run", **SHORT)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [loss["name"] for loss in result["losses"]] == ["ms", "triplet", "scaled", "python_loss"]
    config = (tmp_path / "run" / "config.toml").read_text()
    for line in ('data = "python_data"', 'model = "python_model"', "margin = 0.3", 'miner = "batch_hard"'):
        assert line in config
    run = TrainedRun(tmp_path / "run", data=features(), model=network(7), losses=losses[2:])
    measured = run.evaluate()
    assert measured["metrics"] == result["metrics"] and measured["baselines"] == result["baselines"]
    others = TrainedRun(tmp_path / "run", model=network(), losses=losses[2:]).evaluate((features()[0] + 9, features()[1]))
    assert others["data"] == "python_data" and "all" in others["metrics"] and not others["notes"]
    assert write_embeddings(run, features(), tmp_path / "e.npz")["samples"] == CLASSES * SAMPLES
    other = tmp_path / "other.npz"
    np.savez(other, x=features()[0], y=features()[1])
    assert "all" in TrainedRun(tmp_path / "run", model=network(), losses=losses[2:]).evaluate(str(other))["metrics"]


def test_a_run_of_named_losses_needs_no_object_of_them(tmp_path):
    x, y = features()
    np.savez(tmp_path / "f.npz", x=x, y=y)
    out = tmp_path / "run"
    first = dmlcore.train(data=tmp_path / "f.npz", losses=create("ms", alpha=4.0), out=out, **SHORT)
    second = dmlcore.train(data=str(tmp_path / "f.npz"), plugins="ms", ms={"alpha": 4}, out=tmp_path / "named", **SHORT)
    assert first["metrics"] == second["metrics"] and main(["eval", str(out)]) == 0


def test_a_whole_model_has_no_head(tmp_path):
    options = {**SHORT, "embedding_dim": 12, "head": "none"}
    dmlcore.train(data=features(), model=network(), losses="ms", out=tmp_path / "run", **options)
    run = TrainedRun(tmp_path / "run", data=features(), model=network())
    samples = torch.from_numpy(features()[0])
    with torch.inference_mode():
        assert torch.equal(run(samples), nn.functional.normalize(run.model.trunk(samples), dim=1))
    with pytest.raises(ConfigError, match="Say embedding_dim 12"):
        dmlcore.train(data=features(), model=network(), out=tmp_path / "b", **{**options, "embedding_dim": 9})
    short = {key: value for key, value in SHORT.items() if key != "embedding_dim"}
    dmlcore.train(data=features(), model=network(), losses="ms", head="none", out=tmp_path / "c", **short)
    config = RunConfig.read(tmp_path / "c" / "config.toml")
    assert (config.settings.model.embedding_dim, config.settings.model.compress) == (12, 0)  # as wide as the network


class Stopper(Logger):
    """Interrupts at the end of a step, as Ctrl-C would."""

    name = "stopper"

    def step_ended(self, run, record):
        if record["step"] == 3:
            raise KeyboardInterrupt


RESUME = """
import sys
sys.path.insert(0, {tests!r})
import dmlcore
from test_python_data import Scaled, features, network
dmlcore.train(resume={run!r}, data=features(), model=network(99), losses=["ms", Scaled()])
"""


# Each in a process of its own: what other tests have done in this one may round otherwise.
BEGIN = """
import sys
sys.path.insert(0, {tests!r})
import dmlcore
from test_python_data import SHORT, Scaled, Stopper, features, network
objects = dict(data=features(), losses=["ms", Scaled()])
dmlcore.train(model=network(), out={whole!r}, **objects, **SHORT)
try:
    dmlcore.train(model=network(), out={run!r}, loggers=[Stopper()], **objects, **SHORT)
except KeyboardInterrupt as interrupt:
    print(interrupt)
"""


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit_in_another_process(tmp_path):
    places = {"tests": str(Path(__file__).parent), "whole": str(tmp_path / "whole"), "run": str(tmp_path / "run")}
    for code, told in ((BEGIN, r"dmlcore\.train\(resume=.*, data=\.\.\., model=\.\.\., losses"), (RESUME, "")):
        done = subprocess.run([sys.executable, "-P", "-c", code.format(**places)], capture_output=True, text=True)
        assert done.returncode == 0 and re.search(told, done.stdout), done.stderr
    whole = json.loads((tmp_path / "whole" / "result.json").read_bytes())
    result = json.loads((tmp_path / "run" / "result.json").read_bytes())
    assert result["metrics"] == whole["metrics"] and result["baselines"] == whole["baselines"]
    weights = [torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True) for name in ("whole", "run")]
    for part in ("model", "ensemble"):
        assert weights[0][part].keys() == weights[1][part].keys()
        assert all(torch.equal(weights[0][part][name], weights[1][part][name]) for name in weights[0][part])


def test_what_is_missing_is_said_in_one_line(tmp_path, capsys):
    out = tmp_path / "run"
    dmlcore.train(data=features(), model=network(), losses="ms", out=out, **SHORT)
    for words in (["eval", str(out)], ["train", "--resume", str(out), "--steps", "9"]):
        assert main(words) == 2
        error = capsys.readouterr().err.strip()
        assert "\n" not in error and f"dmlcore.train(resume='{out}', data=..., model=...)" in error
    for words in (["--data", "python_data"], ["--model", "python_model"], ["--plugins", "python_loss"]):
        assert main(["train", *words, "--steps", "2", "--out", str(tmp_path / "no")]) == 2
        assert "dmlcore.train(" in capsys.readouterr().err and not (tmp_path / "no" / "config.toml").exists()
    for objects, message in (
        ({"data": features()}, r"was given objects in Python \(data, model\)"),
        ({"data": features(), "model": network(), "losses": [Scaled()]}, "names its loss itself"),
        ({"data": features(), "model": network(width=13)}, "is another one than that of the run"),
        ({"data": "glyphs", "model": network()}, "data cannot be changed in a resumed run"),
        ({"data": (features()[0] + 1, features()[1]), "model": network()}, "none of the 50 samples"),
    ):
        with pytest.raises(ConfigError, match=message):
            dmlcore.train(resume=out, steps=9, **objects)
    assert dmlcore.train(resume=out, steps=8, data=features(), model=network(5))["steps"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": [3]}, "a loss is int, but must be"),
        ({"losses": ["ms"], "plugins": "ms"}, "losses and plugins both name"),
        ({"losses": [dmlcore.losses.NormLoss]}, "a loss is ABCMeta, but must be"),
        ({"model": 3}, "model is int, but must be"),
        ({"model": nn.Linear(5, 4)}, r"the model Linear cannot take samples \[B, 6\]"),
        ({"model": nn.Unflatten(1, (2, 3))}, r"gives \[2, 2, 3\] of torch.float32 for 2 samples"),
    ],
)
def test_objects_that_cannot_be_used_are_one_line(tmp_path, arguments, message):
    with pytest.raises((ConfigError, dmlcore.errors.PluginError), match=message) as caught:
        dmlcore.train(**{"data": features(), "out": tmp_path / "run", **SHORT, **arguments})
    assert "\n" not in str(caught.value)
