"""Ensembles of heads: what each loss sees, the concatenation, what is served, compression and students in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import BATCHES
from interrupting import Stop, records
from torch import Tensor
from torch.nn import functional

from dmlcore import LossEnsemble, cli
from dmlcore.data import RecordedSplit
from dmlcore.ensemble import lookahead
from dmlcore.errors import ConfigError
from dmlcore.losses import create
from dmlcore.models import EmbeddingModel, build_model
from dmlcore.serving import TrainedRun
from dmlcore.training import RunConfig, start, train
from dmlcore.training.folder import RunFolder
from dmlcore.training.run import Run

X, Y = BATCHES["odd"]
HALF = X.shape[1] // 2


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(20, 12))
    y = np.repeat(np.arange(20), 12)
    x = (centres[y] + generator.normal(size=(240, 12))).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "features.npz"
    np.savez(path, x=x, y=y)
    return str(path)


SMALL: dict[str, Any] = {
    "steps": 12,
    "eval_every": 6,
    "log_every": 5,
    "warmup": 2,
    "embedding_dim": 6,
    "classes_per_batch": 6,
    "device": "cpu",
}


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value, leaf)[0]


def test_each_loss_sees_its_columns() -> None:
    losses = [create("ms"), create("triplet"), create("sup_con"), create("l2_norm")]
    columns = [(0, HALF), (HALF, 2 * HALF), (0, HALF), (0, 2 * HALF)]
    leaf, other = X.clone().requires_grad_(), X.clone().requires_grad_()
    ensemble = LossEnsemble(losses, columns=columns)
    total = ensemble(leaf, Y)
    expected = sum(loss(other[:, a:b], Y) for loss, (a, b) in zip(losses, columns, strict=True))
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(gradient(total, leaf), gradient(expected, other))
    references = X.flip(1).contiguous()
    total = ensemble(X, Y, references=references, reference_labels=Y)
    parts = [
        loss(X[:, a:b], Y, references=references[:, a:b], reference_labels=Y)
        for loss, (a, b) in zip(losses, columns, strict=True)
    ]
    torch.testing.assert_close(total, torch.stack(parts).sum())


def test_a_regulariser_sees_every_head() -> None:
    ensemble = LossEnsemble(["ms", "triplet", create("sec")], columns=[(0, HALF), (HALF, 2 * HALF), None]).double()
    ensemble(X, Y)
    rows = X[:, : 2 * HALF].unflatten(1, (2, HALF)).flatten(0, 1)
    torch.testing.assert_close(ensemble.terms["sec"], create("sec").double()(rows, Y.repeat_interleave(2)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"columns": [(0, 4)]}, "columns has 1 ranges for 2 losses"),
        ({"columns": [(0, 4), None]}, "columns has no range for triplet"),
        ({"columns": [(0, 4), (4, 4)]}, "columns of triplet are"),
        ({"columns": ["ab", 3]}, "must hold a range"),
    ],
)
def test_wrong_views_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LossEnsemble(["ms", "triplet"], **values)


def test_columns_beyond_the_embeddings_are_refused() -> None:
    ensemble = LossEnsemble(["ms", "triplet"], columns=[(0, 4), (4, 10**6)])
    with pytest.raises(ConfigError, match="the losses see up to column 1000000"):
        ensemble(X, Y)


def test_gradients_of_the_losses_are_measured_on_request() -> None:
    ensemble = LossEnsemble(["ms", "triplet", "sup_con"])
    leaf = X.clone().requires_grad_()
    ensemble(leaf, Y)
    assert ensemble.gradient_norms == {} and ensemble.gradient_cosines is None
    ensemble.measures_gradients = True
    total = ensemble(leaf, Y)
    cosines = ensemble.gradient_cosines
    assert cosines is not None
    apart = torch.stack([gradient(loss(leaf, Y), leaf).flatten() for loss in ensemble.members])
    torch.testing.assert_close(torch.stack(list(ensemble.gradient_norms.values())), apart.norm(dim=1))
    torch.testing.assert_close(cosines, functional.cosine_similarity(apart[:, None], apart[None], dim=2))
    torch.testing.assert_close(gradient(total, leaf), apart.sum(0).view_as(X))


def model_of(**head: Any) -> EmbeddingModel:
    return build_model("mlp", sample_shape=(12,), kind="features", embedding_dim=5, **head)


def test_squared_distances_of_heads_add_up() -> None:
    model = model_of(heads=3)
    model.shares.copy_(torch.tensor([0.2, 0.5, 0.3]))
    samples = torch.randn(9, 12, generator=torch.Generator().manual_seed(1))
    outputs = model(samples)
    whole = model.serve(samples)
    heads = [functional.normalize(model.head(model.trunk(samples))[:, 5 * k : 5 * k + 5], dim=1) for k in range(3)]
    squared = torch.cdist(whole, whole) ** 2
    expected = sum(share * torch.cdist(x, x) ** 2 for share, x in zip([0.2, 0.5, 0.3], heads, strict=True))
    torch.testing.assert_close(squared, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(9))
    named = model.embeddings(outputs)
    assert list(named) == ["whole", "head 1", "head 2", "head 3"]
    torch.testing.assert_close(named["head 2"], heads[1])


def test_a_student_takes_no_part_in_the_trunk() -> None:
    model = model_of(heads=2, student=3, served="student")
    outputs = model(torch.randn(4, 12))
    assert outputs.shape == (4, 13) and model.embedding_dim == 3
    model.student_of(outputs).square().sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.trunk.parameters())
    assert model.student is not None and model.student.weight.grad is not None
    with pytest.raises(ConfigError, match="has no compressor"):
        model_of(served="compressed")


@pytest.mark.parametrize("columns", [None, [(0, 4), (4, 8)]])
def test_lookahead_tells_which_loss_helps_unseen_classes(columns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against steps taken for real: a short step on each loss lowers the loss of the unseen classes as its alignment says."""
    monkeypatch.setattr(lookahead, "STEP", 1e-6)
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(64) // 4
    x = (torch.randn(64, 8, generator=generator) + 2 * torch.randn(16, 8, generator=generator)[y]).double()
    ensemble = LossEnsemble(["contrastive", "triplet"], "held_out", weighting_options={"loss": "sup_con"}, columns=columns)
    torch.manual_seed(3)
    alignments = lookahead.alignments(ensemble, x, y)
    torch.manual_seed(3)
    away = torch.isin(y, torch.randperm(16)[:4])
    blocks = columns or [(0, 8)]

    def judge(maps: list[Tensor]) -> Tensor:
        heads = [x[away][:, a:b] @ m for (a, b), m in zip(blocks, maps, strict=True)]
        if len(heads) > 1:
            heads = [functional.normalize(head) * 0.5**0.5 for head in heads]
        return create("sup_con")(torch.cat(heads, 1), y[away])

    eye = [torch.eye(b - a, dtype=torch.double) for a, b in blocks]
    decreases = []
    for index, loss in enumerate(ensemble.members):
        first, last = columns[index] if columns else (0, 8)
        leaf = x[~away].clone().requires_grad_()
        step = leaf.detach()[:, first:last].T @ gradient(loss(leaf[:, first:last], y[~away]), leaf)[:, first:last]
        moved = [m - 1e-5 * step / step.norm() if block == (first, last) else m for block, m in zip(blocks, eye, strict=True)]
        decreases.append(float(judge(eye) - judge(moved)) / 1e-5)
    assert min(map(abs, decreases)) > 1e-3
    ratio = decreases[0] / decreases[1]
    assert float(alignments[0] / alignments[1]) == pytest.approx(ratio, rel=0.02)
    assert (float(alignments[0]) > 0) == (decreases[0] > 0) and bool((alignments.abs() <= 1).all())
    assert torch.equal(lookahead.alignments(ensemble, x, torch.arange(64)), torch.zeros(2))  # no class has two samples


