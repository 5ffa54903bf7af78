"""Models on their own: model folders, model cards, folders that sentence-transformers reads, and the hub."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from data_files import feature_file, image_folder
from PIL import Image
from test_text import saved_bert, transformers  # noqa: F401  (fixtures)

import dmlcore
from dmlcore import cli
from dmlcore.errors import ConfigError, TrainingError
from dmlcore.serving import export_folder, push
from dmlcore.serving.model_card import interval
from dmlcore.serving.model_folder import write_model
from dmlcore.training import train

QUICK: dict[str, Any] = {"steps": 2, "eval_every": 1, "report": False, "classes_per_batch": 2, "samples_per_class": 2}
TRUNK = """
from dataclasses import dataclass
from torch import nn
from dmlcore.models import Trunk

class Wide(Trunk):
    name = "wide"
    accepts = frozenset(("features",))

    @dataclass(frozen=True)
    class Options:
        factor: int = 3

    def __init__(self, options, sample_shape):
        super().__init__(options, sample_shape)
        self.features = options.factor * sample_shape[0]
        self.map = nn.Linear(sample_shape[0], self.features)

    def forward(self, samples):
        return self.map(samples).relu()
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "<b>photos", classes=8, mode="RGB", size=(24, 24))


@pytest.fixture(scope="module")
def run(photos: Path) -> Path:
    train(data=str(photos), out=photos.parent / "run", embedding_dim=16, compress=8, **QUICK)
    return photos.parent / "run"


def test_a_model_folder_needs_nothing_of_its_run(run: Path, photos: Path, tmp_path: Path, capsys: Any) -> None:
    paths = sorted(photos.rglob("*.png"))
    expected = dmlcore.load(run, device="cpu").encode(paths)
    shutil.copytree(run, tmp_path / "run")
    status = cli.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "m"), "--licence", "mit", "--name", "birds"])
    assert status == 0 and "config.json, model.safetensors" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "m").rename(tmp_path / "elsewhere")
    model = dmlcore.load(tmp_path / "elsewhere", device="cpu")
    assert np.array_equal(model.encode(paths), expected) and model.name.endswith("elsewhere")
    card = (tmp_path / "elsewhere" / "README.md").read_text()
    for words in ('license: "mit"', "# birds", "95 % interval", "R@1", "Losses: ", "test, held out", "Intended use", "train: "):
        assert words in card, words
    assert "<b>" not in card and "&lt;b&gt;photos" in card and str(photos.parent) not in card
    assert str(photos.parent) not in (tmp_path / "elsewhere" / "config.json").read_text()
    write_model(model, tmp_path / "again")  # with what is known of its training
    assert (tmp_path / "again" / "README.md").read_text().replace("# again", "# birds") == card
    assert cli.main(["embed", str(tmp_path / "again"), str(paths[0]), "--out", str(tmp_path / "e.npz")]) == 0
    with np.load(tmp_path / "e.npz") as file:
        assert np.allclose(file["x"], expected[:1], atol=1e-5)  # a batch of one is rounded otherwise


def test_whatever_is_served_is_exported(tmp_path: Path) -> None:
    data = str(feature_file(tmp_path / "x.npz"))
    x = np.load(data)["x"]
    forms: dict[str, dict[str, Any]] = {
        "whole": {"compress": 0},
        "heads": {"plugins": "ms,triplet", "ensemble": "heads", "embedding_dim": 4, "compress": 0},
        "student": {"student": 3, "serve": "student"},
        "beside": {"student": 3, "compress": 4, "embedding_dim": 6, "model": "mlp"},
        "online": {"compress": 3, "embedding_dim": 6, "compressor": "lin_tanh_lin"},
    }
    for name, settings in forms.items():
        train(data=data, out=tmp_path / name, **QUICK, **settings)
        model = dmlcore.load(tmp_path / name, device="cpu")
        write_model(model, tmp_path / f"{name} model")
        again = dmlcore.load(tmp_path / f"{name} model", device="cpu")
        assert np.array_equal(again.encode(x), model.encode(x)), name
        assert again.embedding_dim == model.embedding_dim


