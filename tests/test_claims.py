"""Which source or trunk a name or path means: what classes claim, two that claim the same, and the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import feature_file
from dmlcore_plugins.data.npz import ArrayFile
from dmlcore_plugins.models.conv import Conv

from dmlcore import plugins
from dmlcore.data import KINDS_OF_DATA, DataSource, FeatureStore, Table, default_source, find_source, open_data
from dmlcore.errors import ConfigError, DataError, PluginError
from dmlcore.models import default_trunk, find_trunk


@dataclass(frozen=True)
class PathOptions:
    """Options of the toy."""

    path: str = ""
    """Where the data lies."""


class Toy(DataSource):
    """Reads files that end in .toy."""

    name = "toy"
    Options = PathOptions
    reads = "a .toy"
    suffixes = (".toy",)

    @classmethod
    def claims(cls, path: Path) -> bool:
        return path.suffix in cls.suffixes

    def load(self) -> Table:
        labels = np.repeat(np.arange(9), 3)
        values = np.full((27, 4), len(self.options.path), np.float32)
        return Table("features", FeatureStore(values), labels, [f"c{label}" for label in range(9)], (4,))


def install(monkeypatch: pytest.MonkeyPatch, kind: str, *components: type) -> None:
    """Have further components of a kind."""
    entries = dict(plugins.registry(kind))
    for component in components:
        name: Any = component.__dict__.get("name")
        entries[name] = plugins.Entry(kind, name, component, "here", "")
    original = plugins.registry
    monkeypatch.setattr(plugins, "registry", lambda asked: entries if asked == kind else original(asked))


def test_a_plugin_reads_paths_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "features.toy"
    path.touch()
    install(monkeypatch, "data", Toy)
    assert find_source(str(path)) == (Toy, {"path": str(path)})
    assert open_data(path).train.batch([0]).tolist() == [[len(str(path))] * 4]


def test_two_sources_that_claim_one_path_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = feature_file(tmp_path / "f.npz")
    install(
        monkeypatch, "data", type("Greedy", (Toy,), {"name": "greedy", "claims": Toy.__dict__["claims"], "suffixes": (".npz",)})
    )
    with pytest.raises(DataError, match=r"two sources claim '.*f.npz': 'npz' of dmlcore and 'greedy' of here") as caught:
        find_source(str(file))
    assert f"--data npz --npz.path {file}" in str(caught.value) and "\n" not in str(caught.value)
    assert open_data("npz", options={"path": str(file)}).kind == "features"


def test_a_subclass_does_not_inherit_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "data", type("Traced", (ArrayFile,), {"name": "traced"}))
    assert find_source(str(feature_file(tmp_path / "f.npz")))[0] is ArrayFile


def test_a_path_that_nothing_claims_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").touch()
    with pytest.raises(DataError) as caught:
        find_source(str(tmp_path / "a.xyz"))
    assert str(caught.value) == (
        f"'{tmp_path}/a.xyz' cannot be read as data: give a .csv or .tsv with label and path, text or features, a folder"
        f" with a sub-folder per class, a folder that save_to_disk wrote, an x.npy with y.npy, an .npz with x, y, a .parquet or"
        f" .arrow with label and image or features or a .tar of WebDataset."
    )


def test_a_folder_of_a_certain_form_goes_before_folders_of_any(tmp_path: Path) -> None:
    assert find_source(str(tmp_path))[0].name == "folder"
    (tmp_path / "a.tar").touch()
    assert find_source(str(tmp_path))[0].name == "webdataset"


def test_defaults_are_said_by_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_source() == "glyphs"
    assert [default_trunk(kind) for kind in KINDS_OF_DATA] == ["conv", "identity", "trigrams"]
    wide = type("Wide", (Conv,), {"name": "wide"})
    install(monkeypatch, "model", wide)
    assert default_trunk("images") == "conv"  # not inherited
    wide.default_for = frozenset(("images",))
    with pytest.raises(PluginError, match="the default model for images must be one trunk, but conv and wide says it is"):
        default_trunk("images")


def test_a_trunk_owns_the_names_behind_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(name: str) -> type:
        return type("Library", (Conv,), {"name": name, "names_option": "norm"})

    install(monkeypatch, "model", short := library("lib"))
    assert find_trunk("lib/none", "images") == (short, {"norm": "none"})
    assert find_trunk("lib", "images") == (short, {})
    install(monkeypatch, "model", longer := library("lib/own"))
    assert find_trunk("lib/own/batch", "images") == (longer, {"norm": "batch"})
    assert find_trunk("lib/own", "images") == (longer, {})
    assert find_trunk("lib/other", "images") == (short, {"norm": "other"})
    with pytest.raises(ConfigError, match="there is no model 'none'.*behind the library's name: .*lib/NAME, lib/own/NAME"):
        find_trunk("none", "images")
    with pytest.raises(ConfigError, match="there is no model 'conv/small'"):
        find_trunk("conv/small", "images")