ARMS: dict[str, dict[str, Any]] = {
    "wel": {"plugins": "ms,cross_entropy", "ensemble": "wel", "cross_entropy": {"hidden": 9}},
    "wedl": {"plugins": "cross_entropy,triplet,binomial_deviance,proxy_nca", "ensemble": "wedl", "compress": 12,
             "compressor": "lin_tanh_lin"},
    "pca": {"plugins": "ms,triplet,sec", "ensemble": "heads", "compress": 6, "weighting": "held_out"},
    "student": {"plugins": "ms,proxy_anchor", "ensemble": "heads", "student": 6, "diversity": "distance"},
    "wide": {"plugins": "ms", "embedding_dim": 16, "compress": 6, "compressor": "whitened_pca"},
    "adversarial": {"plugins": "ms,proxy_anchor", "ensemble": "heads", "diversity": "adversarial", "diversity_weight": 30.0},
    "mixed": {"plugins": "ms,proxy_anchor,triplet", "ensemble": "heads",
              "weighting": "equal_gradient_norms"},
}  # fmt: skip


@pytest.mark.parametrize("arm", ARMS)
def test_runs_resume_exactly_and_report_every_embedding(features: str, tmp_path: Path, arm: str) -> None:
    values = {"data": features, **SMALL, **ARMS[arm]}
    straight = train(out=tmp_path / "straight", **values)
    with pytest.raises(KeyboardInterrupt):
        train(out=tmp_path / "parts", loggers=[Stop(8)], **values)
    resumed = train(resume=tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "straight")
    assert resumed["metrics"] == straight["metrics"] and resumed.get("embeddings") == straight.get("embeddings")
    if arm == "wel":  # one embedding
        assert "embeddings" not in straight and TrainedRun(tmp_path / "straight")(torch.zeros(2, 12)).shape == (2, 6)
        return
    named = straight["embeddings"]
    heads = [name for name in named if name.startswith("head ")]
    assert len(heads) == (0 if arm in ("wel", "wide") else len([p for p in values["plugins"].split(",") if p != "sec"]))
    served = "compressed" if "compress" in values else "student" if "student" in values else "whole"
    assert named[served]["test"]["map@r"] == straight["metrics"]["test"]["map@r"]
    again = TrainedRun(tmp_path / "straight")
    assert again.evaluate()["embeddings"] == named
    assert again(torch.zeros(2, 12)).shape == (2, named[served]["test"]["embedding_dim"])
    steps = [record for record in records(tmp_path / "straight") if record["kind"] == "step"]
    assert "loss_gradient_norms" in steps[4] and "loss_gradient_norms" not in steps[3]
    if arm == "pca":  # sec switches the normalisation off: norms are there to be logged
        assert steps[0]["embedding_norms"]["mean"] > 0
    if arm in ("wedl", "student"):
        assert set(steps[0]["extra_terms"]) == ({"diversity", "compressor"} if arm == "wedl" else {"diversity", "student"})


