"""Self-distillation by wide heads: the objective written out, where its gradients go, runs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import clouds
from interrupting import Stop, records
from torch import Tensor

from dmlcore import LossEnsemble, cli
from dmlcore.ensemble import similarity_matching
from dmlcore.errors import ConfigError
from dmlcore.losses import create
from dmlcore.models import build_model
from dmlcore.models.architecture import architecture_of, build_architecture, serving_state
from dmlcore.serving import TrainedRun
from dmlcore.training import train
from dmlcore.training.distillation import Distillation
from dmlcore.training.setting_groups.model import ModelSettings

SMALL: dict[str, Any] = {
    "steps": 6,
    "eval_every": 3,
    "log_every": 2,
    "warmup": 0,
    "embedding_dim": 6,
    "compress": 0,
    "classes_per_batch": 6,
    "device": "cpu",
    "distill_heads": (9, 12),
}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    return clouds(tmp_path_factory.mktemp("data") / "features.npz")


def taught(base: Tensor, teacher: Tensor, t: float) -> Tensor:
    """Divergence of the softmax of a sample's cosines with all samples, itself too, sample by sample."""
    total = torch.zeros((), dtype=base.dtype)
    for b in range(len(base)):
        rows = []
        for x in (base, teacher.detach()):
            cosines = torch.stack([torch.cosine_similarity(x[b], x[k], dim=0) for k in range(len(x))])
            rows.append(torch.exp(cosines / t) / torch.exp(cosines / t).sum())
        total = total + (rows[1] * (rows[1] / rows[0]).log()).sum()
    return t * t * total / len(base)


@pytest.mark.parametrize("step", [2, 3])
def test_the_objective_by_loops(step: int) -> None:
    """Value and gradient by all weights, before and after the features begin to teach."""
    settings = ModelSettings(
        distill_heads=(5, 7), distill_weight=3.0, distill_temperature=0.7, distill_features_weight=2.0, distill_features_after=3
    )
    model = build_model(
        "mlp",
        sample_shape=(8,),
        kind="features",
        embedding_dim=4,
        distill_heads=(5, 7),
        distills_features=True,
        options={"hidden": 3},
    ).double()
    ensembles = [LossEnsemble(["ms"]), LossEnsemble([create("proxy_nca", num_classes=3, embedding_dim=7)])]
    distillation = Distillation(model, ensembles, settings).double()
    x = torch.randn(9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(9) % 3
    weights = [*model.parameters(), *distillation.parameters()]
    outputs = model(x)
    assert outputs.shape == (9, 4 + 5 + 7 + 11)
    total, terms = distillation.join(create("triplet")(model.losses_part(outputs), y), outputs, y, step)
    assert torch.allclose(sum(terms.values()) + create("triplet")(outputs[:, :4], y) / 2, total)

    f = model.trunk(x)
    unit = torch.nn.functional.normalize
    base = unit(model.head(f), dim=1)
    heads = [unit(head[2](head[0](f).relu()), dim=1) for head in model.distill_heads]
    of_heads = (create("ms")(heads[0], y) + ensembles[1].members[0](heads[1], y)) / 2
    expected = (create("triplet")(base, y) + of_heads) / 2
    expected = expected + 3.0 * (taught(base, heads[0], 0.7) + taught(base, heads[1], 0.7)) / 2
    if step >= 3:
        expected = expected + 2.0 * taught(base, f, 0.7)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    ours, theirs = (torch.autograd.grad(value, weights, allow_unused=True) for value in (total, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, rtol=1e-9, atol=1e-12))


def test_nothing_flows_to_the_teacher() -> None:
    base = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    value = similarity_matching(base, teacher, temperature=1.0, with_self=True)
    assert value.item() == pytest.approx(taught(base, teacher, 1.0).item(), rel=1e-12)
    assert torch.autograd.grad(value, teacher, allow_unused=True) == (None,)
    assert torch.autograd.gradcheck(lambda x: similarity_matching(x, teacher, temperature=1.0, with_self=True), (base,))


def test_the_wide_heads_are_thrown_away_when_serving() -> None:
    model = build_model("identity", sample_shape=(8,), kind="features", embedding_dim=4, distill_heads=(5, 7), student=2)
    x = torch.randn(3, 8)
    trained = model(x)
    assert trained.shape == (3, 4 + 5 + 7 + 2) and [part.shape[1] for part in model.distill_parts(trained)] == [5, 7]
    assert torch.allclose(model.student_of(trained), model.student(x)) and model.losses_part(trained).shape == (3, 4)
    assert model.eval()(x).shape == (3, 4 + 2)
    assert not any(name.startswith("distill") for name in serving_state(model))
    served = build_architecture(architecture_of(model), (8,), "features").eval()
    served.load_state_dict(serving_state(model))
    assert torch.equal(served.serve(x), model.serve(x))


@pytest.mark.parametrize(
    "settings",
    [
        {"plugins": "ms"},
        {"plugins": "proxy_anchor,ms", "ensemble": "heads", "student": 3, "serve": "whole", "accumulate": 2, "average": 0.5},
        {"plugins": "cross_entropy,triplet", "ensemble": "wel", "weights": "2,1"},
        {"plugins": "norm_softmax,sec", "memory": 40, "distill_features_weight": 5.0, "distill_features_after": 3},
    ],
)
def test_any_losses_learn_with_wide_heads(settings: dict[str, Any], features: str, tmp_path: Path) -> None:
    """A run that is stopped and goes on ends as an undisturbed one, and its records have the terms."""
    values = {"data": features, **SMALL, **settings}
    straight = train(out=tmp_path / "straight", **values)
    with pytest.raises(KeyboardInterrupt):
        train(out=tmp_path / "parts", loggers=[Stop(4)], **values)
    resumed = train(resume=tmp_path / "parts")
    assert resumed["metrics"] == straight["metrics"]
    runs = [records(tmp_path / folder) for folder in ("parts", "straight")]
    assert runs[0] == runs[1]
    terms = [record["extra_terms"] for record in runs[0] if record.get("extra_terms")]
    assert len(terms) == 6 and all({"wide heads", "distillation"} <= set(term) for term in terms)
    assert ("distillation of features" in terms[-1]) == ("memory" in settings) and "distillation of features" not in terms[0]
    model = TrainedRun(tmp_path / "straight").model
    assert model.distill_lengths[:2] == [9, 12] and model.embedding_dim == (12 if model.heads > 1 else 6)


def test_what_cannot_be_is_refused(features: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--distill-heads", "0"], "distill_heads"),
        (["--distill-features-weight", "2"], "distill_heads is not: name the lengths of wide heads"),
        (["--distill-heads", "8", "--distill-temperature", "0"], "distill_temperature"),
        (["--distill-heads", "8", "--distill-weight", "-1"], "distill_weight"),
    ):
        call = ["train", "--data", features, "--plugins", "ms", "--steps", "2", "--out", str(tmp_path / "out"), *words]
        assert cli.main(call) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="objects cannot be built again"):
        train(data=features, losses=lambda x, y: x.sum(), out=tmp_path / "out", **SMALL)
