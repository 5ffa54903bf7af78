"""Mistakes drawn at random, by seeds: each ends with one clear line and a status, and never with a raw message."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import feature_file

import dmlcore
from dmlcore import cli
from dmlcore.errors import ConfigError, DmlcoreError, PluginError
from dmlcore.losses import Loss
from dmlcore.seals import seal_archive
from dmlcore.training import train
from dmlcore.training.loop import Training
from dmlcore.training.settings import PLACES

SMALL = ["--data", "data.npz", "--plugins", "ms", "--steps", "2", "--embedding-dim", "8", "--compress", "4"]
RAW = re.compile(r"\b[A-Z]\w*(Error|Exception)\b|Traceback|--debug")
LONG, BIG = "n" * 300, "9" * 30
WORDS = [LONG, "n" * 5000, BIG, f"-{BIG}", "9" * 5000, str(2**63), "1e400", "nan", "-inf", "", "  ", ",", "²", "١٢", "0x10"]
WORDS += ["\0", "a\0b", "../" * 100 + "nowhere", "/" + "a" * 300, "a/" * 3000, "é\udcff", "/dev/null", "~nobody_such/x", "-0"]
WORDS += ["--", "ms.", "cuda:", "cuda:-1", "cuda:²", f"cuda:{BIG}", "5", "\x1b[2J"]
JUNK: list[Any] = [None, 5, -1, "text", "", [], {}, [1], {"a": 1}, True, 1.5, float("nan"), 2**70, [[1]], b"x"]
JUNK += [torch.zeros(3), torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64), torch.zeros(0), {"a": torch.zeros(1)}]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a finished `run`, and a run that was interrupted, `part`."""
    place = tmp_path_factory.mktemp("mistakes")
    feature_file(place / "data.npz", classes=12, samples=4)
    values: dict[str, Any] = {"data": str(place / "data.npz"), "plugins": "ms", "steps": 2, "embedding_dim": 8, "compress": 4}
    train(out=place / "run", **values)
    real = Training.step

    def step(self: Training, batches: Any) -> None:
        if self.run.step == 1:
            raise KeyboardInterrupt
        real(self, batches)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Training, "step", step)
        train(out=place / "part", memory=200, **values)
    return place


