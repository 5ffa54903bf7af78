"""Published split files: a pickle laid out as they are, with image files in folders, matched, refused and written as JSON."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dmlcore import cli
from dmlcore.data import SplitFile, open_data
from dmlcore.errors import DataError
from dmlcore.protocols.shift.episodes import support_rows
from dmlcore.protocols.shift.published import import_published

CLASSES = [f"{number:03}.Bird_{chr(65 + number)}" for number in range(1, 17)]
IMAGES = 6


def image_names(name: str) -> list[str]:
    return [f"{name}/{name[4:]}_{number:04}.jpg" for number in range(IMAGES)]


def published(seed: int = 0) -> dict[int, dict[str, Any]]:
    """Three splits of 16 classes: made easier, the default, and one of fewer classes; with numpy's text and numbers."""
    draw = np.random.default_rng(seed)
    half, sides = CLASSES[:8], {}
    sides[1] = ([*half[:6], *CLASSES[14:]], [*CLASSES[8:14], *half[6:]])
    sides[2] = (half, CLASSES[8:])
    sides[3] = ([*half[1:7], CLASSES[9]], [half[7], *CLASSES[10:]])
    splits = {}
    for identity, (train, test) in sides.items():
        episodes = {
            k: [
                {np.str_(name): [np.str_(image) for image in draw.choice(image_names(name), k, replace=False)] for name in test}
                for _ in range(3)
            ]
            for k in (2, 4)
        }
        splits[identity] = {
            "train": [np.str_(name) for name in train],
            "test": [np.str_(name) for name in test],
            "fid": np.float64({1: 19.2, 2: 52.6, 3: 136.4}[identity]),
            "split_train": [np.str_(name) for name in train[: 3 * len(train) // 4]],
            "split_val": [np.str_(name) for name in train[3 * len(train) // 4 :]],
            "test_episodes": episodes,
        }
    return splits


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("birds")
    draw = np.random.default_rng(1)
    for name in CLASSES:
        (root / name).mkdir()
        for image in image_names(name):
            Image.fromarray(draw.integers(0, 255, (8, 8), dtype=np.uint8)).save(root / image)
    return root


def write(folder: Path, value: Any, protocol: int = 4) -> Path:
    path = folder / "splits.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_everything_is_matched(birds: Path, tmp_path: Path, protocol: int) -> None:
    file, notes = import_published(write(tmp_path, published(), protocol), str(birds))
    assert [split.id for split in file.splits] == ["1", "2", "3"] and file.default == "2"
    assert [split.fid for split in file.splits] == [19.2, 52.6, 136.4]
    assert [(split.swapped, split.removed) for split in file.splits] == [(-2, 0), (0, 0), (1, 1)]
    assert notes == ["the default is split '2': it trains on the first half of the classes by name"]
    default = file.splits[1]
    assert default.train == tuple(CLASSES[:8]) and default.train_part == tuple(CLASSES[:6])
    assert default.episodes[4][1] == {name: tuple(drawn) for name, drawn in published()[2]["test_episodes"][4][1].items()}
    assert {k: len(drawn) for k, drawn in default.episodes.items()} == {2: 3, 4: 3}
    (tmp_path / "splits.json").write_bytes(file.to_json())
    assert SplitFile.read(tmp_path / "splits.json") == file


def test_the_splits_can_be_opened_and_episodes_do_not_overlap_their_queries(birds: Path, tmp_path: Path) -> None:
    file, _ = import_published(write(tmp_path, published()), str(birds))
    for split in file.splits:
        parts = open_data(str(birds), class_split=split)
        test = parts.test
        for k in (2, 4):
            for rows in support_rows(split, k, test.rows, parts.sample_names, test.dense_labels, test.class_names):
                assert np.bincount(test.dense_labels[rows]).tolist() == [k] * len(split.test)


def renamed(change: Callable[[str], str], image: Callable[[str], str]) -> dict[int, dict[str, Any]]:
    splits = published()
    for split in splits.values():
        for key in ("train", "test", "split_train", "split_val"):
            split[key] = [change(name) for name in split[key]]
        split["test_episodes"] = {
            k: {
                number: {change(name): [image(path) for path in names] for name, names in episode.items()}
                for number, episode in enumerate(episodes)  # by number instead of in a list
            }
            for k, episodes in split["test_episodes"].items()
        }
    return splits


@pytest.mark.parametrize(
    "change",
    [str, str.upper, lambda name: name[4:], lambda name: name[4:].replace("_", " ").lower(), lambda name: "7" + name],
    ids=["the same", "case", "no number", "spaces", "another number"],
)
@pytest.mark.parametrize(
    "image",
    [str, lambda name: f"/data/CUB/images/{name}", lambda name: name.split("/")[1], lambda name: f"images\\{name}"],
    ids=["the same", "a longer path", "the file's name", "backslashes"],
)
def test_names_of_other_forms_fit(
    change: Callable[[str], str], image: Callable[[str], str], birds: Path, tmp_path: Path
) -> None:
    straight, _ = import_published(write(tmp_path, published()), str(birds))
    file, _ = import_published(write(tmp_path, renamed(change, image)), str(birds))
    assert file == straight


def test_a_name_that_fits_several_fits_none(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for name in ("001.a", "002.a", "b", "c", "d"):
        (root / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (8, 8)).save(root / name / f"{number}.png")
    split = {"train": ["a", "b"], "test": ["c", "d"], "fid": 1.0}
    with pytest.raises(DataError, match="lacks 1 class \\('a'\\)"):
        import_published(write(tmp_path, {0: split}), str(root))
    with pytest.raises(DataError, match="two classes of the file, 'b' and '001.b', fit class 'b'"):
        import_published(write(tmp_path, {0: {**split, "train": ["b", "001.b"]}}), str(root))


def test_what_is_missing_is_one_line_or_left_out(birds: Path, tmp_path: Path) -> None:
    value = published()
    value[2]["train"].append(np.str_("017.Bird_Z"))
    for episode in value[2]["test_episodes"][2]:
        name, names = next(iter(episode.items()))
        names[0] = np.str_(f"{name}/gone.jpg")
    path = write(tmp_path, value)
    with pytest.raises(DataError) as refused:
        import_published(path, str(birds))
    lost = f"1 class ('017.Bird_Z') and 1 image ('{CLASSES[8]}/gone.jpg')"
    assert f"lacks {lost}. Did you mean '" in str(refused.value) and str(refused.value).endswith(
        "--allow-missing leaves them out"
    )
    file, notes = import_published(path, str(birds), allows_missing=True)
    assert [note for note in notes if "left out" in note] == [
        f"left out because '{birds}' lacks them: 1 class ('017.Bird_Z')",
        f"left out because '{birds}' lacks them: 1 image ('{CLASSES[8]}/gone.jpg')",
    ]
    assert len(file.find("2").train) == 8 and len(file.find("2").episodes[2][0][CLASSES[8]]) == 1


def test_episodes_that_lack_their_images_are_left_out(birds: Path, tmp_path: Path) -> None:
    value = published()
    for episode in value[2]["test_episodes"][2][1:]:
        for name in list(episode)[1:]:  # a single class is left, which cannot be told from others
            episode[name] = [np.str_(f"{name}/gone{number}.jpg") for number in range(2)]
    for episode in value[3]["test_episodes"][4]:
        episode.update({name: [np.str_(f"{name}/gone.jpg")] for name in episode})
    file, notes = import_published(write(tmp_path, value), str(birds), allows_missing=True)
    assert len(file.find("2").episodes[2]) == 1 and len(file.find("2").episodes[4]) == 3
    assert list(file.find("3").episodes) == [2] and list(file.find("1").episodes) == [2, 4]
    (note,) = [note for note in notes if note.startswith("episodes are left out")]
    assert note.endswith("lacks their images: 2 of 3 of 2 shots of split '2', 3 of 3 of 4 shots of split '3'")


def test_products_by_number_and_episodes_of_whole_classes(tmp_path: Path) -> None:
    """As the authors' reader implies for Stanford Online Products, whose file was not at hand."""
    items = [str(number) for number in range(111085122871, 111085122883)]  # of the products 1 to 12
    root, draw = tmp_path / "products", np.random.default_rng(1)
    for number, item in enumerate(items, 1):
        (root / str(number)).mkdir(parents=True)
        for picture in range(3):
            Image.fromarray(draw.integers(0, 255, (8, 8), dtype=np.uint8)).save(root / str(number) / f"{item}_{picture}.png")
    split = {
        "train": items[:6],
        "test": items[6:],
        "fid": 3.0,
        "split_train": [1, 2, 3, 4],
        "split_val": [5, 6],
        "test_episodes": {2: {0: [7, 9, 10], 1: [8, 12]}},
    }
    file, notes = import_published(write(tmp_path, {0: split}), str(root))
    (imported,) = file.splits
    assert imported.train == tuple("123456") and imported.train_part == tuple("1234")
    assert imported.test == ("7", "8", "9", "10", "11", "12") and not [note for note in notes if "left out" in note]
    (tmp_path / "splits.json").write_bytes(file.to_json())
    assert SplitFile.read(tmp_path / "splits.json") == file
    parts = open_data(str(root), class_split=imported)
    test = parts.test
    rows = support_rows(imported, 2, test.rows, parts.sample_names, test.dense_labels, test.class_names)
    names = [{test.class_names[label] for label in test.dense_labels[support]} for support in rows]
    assert [len(support) for support in rows] == [9, 6] and names == [{"7", "9", "10"}, {"8", "12"}]
    for episodes, message in (([[1, 7]], "class '1' is no test class"), ([list(range(7, 13))], "takes all 6 test classes")):
        with pytest.raises(DataError, match=message):
            import_published(write(tmp_path, {0: {**split, "test_episodes": {2: episodes}}}), str(root))


def test_a_class_that_would_lend_everything_keeps_two(birds: Path, tmp_path: Path) -> None:
    value = published()
    value[2]["test_episodes"] = {IMAGES: [{name: image_names(name) for name in CLASSES[8:]}]}
    file, notes = import_published(write(tmp_path, value), str(birds))
    assert {len(names) for names in file.find("2").episodes[IMAGES][0].values()} == {IMAGES - 2}
    assert any("8 classes" in note and "would lend all samples" in note for note in notes)


def test_without_parts_and_with_a_chosen_default(birds: Path, tmp_path: Path) -> None:
    value = published()
    for split in value.values():
        del split["split_train"], split["split_val"], split["test_episodes"]
    file, notes = import_published(write(tmp_path, value), str(birds), default="3")
    assert file.default == "3" and not notes
    assert [len(split.train_part) for split in file.splits] == [6, 6, 5] and not file.splits[0].episodes
    del value[2]
    file, notes = import_published(write(tmp_path, value), str(birds))
    assert file.default == "1" and "of the smallest FID" in notes[0]


BROKEN: dict[str, tuple[Callable[[dict[int, dict[str, Any]]], Any], str]] = {
    "no dict": (lambda value: [1, 2], "holds list, but a published file has a dict of splits"),
    "no splits": (lambda value: {1: [1]}, "split '1' has no train"),
    "no fid": (lambda value: value[1].pop("fid") and value, "split '1' has no fid"),
    "bad fid": (lambda value: value[1].update(fid=-1.0) or value, "has the FID -1.0"),
    "both sides": (lambda value: value[2]["test"].append(CLASSES[0]) or value, "'001.Bird_B' is on both sides"),
    "names that are none": (lambda value: value[2].update(train=[None]) or value, "has NoneType where a name belongs"),
    "names in no list": (lambda value: value[2].update(test="abc") or value, "test is str, but must be a list"),
    "episodes": (lambda value: value[2].update(test_episodes=[1]) or value, "test_episodes is list, but must be a dict"),
    "shots": (lambda value: value[2].update(test_episodes={"a": []}) or value, "has the key 'a'"),
    "more than k": (
        lambda value: value[2].update(test_episodes={2: [{CLASSES[8]: image_names(CLASSES[8])}]}) or value,
        "has 6 images in an episode of 2 shots",
    ),
    "training class in an episode": (
        lambda value: value[2].update(test_episodes={2: [{CLASSES[0]: []}]}) or value,
        "'001.Bird_B' is no test class",
    ),
    "too few classes": (lambda value: value[2].update(test=CLASSES[8:9], test_episodes={}) or value, "and 1 test classes in"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_one_line(name: str, birds: Path, tmp_path: Path) -> None:
    change, message = BROKEN[name]
    with pytest.raises(DataError) as refused:
        import_published(write(tmp_path, change(published())), str(birds))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_the_command(birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path, published(), 2), tmp_path / "splits.json"
    assert cli.main(["splits", "import", str(path), "--data", str(birds), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "2 (default)" in printed.out and "52.6 " in printed.out and "first half" in printed.err
    assert SplitFile.read(out).data == str(birds) and out.with_suffix(".svg").exists()
    path.write_bytes(pickle.dumps(published(), 2)[:-20])
    assert cli.main(["splits", "import", str(path), "--data", str(birds), "--out", str(out), "--overwrite"]) == 2
    assert "damaged or cut-off" in capsys.readouterr().err
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert cli.main(["splits", "import", str(path), "--data", str(birds), "--out", str(out), "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert "it names os.system, which could run code" in error and error.count("\n") == 1
