"""Names of components: titles, papers, aliases, clashes; what may be typed where a component is meant; the page of papers."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import dmlcore
from dmlcore import cli, plugins
from dmlcore.authoring import create_package
from dmlcore.authoring.papers import BEGIN, END, papers
from dmlcore.commands.listing import SUB_COMMANDS
from dmlcore.description import first_sentence
from dmlcore.errors import ConfigError, PluginError, suggestion
from dmlcore.training import RunConfig

ROOT = Path(__file__).parents[1]
WITHOUT_PAPER = {"fixed", "uniform"}
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.mark.parametrize("kind", ["loss", "miner", "weighting"])
def test_everything_built_in_has_a_title_and_a_paper(kind: str) -> None:
    for name, entry in plugins.registry(kind).items():
        if entry.owner == "dmlcore":
            assert entry.title and (entry.paper or name in WITHOUT_PAPER), name


@pytest.mark.parametrize("alias", ["multi_similarity", "MultiSimilarityLoss", "multisimilarityloss", "MS"])
def test_an_alias_means_the_same_class(alias: str) -> None:
    assert plugins.find("loss", alias) is plugins.find("loss", "ms")
    assert dmlcore.losses.create(alias, alpha=3).name == "ms"


def test_names_of_pytorch_metric_learning_are_aliases() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    without = {  # what dmlcore lacks, or has in another form
        "BaseMetricLossFunction",
        "CrossBatchMemory",
        "DynamicSoftMarginLoss",
        "GenericPairLoss",
        "InstanceLoss",
        "LargeMarginSoftmaxLoss",
        "ManifoldLoss",
        "MultipleLosses",
        "P2SGradLoss",
        "PNPLoss",
        "SelfSupervisedLoss",
        "ThresholdConsistentMarginLoss",
        "VICRegLoss",
        "WeightRegularizerMixin",
        "BaseLossWrapper",
        "EmbeddingRegularizerMixin",
    }
    names = {name for name, value in vars(losses).items() if isinstance(value, type) and name.endswith("Loss")} - without
    for name in names:
        assert plugins.find("loss", name).owner == "dmlcore", name


def test_a_run_records_the_short_name() -> None:
    config = RunConfig.create(plugins="MultiSimilarityLoss,triplet_margin", weighting="GradNorm", ms={"alpha": 4})
    assert config.settings.losses.names == ("ms", "triplet") and config.settings.ensemble.weighting == "grad_norm"
    assert config.options["ms"]["alpha"] == 4.0
    assert plugins.recorded_name("data", "/a/folder") == "/a/folder"


def offering(*components: type) -> types.SimpleNamespace:
    return types.SimpleNamespace(dmlcore_losses=dmlcore.hookimpl(lambda: list(components)))


def test_aliases_that_clash_name_their_owners() -> None:
    first = type("First", (), {"name": "first", "aliases": ("Shared",)})
    for second in (
        type("Second", (), {"name": "second", "aliases": ("shared",)}),
        type("Second", (), {"name": "shared"}),
    ):
        manager = plugins.new_manager()
        plugins.register(manager, offering(first), "one")
        plugins.register(manager, offering(second), "two")
        with pytest.raises(PluginError, match="two plugins claim the loss '[Ss]hared': (one|two) .*(one|two)"):
            plugins.collect(manager, "loss")


def test_a_subclass_has_no_names_of_its_base() -> None:
    base = type("Base", (), {"name": "base", "title": "Base loss", "aliases": ("BaseLoss",)})
    derived = type("Derived", (base,), {"name": "derived"})
    manager = plugins.new_manager()
    plugins.register(manager, offering(base, derived), "one")
    entries = plugins.collect(manager, "loss")
    assert entries["derived"].aliases == () and entries["derived"].title == ""


def test_the_list_and_one_entry_show_names_and_papers(here: Command) -> None:
    text = here("plugins")[1]
    assert "Multi-Similarity loss" in text and "Wang et al., CVPR 2019" in text and "Ways to weigh" in text
    text = here("plugins", "MultiSimilarityLoss")[1]
    assert text.startswith("ms (loss of dmlcore") and "Also called: multi_similarity, MultiSimilarityLoss" in text
    (entry,) = json.loads(here("plugins", "ms", "--json")[1])["plugins"]
    assert entry["title"] == "Multi-Similarity loss" and entry["paper"] == "Wang et al., CVPR 2019"
    assert "multi_similarity" in entry["aliases"]


@pytest.mark.parametrize(("width", "lines"), [(80, 2), (120, 1)])
def test_the_list_fits_the_terminal(here: Command, monkeypatch: pytest.MonkeyPatch, width: int, lines: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = here("plugins")[1].splitlines()
    tables = [line for line in text if line.startswith(" ")]
    assert max(map(len, tables)) <= width
    for name in ("generalized_lifted_structure", "floor_square_penalty", "mnist_sample"):
        assert any(line.startswith(f" {name} ") for line in tables), f"{name} is folded"
    at = next(number for number, line in enumerate(text) if line.startswith(" ms "))
    assert text[at + lines].split()[0] == "n_pair", "the list is longer than it need be"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One. Two.", "One"),
        ("`f(a . b) . C` is a formula. Two.", "`f(a . b) . C` is a formula"),
        ("As in Wang et al. 2019, eq. 3. More", "As in Wang et al. 2019, eq. 3"),
        ("Of `x.\nY`, a sum (i.e. A. B). Next", "Of `x. Y`, a sum (i.e. A. B)"),
    ],
)
def test_first_sentences_keep_their_formulas(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


def test_no_summary_is_cut_inside_a_formula() -> None:
    for kind in plugins.KINDS:
        for entry in plugins.registry(kind).values():
            summary = first_sentence(entry.component.__doc__ or "")
            assert summary.count("`") % 2 == 0 and summary.count("(") == summary.count(")"), summary


def test_the_page_of_papers_is_the_generated_one() -> None:
    page = (ROOT / "docs" / "guide" / "losses.md").read_text(encoding="utf-8")
    part = page.split(BEGIN)[1].split(END)[0].strip()
    assert part == papers().strip(), "docs/guide/losses.md has drifted: run `dmlcore plugins papers --write` with its path"


def test_many_names_are_not_all_listed() -> None:
    assert suggestion("x", ["alpha", "beta"]) == " Known: alpha, beta."
    names = [f"name_{number}" for number in range(70)]
    assert suggestion("name_1", names) == " Did you mean 'name_1'?"
    assert suggestion("zzz", names).startswith(" The nearest of 70 names: ") and suggestion("zzz", names).count("name_") == 3


def test_the_folder_of_a_package_is_checked(tmp_path: Path, here: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    create_package("my_metric", "metric", out="my-package")
    status, out, err = here("plugins", "check", "./my-package")
    assert status == 0 and "metric 'my_metric': all" in out, err
    assert here("plugins", "check", "my-package/")[0] == 0
    status, _, err = here("plugins", "bench", "./my-package")
    assert status == 2 and "loss" in err


@pytest.mark.parametrize("typed", ["./nowhere", "empty", "./other"])
def test_a_folder_that_is_no_package_says_what_would_work(
    tmp_path: Path, here: Command, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    status, _, err = here("plugins", "check", typed)
    assert status == 2 and "FILE.py:CLASS" in err and len(err) < 300 and "binomial_deviance" not in err


def test_a_mistyped_sub_command(here: Command) -> None:
    status, _, err = here("plugins", "chekc")
    assert status == 2 and "Did you mean `dmlcore plugins check`?" in err
    for name in SUB_COMMANDS:
        assert here("plugins", name, "--help")[0] == 0


def test_an_unknown_name_has_no_long_list(here: Command) -> None:
    status, _, err = here("plugins", "check", "qqqqq")
    assert status == 2 and "The nearest of" in err and len(err) < 250
    with pytest.raises(ConfigError, match="The nearest of"):
        plugins.find("loss", "qqqqq")