@pytest.fixture
def refused(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs a command in a folder with the data; whatever it makes of the words, it says so in one line."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(runs / "data.npz", "data.npz")
    monkeypatch.setenv("DML_MAX_STEPS", "1")

    def run(*words: object) -> tuple[int, str]:
        began = time.process_time()
        status = cli.main([str(word) for word in words])
        err = capsys.readouterr().err
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        where = f"{' '.join(map(str, words))[:300]!r}: {err[-600:]}"
        assert status in (0, 1, 2) and len(lines) == (status != 0), where
        assert not lines or (not RAW.search(lines[0]) and len(lines[0]) < 1500), where
        assert time.process_time() - began < 30, where
        return status, lines[0] if lines else ""

    return run


def copied(runs: Path, name: str) -> Path:
    shutil.rmtree("x", ignore_errors=True)
    return Path(shutil.copytree(runs / name, "x"))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_values_of_flags(seed: int, runs: Path, refused: Callable[..., tuple[int, str]]) -> None:
    draw = random.Random(seed)
    names = [f"--{key.replace('_', '-')}" for key in PLACES] + [
        "--config",
        "--resume",
        "--checkpoint",
        "--ms.alpha",
        "--ms.base",
    ]
    shutil.copytree(runs / "run", "run")
    for number in range(60):
        name, value = draw.choice(names), draw.choice(WORDS)
        words = [*SMALL]
        if name in words:
            place = words.index(name)
            del words[place : place + 2]
        refused("train", *words, *([] if name == "--resume" else ["--out", f"out{number}"]), f"{name}={value}")
    for value in draw.sample(WORDS, 10):
        refused("eval", value)
        refused("eval", "run", f"--device={value}")
        refused("embed", "run", "--out", "e.npz", "--overwrite", f"--data={value}")
        refused("splits", "show", value)
        refused("plugins", value)


VALUES_IN_TOML = [
    *(f"{key} = {BIG}" for key in ("steps", "seed", "memory", "classes_per_batch", "samples_per_class", "workers", "clip")),
    *("seed = 18446744073709551616", "seed = 9223372036854775808", "learning_rate = 1e400", "fractions = [nan, nan, nan]"),
    *("plugins = []", "plugins = [[]]", "plugins = {a = 1}", "plugins = 5", 'data = "a\\u0000b"', 'splits = "a\\u0000b"'),
    *(f'data = "{LONG}"', f'model = "{LONG}"', f"{LONG} = 1", f"[{LONG}]\na = 1", "losses = 5", "ms = 5", "[[ms]]\na = 1"),
    *(f"[ms]\nalpha = {BIG}", "[ms]\nalpha = nan", "[ms.alpha]\na = 1", f'[ms]\nminer = "multi_similarity(epsilon={BIG})"'),
    *("eval_every = 1979-05-27", "format = 3", "format = []", "format = 'x'", "steps = 1\nsteps = 2", "a = " + "9" * 5000),
]


@pytest.mark.parametrize("text", VALUES_IN_TOML, ids=range(len(VALUES_IN_TOML)))
def test_values_in_configurations(text: str, refused: Callable[..., tuple[int, str]]) -> None:
    Path("c.toml").write_text(text + "\n")
    data = [] if text.startswith("data") else ["--data", "data.npz"]
    status, line = refused("train", "--config", "c.toml", *data, "--out", "out")
    assert status == 2 or text.startswith("clip"), line  # a float may be large


@pytest.mark.parametrize("depth", [100, 5000, 60_000])
@pytest.mark.parametrize("shape", ["lists", "tables", "keys", "quoted keys", "headings", "growing headings"])
def test_nested_configurations_are_refused_at_once(shape: str, depth: int, refused: Callable[..., tuple[int, str]]) -> None:
    text = {
        "lists": lambda: "a=" + "[" * depth + "]" * depth,
        "tables": lambda: "a=" + "{a=" * depth + "1" + "}" * depth,
        "keys": lambda: ".".join("a" * depth) + "=1",
        "quoted keys": lambda: " . ".join(['"a"'] * depth) + "=1",
        "headings": lambda: "[" + ".".join("a" * depth) + "]",
        "growing headings": lambda: "\n".join("[a" + ".a" * number + "]" for number in range(min(depth, 600))),
    }[shape]()
    Path("c.toml").write_text(text + "\n")
    began = time.process_time()
    status, line = refused("train", "--config", "c.toml", "--data", "data.npz", "--out", "out")
    assert status == 2 and time.process_time() - began < 5
    assert any(
        words in line
        for words in ("nests too many", "has a key of more than", "has more than 256 KB", "unknown key", "nothing called")
    )


def test_large_configurations_and_bytes_are_refused(refused: Callable[..., tuple[int, str]]) -> None:
    for content in (b"#" * 5_000_000, b"a='" + b"x" * 300_000, b"\n".join(b"[[a%d]]" % n for n in range(20_000))):
        Path("c.toml").write_bytes(content)
        began = time.process_time()
        status, line = refused("train", "--config", "c.toml", "--data", "data.npz", "--out", "out")
        assert status == 2 and time.process_time() - began < 10, line
    for content in (b"\xff\xfe", b"\0" * 100, b"a=\xff", b"\x80\x04.", random.Random(0).randbytes(2000)):
        Path("c.toml").write_bytes(content)
        assert refused("train", "--config", "c.toml", "--data", "data.npz", "--out", "out")[0] == 2
    Path("c.toml").write_text('data = "./a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s.t"\n')  # dots in a text are no depth
    assert "there is no data set" in refused("train", "--config", "c.toml")[1]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_damaged_configurations_of_runs(seed: int, runs: Path, refused: Callable[..., tuple[int, str]]) -> None:
    draw = random.Random(seed)
    for _ in range(25):
        name, command = draw.choice([("run", ["eval", "x"]), ("part", ["train", "--resume", "x"])])
        config = copied(runs, name) / "config.toml"
        lines = config.read_text().splitlines()
        place, junk = (
            draw.randrange(len(lines)),
            draw.choice(["5", "-1", '"text"', "[]", "{}", "1e400", BIG, "nan", "true", '""']),
        )
        key = lines[place].partition("=")[0]
        lines[place] = draw.choice(
            ["", f"{key}= {junk}", lines[place][: draw.randrange(len(lines[place]) + 1)], "x = 1", "[y]"]
        )
        config.write_text("\n".join(lines))
        refused(*command)


CONTENTS = [
    b"",
    b"[]",
    b"5",
    b"null",
    b'{"a":',
    b"\xff\xff\n",
    b'"x"\n',
    b'{"step": "x"}\n',
    b'{"step": null}\n',
    b"[" * 100_000,
]
CONTENTS += [b'{"step": ' + b"9" * 5000 + b"}", b'{"step": 1e400}\n', b"\0" * 10, b'{"data": 5}', b'{"data": {"parts": 5}}']


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json", "split.json"])
def test_damaged_files_of_runs(name: str, runs: Path, refused: Callable[..., tuple[int, str]]) -> None:
    for content in [*CONTENTS, None]:
        for source, command in (("part", ["train", "--resume", "x"]), ("run", ["eval", "x"])):
            path = copied(runs, source) / name
            path.unlink(missing_ok=True)
            path.mkdir() if content is None else path.write_bytes(content)
            if name == "result.json":
                Path("x/split.json").unlink()  # or nobody would read it
            refused(*command)


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every entry of nested lists and dicts stands."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, entry in entries:
        yield (*above, key)
        yield from places(entry, (*above, key))


def write(folder: Path, name: str, content: bytes) -> None:
    """A checkpoint, and none beside it that could be used instead."""
    for path in (folder / "checkpoints").iterdir():
        if path.stem != name:
            path.unlink()
    (folder / "checkpoints" / f"{name}.pt").write_bytes(content)


@pytest.mark.parametrize("source", ["run", "part"])
def test_checkpoints_of_wrong_content(source: str, runs: Path, refused: Callable[..., tuple[int, str]]) -> None:
    name, command = {"run": ("best", ["eval", "x"]), "part": ("last", ["train", "--resume", "x"])}[source]
    whole = torch.load(runs / source / "checkpoints" / f"{name}.pt", weights_only=True)
    draw = random.Random(0)
    every = list(places(whole))
    for place in [place for place in every if len(place) == 1] + draw.sample(every, min(25, len(every))):
        state = copy.deepcopy(whole)
        holder = state
        for key in place[:-1]:
            holder = holder[key]
        if isinstance(holder, tuple):
            continue
        if draw.random() < 0.3:
            del holder[place[-1]]
        else:
            holder[place[-1]] = draw.choice(JUNK)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        seal_archive(buffer)  # or nothing but the checksum would be looked at
        write(copied(runs, source), name, buffer.getvalue())
        refused(*command)
    for content in (b"", b"x", b"PK\x03\x04", b"\x80\x02.", b"\0" * 1000, draw.randbytes(100)):
        write(copied(runs, source), name, content)
        status, line = refused(*command)
        assert status == 1 and ("is damaged" in line or "no checkpoint in x/checkpoints is intact" in line)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("was run",)


@pytest.mark.parametrize("save", [torch.save, lambda value, file: pickle.dump(value, file)], ids=["torch", "pickle"])
def test_a_foreign_checkpoint_that_holds_code(
    save: Callable[..., None], runs: Path, refused: Callable[..., tuple[int, str]]
) -> None:
    for value, code in (
        (Evil(), "mkdir"),
        ({"model": Evil()}, "mkdir"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ):
        buffer = io.BytesIO()
        save(value, buffer)
        write(copied(runs, "run"), "best", buffer.getvalue())
        status, line = refused("eval", "x")
        assert status == 1 and "holds code" in line and code in line and "damaged" not in line and not Path("was run").exists()


def test_files_of_splits_with_wrong_values(refused: Callable[..., tuple[int, str]]) -> None:
    assert refused("splits", "ood", "--data", "data.npz", "--out", "s.json")[0] == 0
    whole = json.loads(Path("s.json").read_text())
    Path("c.toml").write_text("plugins = 'ms'\nsteps = 1\n")
    draw, every = random.Random(0), list(places(whole))
    junk = [value for value in JUNK if not isinstance(value, bytes | torch.Tensor) and value != JUNK[-1]] + [LONG, 1e308]
    for number in range(30):
        place = draw.choice(every if draw.random() < 0.5 else [place for place in every if len(place) <= 3])
        state = copy.deepcopy(whole)
        holder = state
        for key in place[:-1]:
            holder = holder[key]
        if draw.random() < 0.3:
            del holder[place[-1]]
        else:
            holder[place[-1]] = draw.choice(junk)
        Path("s2.json").write_text(json.dumps(state))
        refused("splits", "show", "s2.json")
        if number < 6:
            refused("train", "--splits", "s2.json", "--plugins", "ms", "--out", f"out{number}")


def test_long_ids_of_splits_have_files(refused: Callable[..., tuple[int, str]]) -> None:
    assert refused("splits", "ood", "--data", "data.npz", "--out", "s.json")[0] == 0
    content = json.loads(Path("s.json").read_text())
    del content["checksum"]  # as one who edits the file by hand does
    for number, split in enumerate(content["splits"]):
        split["id"] = f"{LONG}{number}"
    content["default"] = content["splits"][0]["id"]
    Path("s.json").write_text(json.dumps(content))
    Path("c.toml").write_text("plugins = 'ms'\nembedding_dim = 4\n")
    words = ["ood", "run", "--splits", "s.json", "--config", "c.toml", "--out", "o", "--seeds", "1", "--shots", "0"]
    words += ["--split", f"{LONG}0,{LONG}1"]
    assert refused(*words) == (0, "")
    assert len(list(Path("o/cells/c").iterdir())) == 2


def test_small_mistakes_have_their_own_words(runs: Path, refused: Callable[..., tuple[int, str]]) -> None:
    assert "where a name is missing between two commas" in refused("train", "--plugins", "ms,,triplet")[1]
    assert "no model is given; name a run" in refused("eval")[1]
    assert "`dmlcore splits show` needs FILE" in refused("splits", "show")[1]
    config = copied(runs, "run") / "config.toml"
    config.write_text("plugins = ['ms']\nold_key = 1\n")  # of the version before tables
    assert "was made by another version of dmlcore" in refused("train", "--config", "x/config.toml")[1]
    with pytest.raises(ConfigError, match="Did you mean 'multi_similarity'"):
        dmlcore.losses.create("MULTISIMILARITY")
    status, line = refused("train", "--plugins", "n" * 5000)
    assert status == 2 and re.search(r"n\[4,8\d\d characters more\]n", line)


def test_a_loss_without_a_value_is_refused_when_it_is_made(refused: Callable[..., tuple[int, str]]) -> None:
    class Empty(Loss):
        """Nothing."""

        name = "empty"

    with pytest.raises(ConfigError, match="Empty writes neither `forward` nor `value_of`"):
        Empty()

    class NoOwn(Loss):
        """The mean."""

        name = "no_own"

        def forward(self, embeddings: Any, labels: Any, *, references: Any = None, reference_labels: Any = None) -> Any:
            return embeddings.mean()

    with pytest.raises(ConfigError, match=r"`forward` of no_own takes no `own`.*add own=None"):
        dmlcore.losses.CrossBatchMemory(NoOwn(), 8, 2)


def test_a_loss_that_is_refused_at_import_is_a_mistake_of_the_user(refused: Callable[..., tuple[int, str]]) -> None:
    text = "from dmlcore.losses import RowLoss\n\nclass Half(RowLoss):\n    name = 'half'\n"
    Path("half.py").write_text(text + "    def forward(self, embeddings, labels):\n        return 0\n")
    status, line = refused("train", "--plugins", "half.py:Half", "--data", "data.npz", "--out", "out")
    assert status == 2 and "half.py cannot be imported: the loss class Half" in line
    Path("broken.py").write_text("raise OSError('gone')\n")
    with pytest.raises(PluginError, match="OSError: gone"):
        dmlcore.losses.create("broken.py:Half")
    assert issubclass(ConfigError, DmlcoreError)
