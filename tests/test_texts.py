"""Names out of data and files give a terminal no orders, and are no markup in pages and pictures."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from data_files import save_image

from dmlcore import cli, console
from dmlcore.data.split_files import ClassSplit, SplitFile
from dmlcore.ensemble.search import Trial, report
from dmlcore.protocols.shift import report as shift_report
from dmlcore.protocols.shift.progress import draw_progress
from dmlcore.reports import pictures
from dmlcore.texts import encodable, in_markdown, printable

EVIL = "\x1b[2J\x1b]0;title\x07\r\nerror: no\x9b31m\u202e</text><script>alert(1)</script>|$x^$`"
SHORT = ["--plugins", "ms", "--steps", "1", "--embedding-dim", "4", "--compress", "0"]


def is_harmless(text: str) -> bool:
    return all(unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") or c == "\n" for c in text) and "\u202e" not in text


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*words: object) -> tuple[int, str]:
        status = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        assert is_harmless(captured.out), repr(captured.out)
        assert is_harmless(captured.err), repr(captured.err)
        errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (status != 0), captured.err
        return status, captured.out + captured.err

    return run


def test_every_character_that_a_terminal_obeys_is_written_out() -> None:
    assert printable("a b~é漢😀") == "a b~é漢😀"
    assert printable("\x1b[0m\n\r\t\x7f\x9b\u2028\u202e\udcff") == "\\x1b[0m\\n\\r\\t\\x7f\\x9b\\u2028\\u202e\\xff"
    assert printable("a\n\tb\x1b", is_page=True) == "a\n\tb\\x1b"
    assert all(is_harmless(printable(chr(code))) for code in range(0x3000))
    assert encodable("é\u0394", "ascii") == "\\xe9\\u0394" and encodable("é", None) == "é"


def test_words_in_markdown_are_no_markup() -> None:
    words = in_markdown({"<b>": ["![a](http://x)", "*`|`*", 1, None, 0.5], "plain_name": "ok"})
    assert words == {"&lt;b&gt;": ["!\\[a\\](http://x)", "\\*\\`\\|\\`\\*", 1, None, 0.5], "plain_name": "ok"}


def test_class_names(tmp_path: Path, here: Callable[..., tuple[int, str]], capsys: pytest.CaptureFixture[str]) -> None:
    names = np.array([f"{number}{EVIL}" for number in range(12)])
    x = np.random.default_rng(0).normal(size=(48, 5)).astype(np.float32)
    np.savez(tmp_path / "data.npz", **{"x": x, "y": np.repeat(names, 4), f"z{EVIL}": x})
    status, text = here("train", *SHORT, "--data", tmp_path / "data.npz", "--out", tmp_path / "run")
    assert status == 0 and "arrays not used: z\\x1b[2J" in text
    np.savez(tmp_path / "data.npz", x=np.concatenate([x, x + 1]), y=np.concatenate([np.repeat(names, 4), np.repeat(EVIL, 48)]))
    status, text = here("eval", tmp_path / "run")
    assert status == 0 and "('\\x1b[2J" in text
    assert here("eval", tmp_path / "run", "--json")[0] == 0
    np.savez(tmp_path / "data.npz", x=x, y=np.repeat([*names[1:], EVIL], 4))
    status, text = here("eval", tmp_path / "run")
    assert status == 2 and "is now in '" in text
    assert cli.main(["eval", str(tmp_path / "run"), "--debug"]) == 2
    assert is_harmless(capsys.readouterr().err)  # a traceback has several lines
    status, text = here("fewshot", "--data", tmp_path / "data.npz", "--source-classes", f"@{EVIL}", "--out", tmp_path / "few")
    assert status == 2 and "\\x1b" in text
    np.savez(tmp_path / "wrong.npz", **{EVIL: x})
    assert here("train", *SHORT, "--data", tmp_path / "wrong.npz")[0] == 2


def test_names_of_files_and_folders(tmp_path: Path, here: Callable[..., tuple[int, str]]) -> None:
    evil = EVIL.replace("/", "-")
    for number in range(8):
        for sample in range(3):
            save_image(tmp_path / f"photos{evil}" / f"{number}{evil}" / f"{sample}{evil}.png", seed=10 * number + sample)
    (tmp_path / f"photos{evil}" / f"0{evil}" / f"broken{evil}.png").write_bytes(b"no image")
    status, text = here("train", *SHORT, "--data", tmp_path / f"photos{evil}", "--out", tmp_path / f"run{evil}")
    assert status == 0 and "1 image that cannot be read was skipped" in text and "\\x1b" in text
    assert here("eval", tmp_path / f"run{evil}")[0] == 0
    for words in (
        ["eval", f"none{evil}"],
        ["train", "--data", evil],
        ["train", "--config", evil],
        [evil],
        ["train", f"--{evil}"],
    ):
        assert here(*words)[0] == 2


def test_keys_of_settings_and_names_of_components(tmp_path: Path, here: Callable[..., tuple[int, str]]) -> None:
    for text in (
        f"{json.dumps(EVIL)} = 1\n",
        f"[{json.dumps(EVIL)}]\na = 1\n",
        f"plugins = {json.dumps(EVIL)}\n",
        "\x1b = \x1b",
    ):
        (tmp_path / "settings.toml").write_text(text)
        assert here("train", "--config", tmp_path / "settings.toml")[0] == 2
    assert here("train", "--plugins", EVIL)[0] == 2
    assert here("plugins", EVIL)[0] == 2


def evil_splits() -> SplitFile:
    names = [f"{number}{EVIL}" for number in range(8)]
    split = ClassSplit(f"a{EVIL}", 1.0, 0, 0, tuple(names[:4]), tuple(names[4:]), tuple(names[:2]), tuple(names[2:4]))
    return SplitFile(f"data{EVIL}", {}, split.id, (split, dataclasses.replace(split, id=f"b{EVIL}", fid=2.0)))


def test_ids_of_splits(tmp_path: Path, here: Callable[..., tuple[int, str]]) -> None:
    (tmp_path / "splits.json").write_bytes(evil_splits().to_json())
    status, text = here("splits", "show", tmp_path / "splits.json")
    assert status == 0 and "a\\x1b[2J" in text
    assert here("splits", "show", tmp_path / "splits.json", "--json")[0] == 0
    words = ["--data", "glyphs", "--splits", tmp_path / "splits.json"]
    assert here("train", *SHORT, *words)[0] == 2
    assert here("train", *SHORT, *words, "--split", "no")[0] == 2


def comparison() -> dict[str, Any]:
    row = {"recall@1": {"mean": 0.5, "half": 0.1}, "map@r": {"mean": 0.4, "half": 0.1}, "few_shot": {}}
    splits = [{"id": f"{letter}{EVIL}", "fid": fid} for letter, fid in (("a", 1.0), ("b", 2.0))]
    by_id = {split["id"]: row for split in splits}
    return {"configurations": {f"c{EVIL}": {"splits": by_id, "area": row}}, "splits": splits, "seeds": [0]}


def test_pages_hold_no_markup_of_others() -> None:
    for page in (
        shift_report.markdown(comparison()),
        report([Trial(f"a{EVIL}", {"b": EVIL}, 0.5, 1.0)], []),
    ):
        assert is_harmless(page) and "<script>" not in page and "&lt;script&gt;" in page


@pytest.mark.skipif(not pictures.can_draw(), reason="matplotlib is not installed")
def test_pictures_are_well_formed(tmp_path: Path) -> None:
    for path in (shift_report.draw(comparison(), tmp_path / "a.svg"), draw_progress(evil_splits(), tmp_path / "b.svg")):
        text = path.read_text(encoding="utf-8")
        assert is_harmless(text.replace("\n", "")) and "<script" not in text
        ElementTree.fromstring(text)


def test_consoles_that_lack_characters_and_emoji(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    console.show(":smile: é \udcff [bold]x[/bold]")
    console.show_table([":smile:\x1b"], [["a\nb\x1b[0m"]])
    stream.flush()
    first, *_ = lines = stream.buffer.getvalue().decode("ascii").splitlines()  # type: ignore[attr-defined]
    assert first == ":smile: \\xe9 \\xff [bold]x[/bold]"
    assert any(":smile:\\x1b" in line for line in lines) and any("a b\\x1b[0m" in line for line in lines)
