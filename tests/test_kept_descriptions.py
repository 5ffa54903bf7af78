"""The kept description of all components: when it is used, and when it is made again."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmlcore import kept_descriptions, plugins

ENTRY = {"kind": "loss", "name": "ms", "owner": "dmlcore", "has_fused_form": True}


@pytest.fixture
def describe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """A function that asks for the description, and says whether it was made anew."""
    monkeypatch.setenv("DML_CACHE", str(tmp_path / "cache"))
    calls: list[Any] = []

    def ask(entry: dict[str, Any] = ENTRY) -> bool:
        before = len(calls)
        monkeypatch.setattr(kept_descriptions, "describe_components", lambda: calls.append(1) or [entry])
        plugins.manager.cache_clear()
        assert kept_descriptions.described_components() == [entry]
        return len(calls) > before

    return ask


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module that is loaded, in a folder of built-in plugins."""
    file = tmp_path / "dmlcore_plugins" / "toy.py"
    file.parent.mkdir()
    file.write_text("name = 'toy'\n")
    module = types.ModuleType("toy_of_this_test")
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return file


def test_it_is_made_once(describe: Callable[..., bool], source: Path) -> None:
    assert [describe(), describe(), describe()] == [True, False, False]


def test_a_changed_a_new_and_a_missing_file_make_it_anew(describe: Callable[..., bool], source: Path) -> None:
    assert [describe(), describe()] == [True, False]
    source.write_text("name = 'other'\n")
    assert [describe(), describe()] == [True, False]
    source.with_name("new.py").write_text("")
    assert [describe(), describe()] == [True, False]
    source.unlink()
    assert describe()


def test_a_switch_or_another_plugin_makes_it_anew(
    describe: Callable[..., bool], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert describe()
    monkeypatch.setenv("DML_FUSED", "0")
    assert describe()
    assert not describe()
    monkeypatch.setattr(plugins, "entry_points", lambda: [types.SimpleNamespace(name="guest", value="guest", dist=None)])
    assert describe()


def test_a_damaged_file_is_not_used(describe: Callable[..., bool], source: Path, tmp_path: Path) -> None:
    describe()
    (file,) = (tmp_path / "cache").glob("plugins-*.json")
    whole = file.read_bytes()
    for content in (b"", b"\xff\xfe", whole[:-9], whole.replace(b'"ms"', b'"sm"')):
        file.write_bytes(content)
        assert describe() and file.read_bytes() != content


def test_a_folder_that_cannot_be_made_costs_the_time_only(describe: Callable[..., bool], source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    assert [describe(), describe()] == [True, True]


def test_kernels_of_guests_are_not_kept(describe: Callable[..., bool], source: Path) -> None:
    guest = {**ENTRY, "owner": "guest"}  # whether it is fused depends on a compiler
    assert [describe(guest), describe(guest)] == [True, True]
    assert [describe({**guest, "has_fused_form": False}), describe({**guest, "has_fused_form": False})] == [True, False]


def test_nothing_is_read_where_the_plugins_are_loaded(describe: Callable[..., bool], monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.manager()
    monkeypatch.setattr(kept_descriptions, "_place", lambda: pytest.fail("the disk was asked"))
    monkeypatch.setattr(kept_descriptions, "describe_components", lambda: [])
    assert kept_descriptions.described_components() == []