def test_the_published_methods_are_settings(features: str, tmp_path: Path) -> None:
    run = Run(RunConfig.create(data=features, **{**SMALL, **ARMS["wedl"]}), RunFolder(tmp_path))
    settings = run.config.settings
    ensemble = settings.ensemble
    assert (ensemble.weighting, ensemble.diversity, ensemble.diversity_weight) == ("floor_square_penalty", "distance", 0.01)
    assert run.model.heads == 4 and run.model.whole_dim == 24


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"plugins": "ms,triplet"}, "equal_gradient_norms"),
        ({"plugins": "ms"}, "fixed"),
        ({"plugins": "ms,triplet", "weights": [1, 2]}, "fixed"),
        ({"plugins": "ms,sec"}, "fixed"),  # a regulariser must not pull like a loss
        ({"plugins": "ms,triplet", "ensemble": "heads"}, "fixed"),
        ({"plugins": "ms,triplet", "ensemble": "wel"}, "floor_square_penalty"),
        ({"plugins": "ms,triplet", "weighting": "pcgrad", "weights": [1, 2]}, "pcgrad"),
    ],
)
def test_the_weighting_left_open_follows_from_the_losses(values: dict[str, Any], expected: str) -> None:
    config = RunConfig.create(**values)
    assert config.completed("images", 10, (1, 16, 16)).settings.ensemble.weighting == expected and expected in config.components


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (256, 64, "compressed")),
        ({"ensemble": "heads"}, (256, 64, "compressed")),
        ({"embedding_dim": 32}, (32, 0, "whole")),
        ({"embedding_dim": 32, "compress": 8}, (32, 8, "compressed")),
        ({"compress": 16}, (64, 16, "compressed")),
        ({"compress": 0}, (64, 0, "whole")),
        ({"student": 32}, (64, 0, "student")),
        ({"ensemble": "wedl"}, (64, 0, "whole")),
        ({"ensemble": "wedl", "compress": 128}, (64, 128, "compressed")),
    ],
)
def test_lengths_left_open_follow_from_the_others(values: dict[str, Any], expected: tuple[int, int, str]) -> None:
    config = RunConfig.create(**values)
    settings = config.completed("images", 10, (1, 16, 16)).settings
    model = settings.model
    assert (model.embedding_dim, model.compress, model.serve) == expected
    assert ("pca" in config.components) == ((model.compress or 0) > 0)
    assert RunConfig.create(**config.completed("images", 10, (1, 16, 16)).as_dict()).settings == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"serve": "student"}, "serve is 'student', but student is 0"),
        ({"diversity": "distance"}, "diversity needs a head per loss"),
        ({"compress": 99}, "99"),
        ({"diversity": "similarity", "ensemble": "heads"}, "must be one of off, distance"),
        ({"head_dropout": 0.5}, "unknown key 'head_dropout'"),
        ({"plugins": "sec", "ensemble": "heads"}, "every loss is a regulariser"),
        ({"compressor": "pcaa", "compress": 3}, "there is no compressor 'pcaa'.*pca"),
        ({"ensemble": "head"}, "must be one of shared, heads, wel, wedl"),
    ],
)
def test_wrong_settings_are_refused(features: str, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(out=tmp_path / "run", data=features, **{**SMALL, "plugins": "ms", **values})


def test_the_command_line_trains_compresses_and_reports(
    features: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--plugins", "ms,triplet,sup_con", "--ensemble", "wedl", "--weighting", "entropy", "--compress", "6"]
    words += ["--data", features, "--steps", "4", "--out", str(tmp_path / "run"), "--embedding-dim", "5"]
    assert cli.main([*words, "--student", "4"]) == 0
    shown = capsys.readouterr().out
    for name in ("whole", "head ms", "head triplet", "head sup_con", "compressed", "student"):
        assert name in shown
    assert cli.main(["eval", str(tmp_path / "run"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["embeddings"]["student"]["test"]["embedding_dim"] == 4


def test_members_are_chosen_on_validation_classes(
    features: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--plugins", "auto", "--auto-losses", "ms,triplet,sup_con", "--auto-trials", "2", "--auto-steps", "4"]
    words += ["--auto-most", "2", "--auto-within", "1", "--ensemble", "heads", "--data", features, "--steps", "6"]
    words += ["--out", str(tmp_path / "run"), "--eval-every", "2"]
    real, calls = start.validation_score, []

    def interrupted(config: RunConfig, folder: RunFolder, recorded: RecordedSplit, deadline: float | None) -> float:
        calls.append((config.settings.losses.names, config.settings.run.steps))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(config, folder, recorded)

    monkeypatch.setattr(start, "validation_score", interrupted)
    assert cli.main(words) == 130
    assert [len(json.loads((tmp_path / "run" / "search.json").read_text())["trials"])] == [3]
    assert cli.main([*words, "--json"]) == 0  # goes on where it stopped
    assert [names for names, _ in calls] == [(n,) for n in ("ms", "ms", "triplet", "triplet", "triplet", "sup_con", "sup_con")]
    assert {steps for _, steps in calls} == {4}
    result = json.loads(capsys.readouterr().out)
    trials = json.loads((tmp_path / "run" / "search.json").read_text())["trials"]
    best = {name: max(t["score"] for t in trials if t["loss"] == name) for name in ("ms", "triplet", "sup_con")}
    best_names = sorted(best, key=lambda name: -best[name])[:2]
    assert [loss["loss"] for loss in result["losses"]] == best_names
    for loss in result["losses"]:
        best_trial = max((t for t in trials if t["loss"] == loss["loss"]), key=lambda t: t["score"])
        assert all(loss["options"][key] == value for key, value in best_trial["options"].items())
    assert "| ms |" in (tmp_path / "run" / "search.md").read_text()
    assert TrainedRun(tmp_path / "run").config.settings.losses.names == tuple(best_names)
    with pytest.raises(ConfigError, match="holds the trials of another search"):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "search.json").write_text((tmp_path / "run" / "search.json").read_text())
        train(out=tmp_path / "other", plugins="auto", data=features, **{**SMALL, "steps": 2})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"plugins": "auto,ms"}, "give it alone"),
        ({"plugins": "auto", "weights": (1,)}, "how many losses there will be is not known"),
        ({"plugins": "auto", "auto_losses": "mss"}, "there is no loss 'mss'.*ms"),
        ({"plugins": "auto", "auto_trials": 99}, "trials is 99"),
    ],
)
def test_wrong_searches_are_refused(features: str, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(out=tmp_path / "run", data=features, **{**SMALL, **values})
