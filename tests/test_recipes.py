"""Recipes: each resolves and trains a few steps, flags win, the run keeps the name, and a list says where they differ."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from data_files import image_folder

from dmlcore import cli, plugins
from dmlcore.data import PixelOptions
from dmlcore.errors import ConfigError
from dmlcore.protocols.fewshot.networks import build_network
from dmlcore.training import RunConfig, recipes
from dmlcore.training.settings import GROUPS
from dmlcore.training.sources import Source

NAMES = recipes.names()
TRAINED = [name for name in NAMES if recipes.find(name).command == "train"]


def test_what_was_published_is_there() -> None:
    assert {"wel", "wedl", "wedl_c", "sec_triplet", "sec_semihard", "sec_n_pair", "sec_ms"} <= set(NAMES)
    assert {"oodml_margin", "oodml_ms", "oodml_arcface", "oodml_proxy_anchor", "oodml_s2sd", "adapted_mnist"} <= set(NAMES)
    assert {"multi_similarity", "proxy_anchor", "sup_con", "reality_check"} <= set(NAMES)


@pytest.mark.parametrize("name", TRAINED)
def test_each_says_what_it_is_and_resolves(name: str) -> None:
    """Every table of a recipe belongs to what it chooses; nothing gives way without flags beside it."""
    recipe = recipes.find(name)
    assert recipe.summary and recipe.source and recipe.reaches and recipe.differs
    config = RunConfig.create(recipe=name)
    assert set(recipe.values.get(recipes.PICTURES, {})) <= {option.name for option in fields(PixelOptions)}
    assert config.settings.run.recipe == name
    tables = {key for key, value in recipe.values.items() if isinstance(value, dict)} - set(GROUPS)
    tables -= {recipes.PICTURES}
    assert tables <= set(config.components)
    assert RunConfig.create(recipe=name, steps=3).settings.run.steps == 3
    assert RunConfig.create(recipe=name, plugins="ms").settings.losses.names == ("ms",)


def photos(root: Path) -> Path:
    return image_folder(root / "photos", 30, 4, mode="RGB", size=(40, 40))


SMALL = ["--steps", "2", "--image-size", "32", "--classes-per-batch", "4", "--embedding-dim", "8"]


QUICK = ("wedl_c", "sec_semihard", "oodml_margin")
EACH = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in TRAINED]


@pytest.mark.parametrize("name", EACH)
def test_each_trains(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """End to end on tiny pictures with a small network: what is checked is that all options work together."""
    small = [*SMALL, "--model", "conv", "--conv.channels", "4,8"]
    small += ["--compress", "6"] if name == "wedl_c" else []
    out = tmp_path / "run"
    words = ["train", "--recipe", name, "--data", str(photos(tmp_path)), "--out", str(out), *small, "--json"]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert 0 <= json.loads(capsys.readouterr().out)["metrics"]["test"]["recall@1"] <= 1
    assert f'recipe = "{name}"' in (out / "config.toml").read_text()
    again = RunConfig.read(out / "config.toml")  # stands for itself, whatever becomes of the recipe
    assert again.settings.run.recipe == name and again.settings.run.steps == 2


@pytest.mark.slow
def test_a_recipe_with_its_own_trunk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL[:2], "--image-size", "96", "--classes-per-batch", "4", "--torchvision.weights", "none"]
    pytest.importorskip("torchvision")
    out = str(tmp_path / "run")
    assert cli.main(["train", "--recipe", "oodml_ms", "--data", str(photos(tmp_path)), "--out", out, *words]) == 0, (
        capsys.readouterr().err
    )


def test_flags_win_over_a_file_and_a_file_over_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("recipe = 'oodml_ms'\nweight_decay = 0.25\nlearning_rate = 0.5\n[ms]\nbeta = 30.0\n")
    config = RunConfig.resolve(
        [Source.read(tmp_path / "mine.toml"), Source.of({"learning_rate": "0.125", "ms": {"base": 0.3}})]
    )
    optimiser = config.settings.optimiser
    assert (optimiser.learning_rate, optimiser.weight_decay, optimiser.warmup) == (0.125, 0.25, 0)
    ms = config.options["ms"]
    assert (ms["alpha"], ms["beta"], ms["base"]) == (2.0, 30.0, 0.3)
    other = RunConfig.create(recipe="wedl", plugins="ms,triplet")
    assert other.settings.values()["classifier_factor"] is None
    assert other.settings.ensemble.weights is None and "proxy_nca" not in other.options
    assert RunConfig.create(recipe="wedl", steps=5).settings.run.epochs is None


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[recipe]\nsummary = "s"\nsource = "n"\nreaches = "r"\n\n[losses]\nplugins = ["triplet"]\n[triplet]\nmargin = 0.4\n'
    )
    config = RunConfig.create(recipe=str(path))
    assert config.options["triplet"] == {"margin": 0.4} and recipes.find(str(path)).name == "mine"
    for text, words in (
        ("[losses]\n", "is no recipe"),
        ('[recipe]\nsummary = "s"\nsource = "n"\nreaches = "r"\nfame = "much"\n', "nothing called 'fame'"),
        ('[recipe]\nsummary = "s"\nsource = "n"\nreaches = "r"\ncommand = "fly"\n', "command is 'fly'"),
        ('[recipe]\nsummary = "s"\nsource = "n"\nreaches = "r"\ndiffers = "much"\n', "a list of sentences"),
        ('[recipe]\nsummary = "s"\nsource = "n"\nreaches = "r"\ndiffers = [1]\n', "a list of sentences"),
        ('[recipe]\nsummary = "s"\nsource = "n"\nreaches = "r"\nneeds = 3\n', "needs is 3"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            recipes.find(str(path))
    for name, words in (("wedle", "Did you mean 'wedl"), ("adapted_mnist", "is for `dmlcore fewshot")):
        with pytest.raises(ConfigError, match=words):
            RunConfig.create(recipe=name)


def test_the_command_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "--json"]) == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)["recipes"]}
    assert list(listed) == NAMES
    assert cli.main(["recipes", "wedl"]) == 0
    out = capsys.readouterr().out
    shown = " ".join(out.split())
    assert '[triplet]\nvariant = "wedl"\n' in out
    for sentence in listed["wedl"]["differs"]:
        assert sentence in shown
    assert "dmlcore train --recipe wedl" in shown and 'variant = "wedl"' in shown and "arXiv 2107.01130" in shown
    assert cli.main(["recipes", "nothing"]) == 2
    assert "there is no recipe 'nothing'" in capsys.readouterr().err


def test_names_stay_whole_on_narrow_screens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line[1:2].strip()} >= set(NAMES)
    assert max(len(line) for line in lines) <= 80


def test_the_command_that_is_shown_runs_a_recipe_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "two words.toml"
    path.write_text('[recipe]\nsummary = "s"\nsource = "n"\nreaches = "r"\n\n[losses]\nplugins = ["triplet"]\n')
    assert cli.main(["recipes", str(path)]) == 0
    words = shlex.split(capsys.readouterr().out.split("Run it: ")[1])
    assert RunConfig.create(recipe=words[words.index("--recipe") + 1]).settings.losses.names == ("triplet",)


def test_the_published_ensembles_have_their_losses() -> None:
    """`--ensemble wedl` without losses is what was published: four losses, their variants and the prior 2:1:2:3."""
    recipe = RunConfig.create(recipe="wedl")
    for kind in ("wel", "wedl"):
        config = RunConfig.create(ensemble=kind)
        assert config.settings.losses.names == ("cross_entropy", "triplet", "binomial_deviance", "proxy_nca")
        assert config.settings.ensemble.weights == (2, 1, 2, 3)
        for table in ("cross_entropy", "triplet", "binomial_deviance", "proxy_nca"):
            assert config.options[table] == recipe.options[table]
    assert RunConfig.create(ensemble="wedl", plugins="ms,triplet").settings.ensemble.weights is None
    assert RunConfig.create(ensemble="heads").settings.losses.names == plugins.defaults().LOSSES


def test_a_recipe_for_few_shots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(10), 20)
    np.savez(
        tmp_path / "x.npz", x=(generator.normal(size=(10, 6))[y] + generator.normal(size=(200, 6))).astype(np.float32), y=y
    )
    words = ["--data", str(tmp_path / "x.npz"), "--out", str(tmp_path / "out"), "--quick", "--k", "2"]
    words += ["--model", "mlp"]
    assert cli.main(["fewshot", "--recipe", "adapted_mnist", *words]) == 0, capsys.readouterr().err
    assert "k = [2]" in capsys.readouterr().err
    assert cli.main(["fewshot", "--recipe=wedl", *words]) == 2
    assert "is for `dmlcore train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "shape", "weights"),
    [
        ("mnist", (1, 28, 28), [(32, 1, 3, 3), (32, 32, 3, 3), (128, 14 * 14 * 32)]),
        ("isolet", (617,), [(128, 617), (64, 128)]),
        ("omniglot", (1, 28, 28), [(32, 1, 3, 3), (32, 32, 3, 3), (32, 32, 3, 3), (128, 7 * 7 * 32)]),
        ("tiny_imagenet", (3, 64, 64), [(32, 3, 3, 3), *[(32, 32, 3, 3)] * 3, (128, 8 * 8 * 32)]),
    ],
)
def test_the_networks_of_adapted_embeddings(
    name: str, shape: tuple[int, ...], weights: list[tuple[int, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the command trains by each recipe: the published layers, and no others."""
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(10), 5)
    x = generator.random((50, *(shape[1:] + shape[:1] if len(shape) == 3 else shape))).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=np.round(255 * x).astype(np.uint8) if len(shape) == 3 else x, y=y)
    words = ["--data", str(tmp_path / "x.npz"), "--out", str(tmp_path / "out"), "--quick", "--k", "2", "--n", "2", "--json"]
    words += ["--replications", "1", "--epochs", "1", "--target-epochs", "1", "--episodes", "1"]
    assert cli.main(["fewshot", "--recipe", f"adapted_{name}", *words]) == 0, capsys.readouterr().err
    settings = json.loads(capsys.readouterr().out)["settings"]
    network = build_network(
        settings["model"],
        options=settings["model_options"],
        sample_shape=shape,
        kind="images" if len(shape) == 3 else "features",
        embedding_dim=settings["embedding_dim"],
        init=settings["init"],
        seed=0,
    )
    assert [tuple(p.shape) for p in network.parameters() if p.ndim > 1] == weights
    normalises = name in ("omniglot", "tiny_imagenet")
    vectors = [p for p in network.parameters() if p.ndim == 1]  # biases, and shifts of what normalises, which has no scale
    assert len(vectors) == len(weights) + (len(weights) - 1 if normalises else 0)
    assert all(0.5 < float(p.detach().std()) < 1.5 for p in [*network.parameters()][-2:])  # N(0, 1), biases too
