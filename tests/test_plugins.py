"""Plugins: the hooks, what is refused and how, the example package installed for real, the conformance check."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
import torch

import dmlcore
from dmlcore import plugins
from dmlcore.errors import ConfigError, PluginError
from dmlcore.losses import Loss, PairLoss, Rows
from dmlcore.testing import check_loss

EXAMPLE = Path(__file__).parents[1] / "plugins" / "dmlcore_example"


class Toy(PairLoss):
    """Mean cosine of negative pairs."""

    name = "toy"

    def row_values(self, similarities, positive, negative) -> Rows:
        values = (similarities * negative).sum(1)[None]
        return Rows(values, negative.sum(1).to(values)[None])


def offering(**hooks) -> types.SimpleNamespace:
    return types.SimpleNamespace(**{name: dmlcore.hookimpl(function) for name, function in hooks.items()})


def loaded(**hooks):
    manager = plugins.new_manager()
    for name, plugin in hooks.items():
        plugins.register(manager, plugin, name)
    return manager


def test_every_builtin_folder_is_a_registry() -> None:
    folder = Path(plugins.importlib.import_module("dmlcore_plugins.losses").__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert set(plugins.registry("loss")) == modules
    assert all(entry.owner == "dmlcore" for entry in plugins.registry("loss").values())


@pytest.mark.parametrize("kind", list(plugins.KINDS))
def test_every_kind_has_a_working_hook(kind: str) -> None:
    component = type("Thing", (), {"name": "thing"})
    entries = plugins.collect(loaded(mine=offering(**{plugins.KINDS[kind].hook: lambda: [component]})), kind)
    assert entries["thing"].component is component and entries["thing"].owner == "mine"
    assert plugins.registry(kind), f"there is no built-in {kind}"


def test_unknown_hooks_and_arguments_are_refused() -> None:
    with pytest.raises(PluginError, match="'bad' is refused: unknown hook 'dmlcore_lossses'"):
        loaded(bad=offering(dmlcore_lossses=lambda: []))
    with pytest.raises(PluginError, match="'bad' is refused.*pantry"):
        loaded(bad=offering(dmlcore_losses=lambda pantry: []))


def test_duplicate_and_missing_names_are_refused() -> None:
    manager = loaded(one=offering(dmlcore_losses=lambda: [Toy]), two=offering(dmlcore_losses=lambda: [Toy]))
    with pytest.raises(PluginError, match="two plugins claim the loss 'toy': (one and two|two and one)"):
        plugins.collect(manager, "loss")
    with pytest.raises(PluginError, match="has no 'name'"):
        plugins.collect(loaded(one=offering(dmlcore_losses=lambda: [object])), "loss")


def test_environment_limits_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMLCORE_PLUGINS", "not-there")
    with pytest.raises(ConfigError, match="DMLCORE_PLUGINS names 'not-there', which is not installed"):
        plugins.entry_points()


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package installed by pip into a folder of its own, without touching the environment."""
    target = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(target),
        str(EXAMPLE),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def test_packages_of_their_own_are_no_part_of_dmlcore() -> None:
    from setuptools import find_namespace_packages

    root = EXAMPLE.parents[1]
    tables = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    for where in tables["where"]:
        packages = find_namespace_packages(str(root / where), include=tables["include"])
        assert {name.partition(".")[0] for name in packages} == {"dmlcore_plugins" if where == "plugins" else "dmlcore"}


def run_python(code: str, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    environment = {key: value for key, value in os.environ.items() if key != "DMLCORE_PLUGINS"} | environment
    environment["PYTHONPATH"] = os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment)


def test_the_example_package_is_found_used_and_switched_off(example: Path) -> None:
    code = (
        "import torch, dmlcore; from dmlcore.plugins import registry; from dmlcore.testing import check_loss\n"
        "entry = registry('loss')['dcl']; check_loss(entry.component)\n"
        "loss = dmlcore.losses.create('dcl', temperature=0.2); assert entry.component.header.is_file()\n"
        "total = dmlcore.LossEnsemble(['ms', loss])(torch.randn(8, 4), torch.arange(8) // 2)\n"
        "print(entry.owner, entry.version, bool(total > 0))"
    )
    done = run_python(code, example)
    assert done.stdout.split() == ["dmlcore-example", "0.2.0", "True"], done.stderr
    done = run_python("from dmlcore.plugins import registry; print('dcl' in registry('loss'))", example, DMLCORE_PLUGINS="")
    assert done.stdout.strip() == "False", done.stderr


def test_the_tutorial_shows_the_code_of_the_example() -> None:
    text = (EXAMPLE.parents[1] / "docs" / "guide" / "plugins.md").read_text(encoding="utf-8")
    source = (EXAMPLE / "dmlcore_example" / "__init__.py").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    tutorial = blocks[:2]  # the third one is of another matter
    assert len(blocks) == 3
    for line in "".join(tutorial).splitlines():
        assert line in source.splitlines(), f"the tutorial has drifted from the example: {line}"


def test_a_plugin_that_raises_on_import_is_named(example: Path, tmp_path: Path) -> None:
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('no licence')\n")
    folder = tmp_path / "broken_plugin-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[dmlcore]\nbroken = broken_plugin\n")
    done = run_python("from dmlcore.plugins import registry; registry('loss')", tmp_path)
    assert "plugin 'broken' of broken-plugin cannot be imported (broken_plugin): RuntimeError: no licence" in done.stderr


@pytest.mark.parametrize(
    "fault, words",
    [
        ("vector", "scalar tensor, got"),
        ("order", "depends on the order"),
        ("gradient", "gradient = finite differences"),
        ("nan", "finite value and gradient"),
        ("reference", "forward and reference differ"),
        ("state", "state round trip"),
    ],
)
def test_check_loss_finds_faults(fault: str, words: str) -> None:
    class Faulty(Loss):
        """A loss with a fault."""

        name = "faulty"

        def __init__(self, options=None, **keywords) -> None:
            super().__init__(options, **keywords)
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, embeddings, labels, *, references=None, reference_labels=None):
            value = embeddings.square().mean() * self.scale
            if fault == "vector":
                return embeddings.sum(1)
            if fault == "order":
                return (embeddings[0] * embeddings[-1]).sum() + embeddings[0].sum()
            if fault == "gradient":
                return value.detach() + 0.3 * embeddings.sum()
            if fault == "nan":
                return value / embeddings.norm(dim=1).min()
            return value

        def reference(self, embeddings, labels, *, references=None, reference_labels=None):
            return self(embeddings, labels) * (1.1 if fault == "reference" else 1)

        def state_dict(self, *args, **keywords):
            state = super().state_dict(*args, **keywords)
            return {key: torch.zeros_like(tensor) for key, tensor in state.items()} if fault == "state" else state

    with pytest.raises(PluginError, match=words):
        check_loss(Faulty)
