"""Classes out of single files: on the command line, in a configuration, in resumed and evaluated runs; and what is refused."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dmlcore
from dmlcore import cli, plugin_files, plugins
from dmlcore.errors import ConfigError, PluginError
from dmlcore.serving import TrainedRun
from dmlcore.training import RunConfig, train

SOURCE = """
    from dataclasses import dataclass

    import torch
    from dmlcore.ensemble import Weighting
    from dmlcore.losses import Loss, LossOptions


    class Small(Loss):
        '''The mean square of the embeddings.'''

        name = "small"

        @dataclass(frozen=True, kw_only=True)
        class Options(LossOptions):
            '''Options.'''

            strength: float = 1.0
            '''How much.'''

        def forward(self, embeddings, labels, *, references=None, reference_labels=None, own=None, relation=None):
            return self.options.strength * embeddings.square().mean()


    class Taken(Small):
        '''A name that dmlcore has.'''

        name = "ms"


    class Nameless(Small):
        '''No name.'''

        name = ""


    class First(Weighting):
        '''The first loss alone.'''

        name = "first"

        def forward(self, terms):
            return terms[0]

        @property
        def weights(self):
            return torch.eye(len(self.initial))[0]
"""
SHORT = ["--steps", "2", "--eval-every", "1", "--classes-per-batch", "6", "--embedding-dim", "8"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `my_loss.py` and features."""
    (tmp_path / "my_loss.py").write_text(textwrap.dedent(SOURCE))
    labels = np.repeat(np.arange(24), 6)
    x = np.random.default_rng(0).normal(size=(144, 10)).astype(np.float32)
    np.savez(tmp_path / "features.npz", x=x, y=labels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_a_file_on_the_command_line(
    place: Path, here: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--plugins", "contrastive,./my_loss.py:Small", "--small.strength", "0.5", "--weighting", "my_loss.py:First"]
    status, out, err = here("train", *flags, "--data", "features.npz", "--out", "runs/one", *SHORT, "--json")
    assert status == 0, err
    assert [loss["name"] for loss in json.loads(out)["losses"]] == ["contrastive", "small"]
    config = (place / "runs" / "one" / "config.toml").read_text()
    assert f'"{place}/my_loss.py:Small"' in config and f'weighting = "{place}/my_loss.py:First"' in config
    assert "[small]" in config and "strength = 0.5" in config
    monkeypatch.chdir("/")  # absolute paths: from anywhere
    status, out, err = here("eval", place / "runs" / "one", "--json")
    assert status == 0, err
    (place / "runs" / "one" / "result.json").unlink()
    status, _, err = here("train", "--resume", place / "runs" / "one")
    assert status == 0, err
    status, _, err = here("train", "--config", place / "runs" / "one" / "config.toml", "--out", place / "again")
    assert status == 0, err
    (place / "my_loss.py").rename(place / "moved.py")
    status, _, err = here("eval", place / "runs" / "one")
    assert status == 2 and f"there is no file {place}/my_loss.py" in err


def test_the_name_of_the_run_and_the_help(place: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    assert here("train", "--plugins", "my_loss.py:Small", "--data", "features.npz", *SHORT)[0] == 0
    (folder,) = (place / "runs").iterdir()
    assert folder.name.endswith("-small")
    assert "--small.strength" in here("train", "--plugins", "my_loss.py:Small", "--help")[1]


def test_a_file_in_a_configuration_and_in_python(place: Path) -> None:
    (place / "settings.toml").write_text(
        'plugins = ["ms", "./my_loss.py:Small"]\ndata = "features.npz"\nsteps = 1\nclasses_per_batch = 6\n'
        "[small]\nstrength = 2\n"
    )
    result = train(RunConfig.read("settings.toml"), out="run")
    assert [loss["name"] for loss in result["losses"]] == ["ms", "small"]
    assert TrainedRun("run").config.options["small"]["strength"] == 2.0
    loss = dmlcore.losses.create("my_loss.py:Small", strength=3)
    assert loss.options.strength == 3.0
    assert type(loss) is type(dmlcore.losses.create(f"{place}/my_loss.py:Small")), "one file is one module"


def test_what_a_file_must_hold(place: Path) -> None:
    (place / "broken.py").write_text("import dmlcore\n\nraise RuntimeError('half written')\n")
    (place / "syntax.py").write_text("def f(:\n")
    (place / "one.py").write_text(textwrap.dedent(SOURCE).split("class Taken")[0])
    assert plugins.find("loss", "one.py").name == "small"
    cases = {
        "nowhere.py:Small": "there is no file .*nowhere.py",
        "my_loss.py:Smal": r"has no class 'Smal'\. Did you mean 'Small'",
        "my_loss.py:First": r"cannot be a loss: the class does not derive from dmlcore\.losses\.Loss",
        "my_loss.py:Nameless": "cannot be a loss: the class has no `name`",
        "my_loss.py:Taken": "is called 'ms', but dmlcore has a loss of that name",
        "my_loss.py": r"holds 2 \(Small, Taken\) of the loss classes",
    }
    for reference, words in cases.items():
        with pytest.raises(ConfigError, match=words):
            plugins.find("loss", reference)
    with pytest.raises(PluginError, match=r"broken\.py cannot be imported: RuntimeError: half written \(line 3\)"):
        plugins.find("loss", "broken.py:Small")
    with pytest.raises(PluginError, match=r"syntax\.py cannot be imported: SyntaxError"):
        plugins.find("loss", "syntax.py:Small")


def test_a_file_that_fails_in_a_run_is_named(place: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    text = (
        (place / "my_loss.py")
        .read_text()
        .replace("return self.options", "raise RuntimeError('no idea')\n        return self.options")
    )
    (place / "failing.py").write_text(text)
    status, _, err = here("train", "--plugins", "failing.py:Small", "--data", "features.npz", "--out", "run", *SHORT)
    assert status == 1 and f"loss 'small' of {place}/failing.py:Small (dmlcore_losses) failed: RuntimeError: no idea." in err
    assert "the checkpoint of step 0 is intact" in err and "Traceback" not in err


def test_references_and_other_names() -> None:
    assert plugin_files.is_reference("./a.py:B") and plugin_files.is_reference("a.py")
    assert not plugin_files.is_reference("ms") and not plugin_files.is_reference("torchvision/resnet18")
    assert plugin_files.absolute("ms") == "ms" and plugin_files.absolute("/x/a.py:B") == "/x/a.py:B"
