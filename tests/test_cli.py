"""The command line as a user meets it: what it prints and where, its exit status, and one clear line for every mistake."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dmlcore import cli, plugins
from dmlcore.training.settings import PLACES

SMALL = ["--steps", "6", "--eval-every", "3", "--classes-per-batch", "8", "--embedding-dim", "8"]


def run(*argv: object, expect: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """`dmlcore ...` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "dmlcore", *map(str, argv)], capture_output=True, text=True, timeout=180, **options
    )
    assert done.returncode == expect, done.stderr
    return done


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`dmlcore ...` in this process: status, stdout, stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 8)
    centres = generator.normal(size=(40, 16))
    path = tmp_path_factory.mktemp("data") / "features.npz"
    np.savez(path, x=(centres[labels] + generator.normal(size=(320, 16))).astype(np.float32), y=labels)
    return path


@pytest.fixture(scope="module")
def trained(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    assert cli.main(["train", "--data", str(features), "--out", str(out), *SMALL]) == 0
    return out


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Install a made-up distribution with one plugin module, for this process and those it starts."""
    site = tmp_path / "site"

    def make(name: str, source: str) -> None:
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[dmlcore]\n{name} = {name}\n")
        (site / f"{name}.py").write_text(textwrap.dedent(source))
        monkeypatch.setenv("DMLCORE_PLUGINS", name)
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]))
        forget()

    def forget() -> None:
        plugins.manager.cache_clear()
        plugins.registry.cache_clear()

    yield make
    monkeypatch.undo()
    forget()


def the_line(err: str) -> str:
    """The one line of an error: no traceback, nothing else that looks like one."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err and err.rstrip().endswith(lines[0]), err
    return lines[0]


def test_help_is_quick_and_loads_no_torch() -> None:
    for argv in (["--help"], ["train", "--help"], ["eval", "--help"], []):
        code = f"import sys; from dmlcore.cli import main; status = main({argv});"
        code += " assert 'torch' not in sys.modules; sys.exit(status)"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "Usage: dmlcore" in done.stdout and not done.stderr
        # Processor time, since other processes may keep this one waiting; the target is half a second on an idle
        # machine, and torch alone takes two.
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


def test_help_breaks_no_flag_on_a_narrow_screen(
    monkeypatch: pytest.MonkeyPatch, here: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = here("train", "--help")[1]
    words = set(out.split())
    for key, place in PLACES.items():
        flag = key.replace("_", "-")
        assert f"--{flag}" in words and (place.type is not bool or f"--no-{flag}" in words), flag
    assert max(map(len, out.splitlines())) <= 80


def test_help_shows_the_options_of_what_is_chosen(here: Callable[..., tuple[int, str, str]], features: Path) -> None:
    status, out, _ = here("train", "--plugins", "ms,triplet", "--help")
    assert status == 0 and "--ms.alpha" in out and "--triplet.margin" in out and "--conv." in out and "--glyphs." in out
    assert "--proxy_anchor" not in out
    assert "--ms_2.alpha" in here("train", "--plugins=ms,ms", "--data", features, "--help")[1]
    assert "--ms.alpha" not in here("train", "--help")[1]


def test_train_prints_one_json_object_and_leaves_a_complete_folder(features: Path, tmp_path: Path) -> None:
    flags = ["--plugins", "ms,proxy_anchor,triplet", "--ms.alpha", "4"]
    done = run("train", "--data", features, "--out", "run", "--json", *flags, *SMALL, cwd=tmp_path)
    result = json.loads(done.stdout)
    assert result["run"] == "run" and result["metrics"]["test"]["recall@1"] > 0
    for word in (
        "losses",
        "fused",
        "device",
        "cpu",
        "samples",
        "classes",
        "parameters",
        "6 steps",
        "images/s",
        "validation R@1",
    ):
        assert word in done.stderr
    for name in ("config.toml", "metrics.jsonl", "result.json", "checkpoints/best.pt", "checkpoints/last.pt"):
        assert (tmp_path / "run" / name).is_file()
    assert "alpha = 4.0" in (tmp_path / "run" / "config.toml").read_text()
    assert not list(tmp_path.rglob("*.tmp"))


def test_train_ends_with_the_table_and_the_next_command(
    here: Callable[..., tuple[int, str, str]], features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = here("train", "--data", features, "--plugins", "ms,triplet", *SMALL)
    assert status == 0 and "error" not in err
    for word in (
        "R@1",
        "R@2",
        "R@4",
        "R@8",
        "R-prec",
        "MAP@R",
        "mAP",
        "validation",
        "test",
        "raw features",
    ):
        assert word in out
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-ms+triplet")
    assert f"Use it by: dmlcore embed runs/{folder.name} --data DATA --out embeddings.npz" in out


def test_a_terminal_gets_a_bar_with_speed_and_terms(
    here: Callable[..., tuple[int, str, str]], features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, color_system=None, highlight=False, width=200)
    monkeypatch.setattr("dmlcore.console.stderr", lambda: terminal)
    assert here("train", "--data", features, "--plugins", "ms,triplet", "--out", tmp_path / "run", *SMALL)[0] == 0
    shown = screen.getvalue()
    assert "6/6" in shown and "images/s" in shown and "triplet" in shown and "validation R@1" in shown


def test_a_configuration_file_is_a_source_and_flags_win(
    here: Callable[..., tuple[int, str, str]], features: Path, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        f'plugins = "ms"\ndata = "{features}"\nsteps = 4\nclasses-per-batch = 8\nseed = 1\n[ms]\nalpha = 3\nbase = 0.4\n'
    )
    status, _, err = here("train", "--config", file, "--out", tmp_path / "run", "--seed", "2", "--ms.alpha=5")
    assert status == 0, err
    text = (tmp_path / "run" / "config.toml").read_text()
    assert "seed = 2" in text and "alpha = 5.0" in text and "base = 0.4" in text and "steps = 4" in text
    status, _, err = here("train", "--config", tmp_path / "run" / "config.toml", "--out", tmp_path / "again")
    assert status == 0, err
    assert (tmp_path / "again" / "config.toml").read_text() == text


def test_eval(here: Callable[..., tuple[int, str, str]], trained: Path, features: Path, tmp_path: Path) -> None:
    expected = json.loads((trained / "result.json").read_text())["metrics"]
    for data in ([], ["--data", features]):
        status, out, _ = here("eval", trained, *data, "--json")
        assert status == 0 and json.loads(out)["metrics"] == expected
    status, out, _ = here("eval", trained)
    assert "raw features" in out and "MAP@R" in out
    generator = np.random.default_rng(1)
    np.savez(tmp_path / "other.npz", x=generator.normal(size=(60, 16)).astype(np.float32), y=np.repeat(np.arange(12), 5))
    status, out, _ = here("eval", trained, "--data", tmp_path / "other.npz", "--checkpoint", "last", "--json")
    assert status == 0 and list(json.loads(out)["metrics"]) == ["all"] and json.loads(out)["metrics"]["all"]["queries"] == 60
    np.savez(tmp_path / "wider.npz", x=generator.normal(size=(60, 17)).astype(np.float32), y=np.repeat(np.arange(12), 5))
    status, _, err = here("eval", trained, "--data", tmp_path / "wider.npz")
    assert status == 2 and "(17,)" in the_line(err) and "(16,)" in err


def test_embed(here: Callable[..., tuple[int, str, str]], trained: Path, features: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "embeddings.npz"
    status, text, _ = here("embed", trained, "--data", features, "--out", out)
    assert status == 0 and "320 embeddings of 8" in text
    with np.load(out) as file:
        assert file["x"].dtype == np.float32 and file["x"].shape == (320, 8)
        np.testing.assert_allclose(np.linalg.norm(file["x"], axis=1), 1, rtol=1e-5)
        assert file["y"].shape == file["class_name"].shape == file["split"].shape == (320,)
        assert set(file["split"]) == {"train", "validation", "test"}
        assert sorted(np.unique(file["y"])) == list(range(40))
        assert all(len(set(file["split"][file["y"] == label])) == 1 for label in range(40))
    assert here("embed", trained, "--data", features, "--out", tmp_path / "e.txt")[0] == 2
    status, _, error = here("embed", trained, "--data", features, "--out", features)  # would destroy its own input
    assert status == 2 and "exists already" in error
    assert here("embed", trained, "--data", features, "--out", out, "--overwrite")[0] == 0
    assert here("embed", trained, "--data", features)[0] == 2


def test_plugins_lists_everything_with_options(here: Callable[..., tuple[int, str, str]]) -> None:
    listed = json.loads(here("plugins", "--json")[1])["plugins"]
    assert set(plugins.KINDS) == {entry["kind"] for entry in listed}
    for entry in listed:
        assert entry["summary"] and entry["owner"] == "dmlcore"
        assert all(option["type"] and option["help"] for option in entry["options"]), entry["name"]
        if entry["kind"] == "loss":
            assert isinstance(entry["is_fused"], bool) and (entry["is_fused"] or entry["why_not_fused"])
    table = here("plugins")[1]
    assert all(entry["name"] in table for entry in listed)
    text = here("plugins", "triplet")[1]
    assert "--triplet.margin" in text and "fused" in text
    text = here("plugins", "multi_similarity")[1]
    assert "--LOSS.miner 'multi_similarity(epsilon=VALUE)'" in text and "miner of dmlcore" in text
    status, _, err = here("plugins", "triplit")
    assert status == 2 and "Did you mean 'triplet'" in the_line(err)


def test_info(here: Callable[..., tuple[int, str, str]]) -> None:
    facts = json.loads(here("info", "--json")[1])
    assert {"versions", "devices", "kernels"} <= set(facts) and "torch" in facts["versions"]
    assert "torch" in here("info")[1]


MISTAKES = [
    (["train", "--plugins", "ms,triplit"], "no loss 'triplit'. Did you mean 'triplet'"),
    (["train", "--plugins", "ms", "--ms.alpah", "4"], "ms has no option 'alpah'. Did you mean 'alpha'"),
    (
        ["train", "--plugins", "ms", "--triplet.margin", "4"],
        "--triplet.margin: options of 'triplet' are given, but that loss is not selected",
    ),
    (["train", "--plugins", "ms", "--ms.alpha", "-4"], "alpha is -4.0, but must be"),
    (["train", "--plugins", "ms", "--ms.alpha", "big"], "ms.alpha is 'big', but must be a number"),
    (["train", "--steps", "0"], "steps is 0, but must be >= 1"),
    (["train", "--step", "5"], "Unknown option: --step. Did you mean --steps"),
    (["train", "--steps"], "--steps requires an argument"),
    (["train", "--steps", "5", "--epochs", "5"], "steps and epochs are both given"),
    (["train", "--samples-per-class", "1"], "samples_per_class is 1"),
    (["train", "--model", "cnv"], "no model 'cnv'. Did you mean 'conv'"),
    (["train", "--weighting", "fixd"], "no weighting 'fixd'. Did you mean 'fixed'"),
    (["train", "--data", "glyph"], "Did you mean 'glyphs'"),
    (["train", "--data", "nope.npz"], "no file or folder of that name. Data sets: cars, cub, "),
    (["train", "--auto-trials", "3"], "auto_trials is given, but it is for plugins = auto"),
    (["train", "--transforms", "shft"], "no transform 'shft'. Did you mean 'shift'"),
    (["train", "--sampler", "shufled"], "no sampler 'shufled'. Did you mean 'shuffled'"),
    (["train", "--metrics", "uniform"], "no metric 'uniform'. Did you mean 'uniformity'"),
    (["train", "--compress", "300", "--embedding-dim", "16"], "cannot compress 16 dimensions to 300"),
    (["train", "--data", "/nowhere/at/all"], "/nowhere/at/all"),
    (["train", "--data", "EMPTY"], "EMPTY"),
    (["train", "--data", "ONE"], "one class"),
    (["train", "--data", "OBJECTS"], "OBJECTS"),
    (["train", "--out", "TRAINED"], "already holds a run. Choose another --out"),
    (["train", "--resume", "TRAINED"], "is complete. Evaluate it by `dmlcore eval"),
    (["train", "--resume", "TRAINED", "--seed", "4"], "--seed cannot be given with --resume"),
    (["train", "--resume", "NOWHERE"], "there is no run in"),
    (["train", "--resume", "TRAINED", "--checkpoint", "best"], "continues from last or previous"),
    (["train", "--config", "TOML"], "TOML: unknown key 'stepz'. Did you mean 'steps'"),
    (["train", "--config", "TABLE"], "TABLE: options of 'triplet' are given, but that loss is not selected (plugins: ms)"),
    (["train", "--config", "OPTION"], "OPTION: ms has no option 'alpah'"),
    (["train", "--config", "VALUE"], "VALUE: ms: alpha is -1.0"),
    (["train", "--config", "PLUGIN"], "PLUGIN: plugins: there is no loss 'sm'"),
    (["train", "--config", "BROKEN"], "BROKEN is not valid TOML"),
    (["train", "--config", "MISSING"], "cannot read the configuration"),
    (["eval", "NOWHERE"], "give the folder of a run"),
    (["eval", "TRAINED", "--checkpoint", "first"], "no checkpoint 'first'"),
    (["eval"], "no model is given"),
    (["trian"], 'Did you mean "train"'),
    (["train", "extra"], "extra"),
]


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory, features: Path, trained: Path) -> dict[str, str]:
    """Paths of things that cannot be used, by the word that stands for them in `MISTAKES`."""
    root = tmp_path_factory.mktemp("wrong")
    (root / "EMPTY").mkdir()
    (root / "ONE" / "cats").mkdir(parents=True)
    for number in range(3):
        Image.new("L", (16, 16), number).save(root / "ONE" / "cats" / f"{number}.png")
    np.savez(root / "OBJECTS.npz", x=np.array([{"a": 1}] * 9, dtype=object), y=np.arange(9))
    texts = {
        "TOML": "stepz = 4\n",
        "TABLE": 'plugins = ["ms"]\n[triplet]\nmargin = 1\n',
        "OPTION": "plugins = ['ms']\n[ms]\nalpah = 1\n",
        "VALUE": "plugins = ['ms']\n[ms]\nalpha = -1\n",
        "PLUGIN": 'plugins = ["sm"]\n',
        "BROKEN": "steps = = 4\n",
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    paths = {name: str(root / name) for name in ("EMPTY", "ONE", "NOWHERE", "MISSING", *texts)}
    return {**paths, "OBJECTS": str(root / "OBJECTS.npz"), "TRAINED": str(trained), "FEATURES": str(features)}


@pytest.mark.parametrize(("argv", "message"), MISTAKES, ids=[" ".join(argv) for argv, _ in MISTAKES])
def test_a_mistake_is_one_line_and_status_2(
    here: Callable[..., tuple[int, str, str]],
    wrong: dict[str, str],
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [wrong.get(word, word) for word in argv]
    if argv[0] == "train" and not {"--data", "--resume", "--config"} & set(argv):
        argv += ["--data", wrong["FEATURES"]]
    status, out, err = here(*argv)
    assert status == 2 and not out
    assert message in the_line(err)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_mistakes_in_a_process_of_their_own(features: Path, tmp_path: Path) -> None:
    done = run("train", "--plugins", "ms,triplit", "--data", features, "--json", expect=2, cwd=tmp_path)
    assert not done.stdout and len(done.stderr.splitlines()) == 1
    done = run("train", "--plugins", "ms,triplit", "--debug", expect=2, cwd=tmp_path)
    assert "Traceback" in done.stderr and done.stderr.splitlines()[-1].startswith("error: ")


def test_corrupt_images_are_skipped_and_reported(here: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for label in range(8):
        (tmp_path / "pictures" / str(label)).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 255, size=(16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / str(label) / f"{number}.png")
    (tmp_path / "pictures" / "0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    status, _, err = here(
        "train", "--data", tmp_path / "pictures", "--out", tmp_path / "run", "--steps", "1", "--classes-per-batch", "2"
    )
    assert status == 0 and "broken.png" in err
    assert "broken.png" in (tmp_path / "run" / "result.json").read_text()


def test_a_folder_that_holds_another_run_is_left_alone(
    here: Callable[..., tuple[int, str, str]], trained: Path, features: Path
) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert here("train", "--data", features, "--out", trained, *SMALL)[0] == 2
    assert before == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}


def test_a_checkpoint_cut_in_half(here: Callable[..., tuple[int, str, str]], features: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert here("train", "--data", features, "--out", out, *SMALL)[0] == 0
    (out / "result.json").unlink()  # as if stopped before the end
    for name in ("best", "last"):
        path = out / "checkpoints" / f"{name}.pt"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    status, _, err = here("eval", out)
    assert status == 1 and "best.pt is damaged" in the_line(err) and "--checkpoint previous" in err
    assert here("eval", out, "--checkpoint", "previous")[0] == 0
    status, _, err = here("train", "--resume", out)
    assert status == 1 and "best.pt is damaged" in err and "goes on from previous.pt" in err


def test_resume_from_the_checkpoint_before_a_damaged_one(
    here: Callable[..., tuple[int, str, str]], features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert here("train", "--data", features, "--out", out, *SMALL)[0] == 0
    expected = json.loads((out / "result.json").read_text())
    (out / "result.json").unlink()
    (out / "checkpoints" / "last.pt").write_bytes(b"PK\x03\x04")
    assert here("train", "--resume", out, "--checkpoint", "previous")[0] == 0
    assert json.loads((out / "result.json").read_text())["metrics"] == expected["metrics"]


def test_a_full_disk(features: Path, trained: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: config.toml fits, a checkpoint does not."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = run("train", "--data", features, "--out", tmp_path / "run", *SMALL, expect=1, preexec_fn=limit)
    assert "cannot write" in the_line(done.stderr) and "intact" in done.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    out = tmp_path / "embeddings.npz"
    out.write_bytes(b"earlier")
    done = run("embed", trained, "--data", features, "--out", out, "--overwrite", expect=1, preexec_fn=limit)
    assert "cannot write" in the_line(done.stderr) and out.read_bytes() == b"earlier"


def test_a_full_disk_on_a_small_file_system(features: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        done = run("train", "--data", features, "--out", disk / "run", "--model", "mlp", *SMALL, expect=1)
        assert "No space left on device" in the_line(done.stderr)
        assert (disk / "run" / "config.toml").read_text()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_ctrl_c_saves_a_checkpoint_and_resume_completes(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    argv = ["train", "--data", features, "--out", out, "--steps", "400", "--classes-per-batch", "8", "--eval-every", "1000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dmlcore", *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    limit = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < 5:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"Continue by: dmlcore train --resume {out}" in the_line(err) and "interrupted after step" in err
    assert (out / "checkpoints" / "last.pt").exists() and not (out / "result.json").exists()
    done = run("train", "--resume", out, "--json")
    assert json.loads(done.stdout)["steps"] == 400
    steps = [r["step"] for r in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if r["kind"] == "step"]
    assert steps == list(range(1, 401))


def test_a_plugin_that_raises_on_import(install: Callable[[str, str], None], features: Path) -> None:
    install("broken_plugin", "raise RuntimeError('half installed')\n")
    done = run("train", "--data", features, *SMALL, expect=1)
    line = the_line(done.stderr)
    assert (
        "plugin 'broken_plugin' of broken_plugin cannot be imported" in line
        and "half installed" in line
        and "DMLCORE_PLUGINS" in line
    )
    run("plugins", env={**os.environ, "DMLCORE_PLUGINS": ""})
    assert "Usage" in run("--help").stdout


WRONG_SHAPE = """
    from dataclasses import dataclass

    import dmlcore
    from dmlcore.losses import Loss


    class Sideways(Loss):
        '''A loss that gives its embeddings back.'''

        name = "sideways"

        @dataclass(frozen=True)
        class Options:
            strength: float = 1.0
            '''How much.'''

        def forward(self, embeddings, labels, *, references=None, reference_labels=None):
            return embeddings * self.options.strength

        reference = forward


    @dmlcore.hookimpl
    def dmlcore_losses():
        return [Sideways]
"""


def test_a_plugin_whose_forward_returns_the_wrong_shape(
    install: Callable[[str, str], None], here: Callable[..., tuple[int, str, str]], features: Path, tmp_path: Path
) -> None:
    install("sideways_plugin", WRONG_SHAPE)
    status, _, err = here(
        "train", "--plugins", "ms,sideways", "--sideways.strength", "2", "--data", features, "--out", tmp_path / "run", *SMALL
    )
    assert status == 1 and "sideways" in the_line(err) and "scalar" in err
    assert "sideways_plugin" in here("plugins")[1]


COMMAND = """
    import dmlcore


    @dmlcore.hookimpl
    def dmlcore_commands(app):
        @app.command
        def greet(name: str = "you"):
            '''Greet somebody.'''
            print(f"hello {name}")
            return 0
"""


def test_a_plugin_adds_a_command(install: Callable[[str, str], None], here: Callable[..., tuple[int, str, str]]) -> None:
    install("greeter", COMMAND)
    assert here("greet", "--name", "world") == (0, "hello world\n", "")
    assert "Greet somebody" in here("greet", "--help")[1]
    status, _, err = here("gret")
    assert status == 2 and "greet" in the_line(err)


def test_a_plugins_command_is_listed_in_the_help_without_torch(install: Callable[[str, str], None]) -> None:
    install("greeter", COMMAND)
    done = run("--help")
    assert "greet" in done.stdout and "Greet somebody" in done.stdout and not done.stderr
    code = "import sys; from dmlcore.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("# dmlcore_commands\nraise RuntimeError('half installed')\n", "broken_plugin cannot be imported"),
        (
            "import dmlcore\n\n@dmlcore.hookimpl\ndef dmlcore_commands(app):\n    raise RuntimeError('no idea')\n",
            "dmlcore_commands of broken_plugin failed: no idea",
        ),
        (
            "import dmlcore\n\n@dmlcore.hookimpl\ndef dmlcore_commands(app):\n    app.command(print, name='train')\n",
            "dmlcore_commands of broken_plugin failed",
        ),
    ],
)
def test_a_broken_plugin_does_not_break_the_help(install: Callable[[str, str], None], source: str, words: str) -> None:
    install("broken_plugin", source)
    done = run("--help")
    assert "Train an embedding" in done.stdout
    assert done.stderr.count("\n") == 1 and words in done.stderr and "Traceback" not in done.stderr
    assert not run("train", "--help").stderr


def test_flags_are_read_beside_pydantic(here: Callable[..., tuple[int, str, str]]) -> None:
    """Where a plugin or a logger has imported it, cyclopts checks what is not given, too."""
    pytest.importorskip("pydantic", reason="pydantic is not installed")
    assert the_line(here("train", "--steps", "big")[2]).startswith("error: steps is 'big', but must be a whole number")
    assert the_line(here("train", "--plugins", "ms", "--ms.alpha", "-4")[2]).startswith("error: ms: alpha is -4")


def test_a_mistyped_command_gets_the_nearest_name(here: Callable[..., tuple[int, str, str]]) -> None:
    assert the_line(here("trian")[2]) == 'error: Unknown command "trian". Did you mean "train"? See `dmlcore --help`.'
    line = the_line(here("xyzzy")[2])
    named = re.search(r"Commands: (.+)\. See `dmlcore --help`\.", line)
    assert named is not None and {"data", "embed", "train"} < set(named[1].split(", "))
    assert named[1].split(", ") == sorted(named[1].split(", "))
    assert the_line(here("splits", "odo")[2]).endswith('Did you mean "ood"? See `dmlcore splits --help`.')


def test_an_unforeseen_failure_is_one_line_too(
    here: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr("dmlcore.commands.info.describe_system", fail)
    status, out, err = here("info", "--json")
    assert status == 1 and not out and "ZeroDivisionError: oh no" in the_line(err)
    assert "Traceback" in here("info", "--debug")[2]


def test_the_version() -> None:
    import dmlcore

    assert run("--version").stdout.strip() == dmlcore.__version__
