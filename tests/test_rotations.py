"""Quarter turns as classes: what a batch holds, what stays as it was, whole runs, and what cannot be turned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import image_folder

from dmlcore import cli
from dmlcore.data import open_data
from dmlcore.data.rotations import with_rotated_classes
from dmlcore.training import RunConfig, train
from dmlcore.training.folder import RunFolder
from dmlcore.training.run import Run

SHORT = {"steps": 4, "eval_every": 2, "classes_per_batch": 6, "samples_per_class": 2, "embedding_dim": 8, "report": False}


def pictures(file: Path, shape: tuple[int, ...] = (8, 8), classes: int = 12) -> Path:
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(classes), 5)
    np.savez(file, x=generator.integers(0, 256, (len(y), *shape), dtype=np.uint8), y=y)
    return file


def test_turns_are_those_of_numpy(tmp_path: Path) -> None:
    opened = open_data(str(pictures(tmp_path / "p.npz", (8, 8, 3))))
    turned = with_rotated_classes(opened)
    part, whole = opened.train, turned.train
    assert len(whole) == 4 * len(part) and whole.num_classes == 4 * part.num_classes
    batch = whole.batch(np.arange(len(whole))).numpy()
    upright = part.batch(np.arange(len(part))).numpy()
    for number in range(len(whole)):
        sample, turn = divmod(number, 4)
        np.testing.assert_array_equal(batch[number], np.rot90(upright[sample], turn, (1, 2)))
        assert whole.dense_labels[number] == 4 * part.dense_labels[sample] + turn
    assert whole.class_names[5] == f"{part.class_names[1]}, turned by 90 degrees"
    assert (turned.validation, turned.test) == (opened.validation, opened.test)
    assert turned.describe()["test_classes_trained_on"] == 0
    assert "learnt" in turned.notes[-1]


def test_samples_of_a_class_are_turned_alike_when_crops_are_drawn(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos", classes=8, samples=3, size=(20, 30), mode="RGB")
    config = RunConfig.create(data=str(folder), image_size=16, rotated_classes=True, folder={"crops": "dml"}, **SHORT)
    run = Run(config, RunFolder(tmp_path / "run"))
    train_part = run.splits.train
    assert train_part.has_random_changes
    drawn = [train_part.batch([4, 5, 6, 7], augment=True, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*drawn)
    store = train_part.samples
    alone = [store.fetch_crops(train_part.rows[[row]], torch.Generator().manual_seed(3)) for row in range(4, 8)]
    for turn in range(1, 4):  # the same crop, turned
        assert torch.equal(torch.rot90(alone[0], turn, (2, 3)), alone[turn])


def test_a_run_learns_four_times_the_classes(tmp_path: Path) -> None:
    data = str(pictures(tmp_path / "p.npz"))
    settings = {"data": data, "plugins": "proxy_anchor,ms", "rotated_classes": True, **SHORT}
    whole = train(out=tmp_path / "whole", **settings)
    state = torch.load(tmp_path / "whole" / "checkpoints" / "last.pt", weights_only=True)
    proxies = next(value for name, value in state["ensemble"].items() if name.endswith("proxies"))
    assert len(proxies) == 4 * 6  # half of 12 classes train
    assert whole["data"]["parts"]["train"] == {"classes": 24, "samples": 120}
    again = train(out=tmp_path / "again", **settings)
    assert again["metrics"] == whole["metrics"]
    assert cli.main(["eval", str(tmp_path / "whole")]) == 0


@pytest.mark.parametrize(
    ("shape", "flags", "says"),
    [
        ((8, 10), [], "images of 8 x 10"),
        ((8, 8), ["--views", "2"], "views learns without labels"),
    ],
)
def test_what_cannot_be_turned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, ...], flags: list[str], says: str
) -> None:
    data = str(pictures(tmp_path / "p.npz", shape))
    assert cli.main(["train", "--data", data, "--rotated-classes", *flags, "--out", str(tmp_path / "run")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_features_have_no_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "f.npz", x=np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32), y=np.repeat(range(12), 5))
    flags = ["--data", str(tmp_path / "f.npz"), "--rotated-classes", "--out", str(tmp_path / "run")]
    assert cli.main(["train", *flags]) == 2
    assert "square pictures" in capsys.readouterr().err
