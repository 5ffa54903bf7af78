"""`dmlcore splits`: building splits of data of every kind, the file and picture it writes, and one line for every mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dmlcore_plugins.data.glyphs import characters

from dmlcore import cli
from dmlcore.data import SplitFile, load_table, open_data
from dmlcore.errors import ConfigError, DataError
from dmlcore.protocols.shift.building import build_splits
from dmlcore.protocols.shift.class_features import class_means
from dmlcore.protocols.shift.episodes import support_rows
from dmlcore.protocols.shift.frechet import frechet_distance
from dmlcore.protocols.shift.options import BuildOptions
from dmlcore.reports import pictures
from dmlcore.training import RunConfig, train

DOCS = Path(__file__).parents[1] / "docs" / "guide" / "shift-and-few-shot.md"
SCRIPTS = characters.UNSEEN_SCRIPTS
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Command:
    """`dmlcore splits ...` in this process: status, stdout, stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main(["splits", *(str(word) for word in argv)])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of 40 classes in two clouds; classes 0 to 4 have three samples, the others eight."""
    draw = np.random.default_rng(0)
    sizes = np.where(np.arange(40) < 5, 3, 8)
    centres = draw.normal(size=(40, 6)) + 3 * (np.arange(40) % 2)[:, None]
    labels = np.repeat(np.arange(40), sizes)
    path = tmp_path_factory.mktemp("table") / "table.npz"
    x = (centres[labels] + 0.1 * draw.normal(size=(len(labels), 6))).astype(np.float32)
    groups = np.array(["even", "odd"])[np.arange(40) % 2]
    np.savez(path, x=x, y=labels, class_name=np.array([f"c{n:02}" for n in range(40)]), class_group=groups)
    return path


def holds(file: SplitFile, data: str) -> None:
    """What must hold of every file of splits."""
    loaded = load_table(data)[1]
    means = class_means(data, {})[2]
    label = {name: place for place, name in enumerate(loaded.class_names)}
    default = file.find(None)
    fids = [split.fid for split in file.splits]
    assert fids == sorted(fids) and len(file.splits) == len({split.id for split in file.splits})
    for split in file.splits:
        train, test = ([label[name] for name in side] for side in (split.train, split.test))
        assert split.fid == pytest.approx(frechet_distance(means[train], means[test]), rel=1e-9)
        assert not set(train) & set(test)
        assert len(split.train) == len(default.train) - split.removed and len(split.test) == len(default.test) - split.removed
        assert abs(split.swapped) >= len(set(split.train) & set(default.test))
        assert len(split.train_part) == int(0.75 * len(split.train))
        parts = open_data(data, class_split=split)
        sizes = np.bincount(parts.test.dense_labels)
        for shots, episodes in split.episodes.items():
            rows_of = support_rows(
                split, shots, parts.test.rows, parts.sample_names, parts.test.dense_labels, parts.test.class_names
            )
            assert len(rows_of) == len(episodes) and len({tuple(rows) for rows in rows_of}) == len(rows_of)
            for rows in rows_of:
                lent = np.bincount(parts.test.dense_labels[rows], minlength=len(sizes))
                assert (lent == np.minimum(shots, np.maximum(sizes - 2, 0))).all()


@pytest.mark.parametrize("driver", ["means", "groups"])
def test_glyphs_with_both_drivers(driver: str) -> None:
    common: dict[str, Any] = {"pairs": 60, "iterations": 4, "removal": 0.1, "number": 5, "shots": (2,), "episodes": 2}
    if driver == "groups":
        common |= {"driver": "groups", "test_groups": SCRIPTS}
    file, _ = build_splits("glyphs", {}, BuildOptions(**common))
    holds(file, "glyphs")
    assert len(file.splits) == 5 and file.splits[-1].removed > 0 and file.default == "default"
    stages = [step["stage"] for step in file.progress]
    assert {"default", "swap", "removal"} <= set(stages) <= {"easier", "default", "swap", "removal"}
    loaded = characters.load()
    scripts = dict(zip(loaded.class_names, loaded.class_scripts, strict=True))
    share = [np.mean([scripts[name] in SCRIPTS for name in split.test]) for split in file.splits]
    if driver == "groups":
        overall = np.mean([script in SCRIPTS for script in loaded.class_scripts])
        assert share[0] == pytest.approx(overall, abs=0.01)  # halves of every script
        assert share == sorted(share) and share[-1] > 0.95
    else:
        fids = [step["fid"] for step in file.progress]
        assert all(low < high for low, high in pairwise(fids))
        own = characters.unseen_characters(0)["test"]
        assert set(file.find(None).test) == {loaded.class_names[label] for label in own}


def test_the_same_command_gives_the_same_bytes(table: Path, tmp_path: Path, here: Command) -> None:
    words = ["ood", "--data", table, "--number", "4", "--pairs", "1", "--seed", "3"]
    for name in ("one", "two"):
        status, out, err = here(*words, "--out", tmp_path / f"{name}.json")
        assert status == 0, err
    for suffix in (".json", ".svg"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()
    assert "default" in out and "swapped" in out and f"Splits: {tmp_path / 'two.json'}" in out
    assert "320" not in out and "default: FID" in err and "the default split is random" in err
    assert here(*words[:-1], "4", "--out", tmp_path / "other.json")[0] == 0
    assert (tmp_path / "other.json").read_bytes() != (tmp_path / "one.json").read_bytes()
    file = SplitFile.read(tmp_path / "one.json")
    holds(file, str(table))
    assert file.data == str(table) and file.made_by["seed"] == 3
    status, out, _ = here("show", tmp_path / "one.json", "--json")
    shown = json.loads(out)
    assert status == 0 and [split["id"] for split in shown["splits"]] == [split.id for split in file.splits]
    assert "default" in here("show", tmp_path / "one.json")[1]


def keys_of(value: Any, prefix: str = "") -> set[str]:
    """Keys of the file as the docs write them: `splits[].id`, `splits[].episodes.K[].CLASS[]`."""
    if isinstance(value, list):
        return set().union(*(keys_of(part, f"{prefix}[]") for part in value)) or {f"{prefix}[]"}
    if not isinstance(value, dict) or prefix in ("options", "made_by"):
        return {prefix}
    keys = set()
    for key, part in value.items():
        name = "K" if prefix == "splits[].episodes" else "CLASS" if prefix == "splits[].episodes.K[]" else key
        keys |= keys_of(part, f"{prefix}.{name}" if prefix else name)
    return keys


def test_the_docs_have_every_key_of_the_file(table: Path) -> None:
    file, _ = build_splits(str(table), {}, BuildOptions(pairs=2, number=3))
    section = DOCS.read_text().split("## The file")[1].split("\n## ")[0]
    documented = set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))
    assert keys_of(json.loads(file.to_json())) == documented
    settings = section.split("`made_by`")[-1]
    assert {key for key in file.made_by if f"`{key}`" not in settings} == set()


def test_spacings(table: Path) -> None:
    def fids(**options: Any) -> list[float]:
        return [split.fid for split in build_splits(str(table), {}, BuildOptions(pairs=1, episodes=0, **options))[0].splits]

    all_fids = fids(number=1000)
    low, high = all_fids[0], all_fids[-1]
    three = fids(fids=(low, high))
    assert len(three) == 3 and three[0] == low and three[2] == high
    stepped = fids(fid_step=(high - low) / 4)
    assert 4 <= len(stepped) <= 6 and set(stepped) <= set(all_fids)
    assert len(fids(number=1)) == 1 and len(fids(number=6)) == 6
    harder = fids(number=1000, easier=False, removal=0)
    assert len(harder) < len(all_fids)


def test_own_and_random_default_splits(table: Path, tmp_path: Path) -> None:
    with np.load(table) as arrays:
        content = dict(arrays)
    part_of = np.array(["train", "val", "test", "test"])[content["y"] % 4]
    np.savez(tmp_path / "own.npz", **content, split=part_of)
    own, notes = build_splits(str(tmp_path / "own.npz"), {}, BuildOptions(number=2, episodes=0))
    names = content["class_name"]
    assert set(own.find(None).test) == {str(name) for label, name in enumerate(names) if label % 4 > 1}
    assert "the default split is the data's own; its validation classes count as training" in notes
    quarter, _ = build_splits(
        str(tmp_path / "own.npz"), {}, BuildOptions(number=2, episodes=0, start="random", test_fraction=0.25)
    )
    assert len(quarter.find(None).test) == 10
    np.savez(tmp_path / "shared.npz", **content, split=np.array(["train", "test"])[np.arange(len(part_of)) % 2])
    _, notes = build_splits(str(tmp_path / "shared.npz"), {}, BuildOptions(number=2, episodes=0))
    assert "the data's own split has 40 classes on both sides: the default split is random" in notes
    with pytest.raises(DataError, match="start is 'data', but the data's own split has 40 classes on both sides"):
        build_splits(str(tmp_path / "shared.npz"), {}, BuildOptions(start="data"))
    with pytest.raises(DataError, match="start is 'data', but the data has no split of its own"):
        build_splits(str(table), {}, BuildOptions(start="data"))


def test_classes_described_by_a_trunk_and_by_a_run(table: Path, tmp_path: Path, here: Command) -> None:
    run = tmp_path / "run"
    small = {"steps": 4, "eval_every": 2, "classes_per_batch": 4, "embedding_dim": 8, "compress": 0, "plugins": "ms"}
    train(RunConfig.create(data=str(table), **small), out=run)
    words = ["ood", "--data", table, "--number", "3", "--episodes", "0", "--json"]
    files = []
    for model in (["--model", "mlp", "--mlp.hidden", "16"], ["--model", run], []):
        status, out, err = here(*words, *model, "--out", tmp_path / "out.json", "--overwrite")
        assert status == 0, err
        files.append(json.loads(out))
    assert len({file["splits"][-1]["fid"] for file in files}) == 3
    assert files[0]["made_by"]["model_options"] == {"hidden": "16"} and files[1]["made_by"]["model"] == str(run)
    _, loaded, means = class_means(str(table), {})
    by_hand = [loaded.samples.fetch(np.flatnonzero(loaded.labels == label)).double().mean(0).numpy() for label in range(40)]
    np.testing.assert_allclose(means, np.stack(by_hand), rtol=1e-12)


def test_short_classes_lend_or_are_refused(table: Path) -> None:
    file, notes = build_splits(str(table), {}, BuildOptions(number=2))
    assert any("test classes have fewer than 4 samples and lend fewer than 2" in note for note in notes)
    assert any("episodes of 10 shots are left out" in note and "at most 6 shots work" in note for note in notes)
    assert set(file.splits[0].episodes) == {2, 5}


MISTAKES: dict[str, tuple[list[str], str]] = {
    "too many shots": (["--shots", "7"], "7 shots need a test class of 9 samples or more, but the largest, 'c"),
    "short classes": (["--short-classes", "refuse"], "has 3 samples, but episodes of 2 shots take 2 and leave 2"),
    "an unknown driver": (["--driver", "x"], "driver"),
    "no groups named": (["--driver", "groups"], "the driver 'groups' needs test_groups"),
    "an unknown group": (["--driver", "groups", "--test-groups", "evn"], "no such group. Did you mean 'even'?"),
    "all groups": (["--driver", "groups", "--test-groups", "even,odd"], "test_groups are all 2 groups"),
    "groups without the driver": (["--test-groups", "even"], "test_groups are given, but the driver is 'means'"),
    "groups made easier": (["--driver", "groups", "--test-groups", "even", "--easier"], "knows nothing easier"),
    "groups from the data": (
        ["--driver", "groups", "--test-groups", "even", "--start", "data"],
        "not from a split of the data",
    ),
    "two spacings": (["--number", "3", "--fid-step", "2"], "number and fid_step are both given"),
    "a spacing of zero": (["--fid-step", "0"], "fid_step is 0.0, but must be > 0"),
    "far too many splits": (["--fid-step", "1e-9"], "more than 1000 splits"),
    "no number": (["--pairs", "x"], "pairs"),
    "no pairs": (["--pairs", "0"], "pairs is 0, but must be >= 1"),
    "everything removed": (["--removal", "1"], "removal is 1.0, but must be >= 0 and < 1"),
    "a side too small": (["--test-fraction", "0.05"], "has 38 training and 2 test classes, but each side needs at least 5"),
    "an unknown model": (["--model", "no_such"], "there is no model 'no_such'"),
    "a model of other data": (["--model", "conv"], "model 'conv' takes images, but the data are features"),
    "an option of nothing": (["--conv.width", "8"], "conv"),
    "an unknown option": (["--npz.pth", "x"], "npz has no option 'pth'"),
    "another suffix": (["--out", "splits.txt"], "must end in .json"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name: str, table: Path, tmp_path: Path, here: Command) -> None:
    words, message = MISTAKES[name]
    out = [] if "--out" in words else ["--out", tmp_path / "out.json"]
    status, _, err = here("ood", "--data", table, *out, *words)
    error = [line for line in err.splitlines() if line.startswith("error:")]
    assert status == 2 and len(error) == 1 and message in error[0], err
    assert err.rstrip().endswith(error[0]) and not (tmp_path / "out.json").exists()


def test_more_mistakes(table: Path, tmp_path: Path, here: Command) -> None:
    (tmp_path / "there.json").write_text("mine")
    assert "exists already" in here("ood", "--data", table, "--out", tmp_path / "there.json")[2]
    assert (tmp_path / "there.json").read_text() == "mine"
    assert "cannot make the folder" in here("ood", "--data", table, "--out", tmp_path / "there.json" / "a" / "b.json")[2]
    assert "there is no data set" in here("ood", "--data", "no_such.npz", "--out", tmp_path / "out.json")[2]
    assert "there is no file of splits" in here("show", tmp_path / "no.json")[2]
    status, _, err = here("show", tmp_path / "there.json")
    assert status == 2 and "is no JSON, or cut off" in err
    with np.load(table) as arrays:
        content = dict(arrays)
    np.savez(tmp_path / "groupless.npz", **{key: value for key, value in content.items() if key != "class_group"})
    with pytest.raises(ConfigError, match="has no groups of classes"):
        build_splits(str(tmp_path / "groupless.npz"), {}, BuildOptions(driver="groups", test_groups=("even",)))
    content["class_name"] = np.array([*content["class_name"][:39], "c00"])
    np.savez(tmp_path / "twice.npz", **content)
    with pytest.raises(DataError, match="two classes of .* are called 'c00'"):
        build_splits(str(tmp_path / "twice.npz"))


def test_a_class_on_both_sides_is_refused(table: Path, tmp_path: Path, here: Command) -> None:
    file, _ = build_splits(str(table), {}, BuildOptions(number=1, episodes=0))
    content = json.loads(file.to_json())
    del content["checksum"]  # as one who edits the file by hand does
    content["splits"][0]["test"].append(content["splits"][0]["train"][0])
    (tmp_path / "both.json").write_text(json.dumps(content))
    status, _, err = here("show", tmp_path / "both.json")
    assert status == 2 and "is on both sides, training and test" in err


def test_without_matplotlib_the_file_is_written(
    table: Path, tmp_path: Path, here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "can_draw", lambda: False)
    status, out, _ = here("ood", "--data", table, "--number", "2", "--out", tmp_path / "out.json")
    assert status == 0 and pictures.HOW_TO_DRAW in out and not (tmp_path / "out.svg").exists()
    assert SplitFile.read(tmp_path / "out.json").find(None).id == "default"


def test_help_comes_without_torch() -> None:
    import subprocess
    import sys

    code = "import sys; from dmlcore import cli; cli.main(['splits', 'ood', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
