"""A trained model in use: `dmlcore.load`, what `encode` takes, and that it gives what training evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import feature_file, image_folder, save_image
from PIL import Image

import dmlcore
from dmlcore.errors import ConfigError, DataError
from dmlcore.evaluation import evaluating
from dmlcore.serving import TrainedRun
from dmlcore.training import train

QUICK: dict[str, Any] = {"steps": 2, "eval_every": 1, "report": False, "embedding_dim": 16, "classes_per_batch": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("photos"), classes=10, samples=4, mode="RGB", size=(40, 36))


@pytest.fixture(scope="module")
def pictures(photos: Path) -> Any:
    train(data=str(photos), out=photos.parent / "run", compress=8, image_size=24, folder={"interpolation": "bicubic"}, **QUICK)
    return dmlcore.load(photos.parent / "run", device="cpu")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("vectors")
    train(data=str(feature_file(folder / "x.npz")), out=folder / "run", **{**QUICK, "embedding_dim": None})
    return dmlcore.load(folder / "run", device="cpu")


@pytest.fixture(scope="module")
def phrases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("phrases")
    rows = [f"{word} {number} times,{word}" for word in ("run", "jump", "sing", "eat", "walk", "read") for number in range(4)]
    (folder / "texts.csv").write_text("text,label\n" + "\n".join(rows))
    train(data=str(folder / "texts.csv"), out=folder / "run", compress=0, **QUICK)
    return dmlcore.load(folder / "run", device="cpu")


def test_encode_gives_what_training_evaluated(pictures: Any, photos: Path) -> None:
    assert isinstance(pictures, dmlcore.serving.Model) and isinstance(pictures, TrainedRun)
    assert (pictures.kind, pictures.sample_shape, pictures.embedding_dim) == ("images", (3, 24, 24), 8)
    test = pictures.open().test
    for batch_size in (256, 3):
        evaluated = evaluating.embed(pictures.model, test, batch_size=batch_size).numpy()
        all_of_it = pictures.embed(str(photos))
        rows = [int(row) for row in test.rows]
        assert [all_of_it.splits[row] for row in rows] == ["test"] * len(rows)
        encoded = pictures.encode([all_of_it.paths[row] for row in rows], batch_size=batch_size)
        assert encoded.dtype == np.float32 and np.array_equal(encoded, evaluated)  # bit by bit
    # In batches of 3 sums are rounded in another order. The axes of so few samples have tiny variances, which magnify that.
    assert np.abs(all_of_it.embeddings[rows] - evaluated).max() < 1e-5
    # the run's own files, once as files that are decoded when they are needed
    streamed = pictures.embed(str(photos), {"memory_mb": 0})
    assert np.array_equal(streamed.embeddings, all_of_it.embeddings) and streamed.paths == all_of_it.paths


def test_every_form_of_a_picture(pictures: Any, photos: Path) -> None:
    paths = sorted(photos.rglob("*.png"))
    expected = pictures.encode(paths)
    assert expected.shape == (40, 8)
    opened = [Image.open(path) for path in paths]
    arrays = np.stack([np.asarray(image) for image in opened])  # [N, H, W, 3] of another size
    forms: dict[str, Any] = {
        "texts": [str(path) for path in paths],
        "Pillow": opened,
        "iterator": iter(paths),
        "array": arrays,
        "channels first": arrays.transpose(0, 3, 1, 2),
        "tensor": torch.from_numpy(arrays),
        "list of arrays": list(arrays),
        "arrays of several": (arrays[start : start + 7] for start in range(0, 40, 7)),
        "folder": photos,
    }
    for name, form in forms.items():
        assert np.array_equal(pictures.encode(form), expected), name
        pictures.encode([], workers=0)
    one = pictures.encode(paths[0])
    assert one.shape == (8,) and np.allclose(one, expected[0], atol=1e-5)
    assert pictures.encode(arrays[0]).shape == (8,) and pictures.encode([arrays[0]]).shape == (1, 8)
    exact = torch.rand(2, 3, 24, 24)
    assert torch.allclose(pictures.encode(exact, as_tensor=True), pictures(exact), atol=1e-6)
    assert pictures.encode([]).shape == (0, 8)
    assert np.array_equal(pictures.encode(paths, workers=3, batch_size=32)[:32], pictures.encode(paths[:32], workers=0))


def test_grey_pictures_for_a_model_of_colours_and_back(pictures: Any, tmp_path: Path) -> None:
    image_folder(tmp_path / "grey", samples=2)
    embedded = pictures.embed(str(tmp_path / "grey"))
    assert any("the model takes colour pictures" in note for note in embedded.notes)
    assert np.allclose(embedded.embeddings, pictures.encode(embedded.paths), atol=1e-6)
    train(data=str(tmp_path / "grey"), out=tmp_path / "run", compress=0, **QUICK)
    grey = dmlcore.load(tmp_path / "run", device="cpu")
    save_image(tmp_path / "new" / "a.png", mode="RGB", size=(32, 32))
    in_memory, streamed = (grey.embed(str(tmp_path / "new"), options).embeddings for options in (None, {"memory_mb": 0}))
    assert np.array_equal(in_memory, streamed)
    with pytest.raises(ConfigError, match="may be one picture in colour, or 3 grey ones"):
        grey.encode(np.zeros((3, 32, 32), dtype=np.uint8))
    paths = sorted((tmp_path / "grey").rglob("*.png"))
    assert np.abs(grey.encode(paths, batch_size=3) - grey.encode(paths)).max() < 1e-6
    assert grey.encode(np.zeros((5, 32, 32), dtype=np.uint8)).shape == (5, 16)


def test_options_of_encode(pictures: Any, vectors: Any) -> None:
    x = np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32)
    images = torch.rand(3, 3, 24, 24)
    whole = pictures.encode(images)
    cut = pictures.encode(images, dim=4)
    assert np.allclose(cut, whole[:, :4] / np.linalg.norm(whole[:, :4], axis=1, keepdims=True), atol=1e-6)
    assert np.array_equal(pictures.encode(images, dim=4, normalize=False), whole[:, :4])
    assert np.abs(pictures.encode(images, precision="bf16") - whole).max() < 0.05
    for options, message in (
        ({"dim": 3}, "the first numbers of this model's embeddings are no embedding of their own"),
        ({"batch_size": 0}, "batch_size"),
        ({"workers": -1}, "workers"),
        ({"precision": "int8"}, "precision is 'int8', but must be fp32, bf16 or fp16"),
    ):
        with pytest.raises(ConfigError, match=message):
            vectors.encode(x, **options)
    with pytest.raises(ConfigError, match="dim"):
        pictures.encode(images, dim=9)


def test_features(vectors: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(9, 6))
    expected = vectors.encode(x)
    assert expected.shape == (9, 6) and np.array_equal(expected, vectors(torch.from_numpy(x).float()).numpy())
    for form in (x.tolist(), torch.from_numpy(x), list(x), iter(x), [x[:4], x[4:]]):
        assert np.array_equal(vectors.encode(form), expected)
    assert vectors.encode(x[0].tolist()).shape == (6,)
    np.save(tmp_path / "x.npy", x)  # without labels
    assert np.array_equal(vectors.encode(tmp_path / "x.npy"), expected)
    embedded = vectors.embed(str(tmp_path / "x.npy"))
    assert embedded.labels is None and embedded.paths is None and embedded.rows.tolist() == list(range(9))
    labelled = vectors.embed((x, ["b", "a", "b", "c", "a", "b", "c", "c", "a"]))
    assert labelled.labels == ["b", "a", "b", "c", "a", "b", "c", "c", "a"]
    for wrong, error, message in (
        (x[:, :5], ConfigError, r"shape \[5\], but must be a row of 6 numbers"),
        (np.full((2, 6), np.nan), DataError, "NaN or infinite"),
        (object(), ConfigError, "samples are object"),
        ([["a"]], ConfigError, "must be a row of 6 numbers"),
    ):
        with pytest.raises(error, match=message):
            vectors.encode(wrong)


def test_texts(phrases: Any, tmp_path: Path) -> None:
    lines = ["run 1 times", "sleep", "jump\ttwice", "ü" * 3]
    expected = phrases.encode(lines)
    assert expected.shape == (4, 16) and np.allclose(phrases.encode(lines[1]), expected[1], atol=1e-6)
    (tmp_path / "lines.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    assert np.array_equal(phrases.encode(tmp_path / "lines.txt"), expected)
    assert phrases.embed(str(tmp_path / "lines.txt")).rows.tolist() == [0, 2, 4, 6]
    assert phrases.encode("photos/a.png").shape == (16,)  # a text, whatever it looks like
    with pytest.raises(ConfigError, match="a sample is int, but must be a text"):
        phrases.encode([1])


def test_pictures_that_cannot_be_used(pictures: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    for wrong, error, message in (
        (tmp_path / "a.png", DataError, "the picture '.*a.png' cannot be read"),
        ([str(tmp_path / "gone.png")], DataError, "does not exist"),
        (tmp_path / "gone", DataError, "no file or folder of that name"),
        (np.zeros((2, 3, 9, 9)), ConfigError, "but must be a picture"),
        (np.full((3, 24, 24), 7.0), ConfigError, "divide them by 255"),
        (np.zeros((3, 24, 24), dtype=np.int64), ConfigError, "are int64, but must be uint8"),
        ([None], ConfigError, "a sample is NoneType"),
    ):
        with pytest.raises(error, match=message):
            pictures.encode(wrong)


def test_what_is_no_model(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(ConfigError, match="there is no '.*nowhere'"):
        dmlcore.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no trained model"):
        dmlcore.load(photos)


def test_progress_is_shown_when_asked_for(vectors: Any, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.zeros((4, 6), dtype=np.float32)
    vectors.encode(x)
    assert capsys.readouterr().err == ""
    assert vectors.encode(iter(x), progress=True).shape == (4, 6)
    assert "embedding samples" in capsys.readouterr().err
