"""Learning without labels from views of samples: batches, the parts of the data, whole runs, and what cannot work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import image_folder
from PIL import Image

import dmlcore
from dmlcore import cli
from dmlcore.data import create_sampler, open_data
from dmlcore.data.splits import split_samples
from dmlcore.data.views import with_views
from dmlcore.errors import ConfigError, DataError
from dmlcore.training import RunConfig, building
from dmlcore.training.folder import RunFolder
from dmlcore.training.run import Run

SHORT = ["--steps", "3", "--eval-every", "3", "--classes-per-batch", "4", "--embedding-dim", "8"]


def flat_folder(root: Path, count: int = 24) -> Path:
    root.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((24, 24)).save(root / f"{number:02}.png")
    return root


def test_the_sampler_gives_each_sample_so_many_times() -> None:
    labels = np.zeros(11, dtype=np.int64)  # whatever they are
    sampler = create_sampler("views", labels, 3, 2, seed=5, steps=7)
    batches = [np.array(batch) for batch in sampler]
    for batch in batches:
        rows, counts = np.unique(batch, return_counts=True)
        assert len(rows) == 3 and (counts == 2).all() and (batch[::2] == batch[1::2]).all()
    for start in (0, 3):  # a round is of three batches: no sample comes twice in it
        seen = np.concatenate([batch[::2] for batch in batches[start : start + 3]])
        assert len(np.unique(seen)) == 9
    again = create_sampler("views", labels, 3, 2, seed=5)
    again.load_state_dict({"seed": 5, "step": 4})
    assert next(iter(again)) == batches[4].tolist()
    with pytest.raises(ConfigError, match="the samples of a batch, but there are 11"):
        create_sampler("views", labels, 12, 2)


def test_parts_of_samples() -> None:
    split, note = split_samples(None, 40, (0.5, 0.15, 0.35), 0)
    assert [int((split == part).sum()) for part in ("train", "validation", "test")] == [20, 6, 14] and "random" in note
    own = np.array(["train"] * 9 + ["test"] * 3)
    split, note = split_samples(own, 12, (0.5, 0.15, 0.35), 0)
    assert (split[9:] == "test").all() and (split == "validation").sum() == 2 and "given" in note
    with pytest.raises(DataError, match="too few"):
        split_samples(None, 5, (0.5, 0.15, 0.35), 0)


def test_a_run_sees_each_sample_in_views_of_its_own(tmp_path: Path) -> None:
    config = RunConfig.create(data=str(flat_folder(tmp_path / "flat")), views=3, classes_per_batch=4, embedding_dim=8)
    assert config.settings.data.sampler == "views" and config.settings.losses.names == ("nt_xent",)
    run = Run(config, RunFolder(tmp_path / "run"))
    train = run.splits.train
    assert run.batch_size == 12 and train.num_classes == len(train) == 12
    inputs, labels = next(run.batches())
    run.close()
    assert len(labels.unique()) == 4 and (labels.view(4, 3) == labels.view(4, 3)[:, :1]).all()
    plain = train.batch(labels.numpy())
    views = inputs.view(4, 3, -1)
    assert not torch.equal(views[:, 0], views[:, 1]) and not torch.equal(views[:, 1], views[:, 2])
    own = torch.cdist(inputs.flatten(1), plain.flatten(1)).argmin(1)  # a view is nearest to its own sample
    assert (own // 3 == torch.arange(12) // 3).float().mean() > 0.7
    validation = run.splits.validation
    assert len(validation) == 3 * validation.num_classes == 12
    assert torch.equal(validation.batch([5]), validation.batch([7, 5, 1])[1:2])  # whatever is fetched beside
    assert not torch.equal(validation.batch([0]), validation.batch([1]))
    assert run.splits.sample_names[int(validation.rows[3])].endswith(".png")


def test_crops_of_whole_photographs_are_views_too(tmp_path: Path) -> None:
    flat = str(flat_folder(tmp_path / "flat"))
    splits = open_data(flat, options={"crops": "dml"}, image_size=16, needs_labels=False)
    learnt = with_views(splits, 2, 0)
    assert splits.train.augmentation is None
    views = learnt.test.batch([0, 1])
    assert not torch.equal(views[0], views[1]) and torch.equal(views, learnt.test.batch([0, 1]))
    train = learnt.train.batch([0, 0], augment=True, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(train[0], train[1])


def test_labels_are_used_to_measure_only(tmp_path: Path) -> None:
    photos = image_folder(tmp_path / "photos", 12, 4, mode="RGB", size=(24, 24))
    splits = open_data(str(photos), needs_labels=False)
    learnt = with_views(splits, 2, 0)
    assert learnt.train.num_classes == len(learnt.train) and learnt.test is splits.test
    assert learnt.describe()["test_classes_trained_on"] == 0 and splits.has_labels
    one = image_folder(tmp_path / "one", 1, 20, mode="RGB", size=(24, 24))
    assert not open_data(str(one), needs_labels=False).has_labels  # a class of all samples says nothing
    alone = image_folder(tmp_path / "alone", 20, 1, mode="RGB", size=(24, 24))
    assert not open_data(str(alone), needs_labels=False).has_labels


def test_the_command_on_a_folder_without_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat, run = flat_folder(tmp_path / "flat"), tmp_path / "run"
    assert cli.main(["train", "--data", str(flat), "--views", "2", "--out", str(run), *SHORT, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["metrics"]["test"]["recall@1"] > 0 and (run / "report.html").exists()
    assert result["data"]["test_classes_trained_on"] == 0
    assert cli.main(["train", "--resume", str(run), "--steps", "6"]) == 0
    assert cli.main(["embed", str(run), "--data", str(flat), "--out", str(tmp_path / "e.npz")]) == 0
    with np.load(tmp_path / "e.npz") as arrays:
        assert len(arrays["x"]) == 24 and "label" not in arrays
    capsys.readouterr()
    assert cli.main(["eval", str(run)]) == 2
    assert "has no labels" in capsys.readouterr().err
    assert cli.main(["report", str(run)]) == 0
    folds = ["--views", "2", "--folds", "2", "--out", str(tmp_path / "folds")]
    assert cli.main(["train", "--data", str(flat), *folds, *SHORT]) == 2
    assert "flat' has no classes that folds could divide. Leave --folds out" in " ".join(capsys.readouterr().err.split())
    photos = image_folder(tmp_path / "photos", 12, 4, mode="RGB", size=(24, 24))
    words = ["--data", str(photos), "--metrics", "knn,linear_probe", "--json"]
    capsys.readouterr()
    assert cli.main(["eval", str(run), *words]) == 0
    measures = json.loads(capsys.readouterr().out)["metrics"]["all"]
    assert 0 < measures["linear_probe.accuracy"] <= 1 and 0 < measures["knn.accuracy"] <= 1


def test_any_pair_loss_and_arrays(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    short: dict[str, Any] = {"steps": 2, "embedding_dim": 4, "compress": 0, "report": False, "transforms": "noise", "views": 2}
    for number, losses in enumerate(("ms", "triplet,sup_con")):
        result = dmlcore.train(data={"x": x}, plugins=losses, out=tmp_path / str(number), **short)
        assert result["metrics"]["validation"]["map@r"] > 0.1  # of 9 samples with two views each
    again = dmlcore.train(data=x, plugins="ms", out=tmp_path / "again", **short)
    first = json.loads((tmp_path / "0" / "result.json").read_text())
    assert again["metrics"] == first["metrics"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"views": 1, "samples_per_class": 1}, "views is 1"),
        ({"views": 2, "samples_per_class": 4}, "Leave samples_per_class out"),
        ({"views": 2, "sampler": "shuffled"}, "sampler is 'shuffled'"),
        ({"views": 2, "level": "script"}, "leave one out"),
        ({"views": "two"}, "views"),
    ],
)
def test_settings_that_cannot_work(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RunConfig.create(**values)


def test_what_a_recipe_sets_is_replaced_as_the_messages_say(tmp_path: Path) -> None:
    recipe = tmp_path / "classes.toml"
    recipe.write_text(
        '[recipe]\nsummary = "s"\nsource = "n"\nreaches = "r"\n\n[losses]\nplugins = ["ms"]\n\n'
        '[data]\nsampler = "shuffled"\nsamples_per_class = 4\n'
    )
    with pytest.raises(ConfigError, match="make it 2 where a recipe sets it"):
        RunConfig.create(recipe=str(recipe), views=2)
    with pytest.raises(ConfigError, match="make it views where a recipe sets it"):
        RunConfig.create(recipe=str(recipe), views=2, samples_per_class=2)
    config = RunConfig.create(recipe=str(recipe), views=2, samples_per_class=2, sampler="views")
    assert config.settings.data.samples_per_class == 2


def test_runs_that_cannot_work(tmp_path: Path) -> None:
    flat, short = str(flat_folder(tmp_path / "flat")), {"steps": 1, "views": 2}
    with pytest.raises(ConfigError, match="norm_softmax owns a proxy per class, but views"):
        dmlcore.train(data=flat, plugins="ms,norm_softmax", out=tmp_path / "a", **short)
    with pytest.raises(ConfigError, match="nothing changes the samples"):
        dmlcore.train(data=flat, folder={"augment": "none"}, out=tmp_path / "b", **short)
    with pytest.raises(ConfigError, match="Name changes by --transforms"):
        dmlcore.train(data={"x": np.ones((20, 3), dtype=np.float32)}, out=tmp_path / "c", **short)
    with pytest.raises(ConfigError, match="auto"):
        dmlcore.train(data=flat, plugins="auto", out=tmp_path / "d", **short)
    with pytest.raises(DataError, match="has no sub-folders"):
        dmlcore.train(data=flat, steps=1, out=tmp_path / "e")
    assert not any((tmp_path / name).exists() for name in "abcde")


def test_epochs_count_samples_and_not_views(tmp_path: Path) -> None:
    config = RunConfig.create(data=str(flat_folder(tmp_path / "flat")), views=2, classes_per_batch=4, epochs=3)
    assert building.open_splits(config).has_labels is False
    assert Run(config, RunFolder(tmp_path / "run")).steps == 9  # 12 samples in batches of 4
    whole = RunConfig.create(data=str(tmp_path / "flat"), views=2, classes_per_batch=4, epochs=3, validation="none")
    splits = building.open_splits(whole)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (16, 0, 8)