def test_code_of_a_folder_is_run_with_consent_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "wide.py").write_text(TRUNK)
    data = str(feature_file(tmp_path / "x.npz"))
    train(data=data, out=tmp_path / "run", model=f"{tmp_path}/wide.py:Wide", **QUICK)
    model = dmlcore.load(tmp_path / "run", device="cpu")
    write_model(model, tmp_path / "m")
    assert (tmp_path / "m" / "code" / "model" / "wide.py").read_text() == TRUNK
    (tmp_path / "wide.py").unlink()
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(ConfigError, match="Nothing of it was run"):
        dmlcore.load(tmp_path / "m")
    again = dmlcore.load(tmp_path / "m", device="cpu", trust_plugins=True)
    x = np.load(data)["x"]
    assert np.array_equal(again.encode(x), model.encode(x))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["architecture"]["trunk"]["name"] = "../wide.py:Wide"
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(TrainingError, match="outside of the folder"):
        dmlcore.load(tmp_path / "m", trust_plugins=True)


def test_a_trunk_of_a_library_keeps_what_it_needs(tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="trunks of torchvision")
    image_folder(tmp_path / "photos", mode="RGB")
    options = {"weights": "none", "arch": "resnet18"}
    train(data=str(tmp_path / "photos"), out=tmp_path / "run", model="torchvision", torchvision=options, compress=0, **QUICK)
    model = dmlcore.load(tmp_path / "run", device="cpu")
    write_model(model, tmp_path / "m")
    again = dmlcore.load(tmp_path / "m", device="cpu")
    assert np.array_equal(again.encode(tmp_path / "photos"), model.encode(str(tmp_path / "photos")))


def test_damaged_and_foreign_folders(run: Path, tmp_path: Path, capsys: Any) -> None:
    model = dmlcore.load(run, device="cpu")
    write_model(model, tmp_path / "m")
    with pytest.raises(ConfigError, match="exists already; choose another --out, or replace it with --overwrite"):
        write_model(model, tmp_path / "m")
    write_model(model, tmp_path / "m", overwrite=True)
    with pytest.raises(ConfigError, match="it is no exported model"):
        write_model(model, run, overwrite=True)
    with pytest.raises(ConfigError, match="which holds one model"):
        dmlcore.load(tmp_path / "m", checkpoint="last")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    for change, error, message in (
        ({"format": "bert"}, ConfigError, "holds no model of this version"),
        ({"kind": "sounds"}, TrainingError, "is damaged, or was changed"),
        ({"sample_shape": [10**9]}, TrainingError, "sample_shape is too large"),
        ({"architecture": {}}, TrainingError, "is damaged, or was changed"),
        ({"architecture": {**config["architecture"], "heads": 2}}, TrainingError, "is damaged, or was changed"),
        (
            {"architecture": {**config["architecture"], "trunk": {"name": "nope", "options": {}}}},
            ConfigError,
            "no model 'nope'",
        ),
        ({"weights": {"sha256": "0"}}, TrainingError, "its checksum is not the one"),
    ):
        (tmp_path / "m" / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(error, match=message):
            dmlcore.load(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(TrainingError, match="cannot be read"):
        dmlcore.load(tmp_path / "m")
    assert cli.main(["export", str(run), "--hf", "--safetensors", "--out", str(tmp_path / "x")]) == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_sentence_transformers_reads_a_picture_model(run: Path, photos: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="reads the folder")
    result = export_folder(dmlcore.load(run, device="cpu"), tmp_path / "m", form="hf")
    assert "trust_remote_code=True" in result["use"]
    paths = sorted(photos.rglob("*.png"))[:7]
    own = dmlcore.load(tmp_path / "m", device="cpu").encode(paths)
    with pytest.raises(ValueError, match="trust_remote_code"):
        library.SentenceTransformer(str(tmp_path / "m"))
    theirs = library.SentenceTransformer(str(tmp_path / "m"), trust_remote_code=True, device="cpu")
    assert np.allclose(theirs.encode([Image.open(path) for path in paths]), own, atol=1e-6)
    # In batches of 2 sums are rounded in another order, which the axes of so few samples magnify.
    assert np.allclose(theirs.encode(list(map(str, paths)), batch_size=2), own, atol=1e-5)
    theirs.save(str(tmp_path / "saved"))
    assert np.allclose(dmlcore.load(tmp_path / "saved", device="cpu").encode(paths), own, atol=1e-6)


@pytest.mark.parametrize("settings", [{"compress": 8}, {"compress": 0, "head": "none", "embedding_dim": 16}, {"student": 4}])
def test_sentence_transformers_reads_a_text_model_without_code(
    saved_bert: Path,  # noqa: F811
    tmp_path: Path,
    settings: dict[str, Any],
) -> None:
    library = pytest.importorskip("sentence_transformers", reason="reads the folder")
    lines = [f"{verb} the {thing},{thing}" for thing in ("card", "house", "car", "book", "phone", "garden") for verb in "abcd"]
    (tmp_path / "texts.csv").write_text("text,label\n" + "\n".join(lines))
    train(data=str(tmp_path / "texts.csv"), model=f"hf/{saved_bert}", out=tmp_path / "run", **QUICK, **settings)
    model = dmlcore.load(tmp_path / "run", device="cpu")
    result = export_folder(model, tmp_path / "m", form="hf", licence="mit")
    assert "needs no code of dmlcore" in result["use"] and not list((tmp_path / "m").rglob("*.py"))
    texts = ["open my card please", "where is the house", "lost", "find a new car , " * 9]
    theirs = library.SentenceTransformer(str(tmp_path / "m"), device="cpu")
    assert np.allclose(theirs.encode(texts), model.encode(texts), atol=1e-5)  # other kernels of attention round otherwise
    # a model folder of the same, without the encoder's own folder
    write_model(model, tmp_path / "own")
    assert np.allclose(dmlcore.load(tmp_path / "own", device="cpu").encode(texts), model.encode(texts), atol=1e-6)


def test_the_hub(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    write_model(dmlcore.load(run, device="cpu"), tmp_path / "m")
    calls: list[Any] = []

    def snapshot_download(name: str, **options: Any) -> str:
        if name == "me/gone":
            raise OSError("no route to host\nmore")
        return str(tmp_path / "m")

    fake = SimpleNamespace(
        snapshot_download=snapshot_download,
        create_repo=lambda name, **options: calls.append((name, options)),
        upload_folder=lambda repo_id, folder_path, **_: f"https://hub/{repo_id}",
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    assert dmlcore.load("hf://me/birds", device="cpu").embedding_dim == 8
    assert push(tmp_path / "m", "hf://me/birds") == "https://hub/me/birds"
    assert calls == [("me/birds", {"private": True, "exist_ok": True})]
    assert cli.main(["push", str(tmp_path / "m"), "me/birds", "--public"]) == 0
    assert "https://hub/me/birds" in capsys.readouterr().out and calls[-1][1]["private"] is False
    for name, message in (
        ("hf://me/gone", "cannot be fetched from the hub: no route to host$"),
        ("hf://me", "is no model on the"),
    ):
        with pytest.raises(ConfigError, match=message):
            dmlcore.load(name)
    for folder, name in ((run, "me/birds"), (tmp_path / "m", "birds")):
        with pytest.raises((ConfigError, TrainingError)):
            push(folder, name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match="pip install huggingface_hub"):
        dmlcore.load("hf://me/birds")


def test_the_interval_of_a_share() -> None:
    assert interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)  # by hand
    assert interval(1, 10)[1] == 1 and 0.7 < interval(1, 10)[0] < 0.75 and interval(0, 0) == (0, 1)
