"""DiVA: the losses of its tasks against transcriptions by loops, and how they draw, remember, and get their keys in a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import embeddings_of
from data_files import clouds
from interrupting import Stop, records
from torch import Tensor

from dmlcore import LossEnsemble, cli
from dmlcore.errors import ConfigError
from dmlcore.losses import compare, create, euclidean_distances
from dmlcore.losses.draws import drawn
from dmlcore.models import build_model
from dmlcore.serving import TrainedRun
from dmlcore.training import RunConfig, train
from dmlcore.training.folder import RunFolder
from dmlcore.training.keys import KeyEncoder
from dmlcore.training.run import Run
from dmlcore.training.step import take_step

LABELS = torch.tensor([4, 0, 2, 4, 1, 2, 0, 3, 4, 1, 2, 2, 5, 1])  # one to four of a class; 3 and 5 have one sample
X = embeddings_of(LABELS, seed=7, spread=1.5)
Weights = list[list[float | None]]
KEYS = X + 0.4 * torch.randn(X.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def value_and_gradient(compute: Any, x: Tensor = X) -> tuple[float, Tensor]:
    leaf = x.clone().requires_grad_()
    value = compute(leaf)
    return value.item(), torch.autograd.grad(value, leaf)[0]


def check_same(ours: Any, theirs: Any, x: Tensor = X) -> None:
    (value, gradient), (expected, by_loops) = value_and_gradient(ours, x), value_and_gradient(theirs, x)
    assert by_loops.abs().max() > 1e-6, "nothing is tested"
    assert value == pytest.approx(expected, rel=1e-11)
    torch.testing.assert_close(gradient, by_loops, rtol=1e-8, atol=1e-10)


def drawn_triplets(loss: Any, x: Tensor = X, y: Tensor = LABELS, **against: Any) -> list[tuple[int, int, int]]:
    comparison = compare(x, y, **against)
    positive, negative, counted = loss.triplets(comparison, euclidean_distances(x, comparison.other_vectors))
    return [(a, int(positive[a]), int(negative[a])) for a in range(len(x)) if counted[a]]


def margin_of(triplets: list[tuple[int, int, int]], margin: float, beta: float, by_terms: bool) -> Any:
    """The mean over terms, or over triplets with a term, above 0."""
    beta = float(np.float32(beta))  # as a parameter begins

    def definition(x: Tensor) -> Tensor:
        u = x / x.square().sum(1, keepdim=True).sqrt()
        total, count = torch.zeros((), dtype=x.dtype), 0
        for a, p, n in triplets:
            far, near = ((u[a] - u[b]).square().sum().clamp_min(1e-30).sqrt() for b in (n, p))
            terms = [(near - beta + margin).clamp_min(0), (beta - far + margin).clamp_min(0)]
            total = total + sum(terms)
            count += sum(bool(t > 0) for t in terms) if by_terms else any(bool(t > 0) for t in terms)
        return total / count

    return definition


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("class_shared", {}),
        ("class_shared", {"margin": 0.1, "beta": 1.3, "average": "terms", "nonzero_loss_cutoff": 1.2, "seed": 5}),
        ("intra_class", {}),
        ("intra_class", {"replacement": True, "beta": 1.0, "average": "terms"}),
    ],
)
def test_the_triplet_losses_by_loops(name: str, options: dict[str, Any]) -> None:
    loss = create(name, **options).double()
    triplets, y = drawn_triplets(loss), LABELS.tolist()
    for a, p, n in triplets:
        classes = len({y[a], y[p], y[n]})
        assert classes == (3 if name == "class_shared" else 1)
        assert options.get("replacement") or len({a, p, n}) == 3
    of_class = [y.count(label) for label in y]
    least = 1 if name == "class_shared" else 2 if options.get("replacement") else 3
    assert [a for a, _, _ in triplets] == [a for a in range(len(y)) if of_class[a] >= least]
    definition = margin_of(triplets, options.get("margin", 0.2), options.get("beta", 1.2), options.get("average") == "terms")
    check_same(lambda x: loss(x, LABELS), definition)
    check_same(lambda x: loss.reference(x, LABELS), definition)


@pytest.mark.parametrize("name", ["class_shared", "intra_class"])
def test_draws_do_not_depend_on_the_order(name: str) -> None:
    order = torch.arange(len(X) - 1, -1, -1)
    for seed in range(3):
        loss = create(name, seed=seed)
        turned = drawn_triplets(loss, X[order], LABELS[order])
        assert {tuple(int(order[i]) for i in t) for t in turned} == set(drawn_triplets(loss))
    assert drawn_triplets(create(name)) != drawn_triplets(create(name, seed=1))


@pytest.mark.parametrize("name", ["class_shared", "intra_class"])
def test_a_boundary_for_each_class_learns(name: str) -> None:
    loss = create(name, num_classes=6, learn_beta=True, per_class=True).double()
    triplets = drawn_triplets(loss)
    value = loss(X, LABELS)
    (gradient,) = torch.autograd.grad(value, loss.beta)
    d = torch.cdist(*[torch.nn.functional.normalize(X)] * 2)
    expected, count = torch.zeros(6, dtype=torch.float64), 0
    for a, p, n in triplets:
        pulls, pushes = bool(d[a, p] - 1.2 + 0.2 > 0), bool(1.2 - d[a, n] + 0.2 > 0)
        expected[LABELS[a]] += pushes - pulls
        count += pulls or pushes
    torch.testing.assert_close(gradient, expected / count)
    with pytest.raises(ConfigError, match=f"{name} has a beta for labels 0..5, got labels 0..9"):
        loss(X, LABELS.where(LABELS != 5, 9))


def test_draws_are_even_or_by_distance() -> None:
    """Over many seeds each legal sample is drawn as often as its weight says."""
    seeds, y, anchor = 2000, LABELS.tolist(), 0
    u = torch.nn.functional.normalize(X)
    d = (2 - 2 * u @ u.T).clamp_min(0).sqrt()
    width, positives, negatives = X.shape[1], np.zeros(len(y)), np.zeros(len(y))
    expected = np.zeros(len(y))
    others = [j for j in range(len(y)) if y[j] != y[anchor]]
    for p in others:
        weights = np.zeros(len(y))
        for n in others:
            if y[n] != y[p]:
                far = max(float(d[anchor, n]), 0.5)
                weights[n] = far ** (2 - width) * (1 - far**2 / 4) ** (-(width - 3) / 2)
        expected += weights / weights.sum() / len(others)
    for seed in range(seeds):
        loss = create("class_shared", seed=seed)
        _, p, n = drawn_triplets(loss, X[anchor : anchor + 1], LABELS[:1], references=X, reference_labels=LABELS)[0]
        positives[p] += 1
        negatives[n] += 1
    for counts, shares in ((positives, np.where(np.isin(range(len(y)), others), 1 / len(others), 0)), (negatives, expected)):
        spread = np.sqrt(shares * (1 - shares) / seeds) + 1e-9
        assert (np.abs(counts / seeds - shares) < 4.5 * spread).all()


def test_a_draw_by_weights() -> None:
    numbers = torch.rand(20_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([True, True, False, True]).expand(20_000, 4)
    weights = torch.tensor([1.0, 3.0, 9.0, 4.0], dtype=torch.float64)
    shares = torch.bincount(drawn(numbers, mask, weights.log().expand(20_000, 4)), minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.tensor([1 / 8, 3 / 8, 0, 4 / 8]), atol=0.015, rtol=0)
    shares = torch.bincount(drawn(numbers, mask), minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.tensor([1 / 3, 1 / 3, 0, 1 / 3]), atol=0.015, rtol=0)


def test_matrices_of_labels_and_relations() -> None:
    """Classes may be told by sets of labels: what shares none is of another class."""
    y = LABELS.clamp_max(4)
    matrix = torch.nn.functional.one_hot(y, 5)
    for name in ("class_shared", "intra_class"):
        loss = create(name).double()
        for against in ({"y": matrix}, {"y": y, "relation": lambda a, b: a[:, None] == b[None]}):
            triplets = drawn_triplets(loss, **against)
            assert {len({int(y[i]) for i in t}) for t in triplets} == {3 if name == "class_shared" else 1}


def contrast(queries: Tensor, keys: Tensor, entries: Tensor, t: float, weights: Weights) -> Tensor:
    """Noise contrastive estimation by loops: each sample with its key against the entries."""
    u, k, m = (x / x.square().sum(1, keepdim=True).sqrt() for x in (queries, keys, entries))
    values = []
    for b in range(len(u)):
        positive = torch.exp(u[b] @ k[b] / t)
        pairs = [(weight, m[j]) for j, weight in enumerate(weights[b]) if weight is not None]
        negatives = sum(torch.exp(weight * (u[b] @ entry) / t) for weight, entry in pairs)
        values.append(-torch.log(positive / (positive + negatives)))
    return torch.stack(values).mean()


def published_weights(x: Tensor, entries: Tensor, upper: float = 1.4) -> Weights:
    """As the authors' code: by distance, 1e-45 beyond a bound, and divided by the sum over the batch."""
    u, m = (v / v.square().sum(1, keepdim=True).sqrt() for v in (x, entries))
    width, columns = x.shape[1], []
    for j in range(len(m)):
        column = []
        for b in range(len(u)):
            d = max(math.sqrt(max(2 - 2 * float(u[b] @ m[j]), 0)), 0.5)
            log = (2 - width) * math.log(d) - (width - 3) / 2 * math.log(1 - d * d / 4)
            column.append(math.exp(log) if d <= upper else 1e-45)
        columns.append([weight / sum(column) for weight in column])
    return [[column[b] for column in columns] for b in range(len(u))]


def check_contrast(loss: Any, x: Tensor, keys: Tensor, entries: Tensor, weights: Weights) -> None:
    labels = LABELS[: len(x)]  # which are not looked at
    check_same(
        lambda leaf: loss.reference(leaf, labels, keys=keys),
        lambda leaf: contrast(leaf, keys, entries, loss.options.temperature, weights),
        x,
    )


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_sample_specific_loss_by_loops(temperature: float) -> None:
    """Against the keys of the batch while the memory is empty, then against the memory, with weights and without."""
    first, second, keys = X[:8], X[6:] + 0.3, KEYS[:8]
    plain = create("sample_specific", temperature=temperature, weighted=False, memory=20).double()
    check_contrast(plain, first, keys, keys, [[None if b == j else 1.0 for j in range(8)] for b in range(8)])
    loss = create("sample_specific", temperature=temperature, memory=20).double()
    for module in (plain, loss):
        module(first, LABELS[:8], keys=keys)
        torch.testing.assert_close(module.entries.double(), torch.nn.functional.normalize(keys))
    check_contrast(plain, second, KEYS[6:], keys, [[1.0] * 8] * 8)
    weights = published_weights(second, keys)
    assert max(weight or 0 for row in weights for weight in row) > 0.9
    check_contrast(loss, second, KEYS[6:], keys, weights)


def test_an_entry_that_is_far_from_all_counts_for_all_alike() -> None:
    loss = create("sample_specific", nonzero_loss_cutoff=1.0).double()
    axes = torch.eye(X.shape[1], dtype=torch.float64)
    loss(X[:1], LABELS[:1], keys=axes[:1])
    far = torch.nn.functional.normalize(axes[1:4] + 0.01)
    weights = published_weights(far, loss.entries, 1.0)
    assert weights == [[pytest.approx(1 / 3)]] * 3
    check_contrast(loss, far, KEYS[:3], loss.entries, weights)


def test_the_memory_of_keys() -> None:
    loss = create("sample_specific", memory=10)
    x, y = X.float(), LABELS
    loss(x, y)
    loss.eval()(x, y, keys=x)
    assert loss.entries.shape == (0, 0)  # neither without keys, nor in evaluation
    spoiled = KEYS.float().clone()
    spoiled[2, 0] = torch.nan
    loss.train()(x, y, keys=spoiled)
    expected = torch.nn.functional.normalize(torch.cat([spoiled[:2], spoiled[3:]]))[-10:]
    torch.testing.assert_close(loss.entries, expected)
    loss(x[:4], y[:4], keys=KEYS[:4].float())
    torch.testing.assert_close(loss.entries[:6], expected[4:])
    again = create("sample_specific", memory=10)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.reference(x, y, keys=x), loss.reference(x, y, keys=x))
    assert not torch.isfinite(loss(spoiled, y, keys=x))
    for keys, said in (
        (x[:2], "one for each embedding, got"),
        (x.long(), "floating point"),
        ("x", "must be a tensor, got str"),
        (x.to_sparse(), "must be a dense tensor, got a torch.sparse_coo one"),
        (x.to("meta"), "keys are on meta, but embeddings are on cpu"),
    ):
        with pytest.raises(ConfigError, match=said):
            loss(x, y, keys=keys)
    with pytest.raises(ConfigError, match="has keys of 11 numbers, got 5"):
        loss(x[:, :5], y)


def test_keys_go_to_the_head_that_takes_them() -> None:
    """In an ensemble each member sees its own columns of keys, and the others see none."""
    specific, other = create("sample_specific").double(), create("ms").double()
    ensemble = LossEnsemble([other, specific], columns=[(0, 5), (5, 11)], weights=[1.0, 2.0])
    alone = create("sample_specific").double()
    for _ in range(3):
        expected = create("ms").double()(X[:, :5], LABELS) + 2 * alone(X[:, 5:], LABELS, keys=KEYS[:, 5:])
        torch.testing.assert_close(ensemble(X, LABELS, keys=KEYS), expected)
    torch.testing.assert_close(specific.entries, alone.entries)


def test_the_copy_that_makes_keys_follows() -> None:
    model = build_model("mlp", sample_shape=(8,), kind="features", embedding_dim=4)
    encoder = KeyEncoder(model, 0.75)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape))
    encoder.follow(model)
    for name, weight in encoder.model.state_dict().items():
        torch.testing.assert_close(weight, 0.75 * before[name] + 0.25 * model.state_dict()[name])
    assert not any(weight.requires_grad for weight in encoder.model.parameters()) and not encoder.model.training


DIVA: dict[str, Any] = {
    "plugins": "margin,sample_specific,class_shared,intra_class",
    "ensemble": "heads",
    "diversity": "adversarial",
    "diversity_weight": 10.0,
    "weights": "1,0.3,0.3,0.3",
    "transforms": "noise",
    "steps": 6,
    "eval_every": 3,
    "log_every": 2,
    "warmup": 0,
    "embedding_dim": 6,
    "classes_per_batch": 6,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    return clouds(tmp_path_factory.mktemp("data") / "features.npz")


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2, "average": 0.5, "shares": "1,2,2,3", "optimizer": "sam"}])
def test_a_run_that_is_stopped_goes_on(settings: dict[str, Any], features: str, tmp_path: Path) -> None:
    values = {"data": features, **DIVA, **settings}
    straight = train(out=tmp_path / "straight", **values)
    with pytest.raises(KeyboardInterrupt):
        train(out=tmp_path / "parts", loggers=[Stop(4)], **values)
    assert train(resume=tmp_path / "parts")["metrics"] == straight["metrics"]
    assert records(tmp_path / "parts") == records(tmp_path / "straight")
    model = TrainedRun(tmp_path / "straight").model
    shares = [1.0, 2, 2, 3] if settings else [1, 0.3, 0.3, 0.3]
    torch.testing.assert_close(
        model.shares.double(), torch.tensor(shares, dtype=torch.float64) / sum(shares), rtol=1e-6, atol=0
    )


def test_first_views_are_those_of_a_run_without_keys(features: str, tmp_path: Path) -> None:
    """The second views come behind, changed by random numbers of their own, and keys are of the copy before it moves."""
    runs = []
    for plugins in ("ms", "ms,sample_specific"):
        config = RunConfig.create(data=features, **{**DIVA, "plugins": plugins, "weights": None})
        runs.append(Run(config, RunFolder(tmp_path / plugins)))
    (inputs, labels), (views, same) = (next(run.batches()) for run in runs)
    assert torch.equal(labels, same) and torch.equal(views[: len(inputs)], inputs) and len(views) == 2 * len(inputs)
    assert not torch.isclose(views[len(inputs) :], inputs).all(1).any()
    run = runs[1]
    assert run.keys is not None
    keys = run.keys.model(views[len(inputs) :])
    take_step(run, views, labels)
    entries: Any = run.ensemble.members[1].entries
    torch.testing.assert_close(entries, torch.nn.functional.normalize(keys[:, 6:12]))
    assert not torch.equal(run.keys.model(views), run.model(views))


def test_what_cannot_be_is_refused(features: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = ["--plugins", "sample_specific"]
    noise = ["--transforms", "noise"]
    for words, said in (
        (alone, "compares two views of a sample, but nothing changes the samples"),
        ([*alone, *noise, "--memory", "200"], "which memory has none of"),
        ([*alone, *noise, "--distill-heads", "8"], "which distill_heads has none of"),
        (
            ["--plugins", "sample_specific,sample_specific", *noise, "--sample_specific_2.momentum", "0.5"],
            "its momentum differs: sample_specific 0.9, sample_specific_2 0.5",
        ),
        (["--plugins", "intra_class", "--samples-per-class", "2"], "compares 3 samples of a class, but samples_per_class is 2"),
        (["--plugins", "class_shared", "--classes-per-batch", "2"], "of 3 classes, but classes_per_batch is 2"),
        (["--plugins", "ms", "--shares", "1"], "shares are of heads"),
        (["--plugins", "ms,triplet", "--ensemble", "heads", "--shares", "1"], "shares has 1 numbers for 2 heads"),
        (["--plugins", "ms", "--ensemble", "heads", "--shares", "0"], "a sum above 0"),
    ):
        call = ["train", "--data", features, "--steps", "2", "--out", str(tmp_path / "out"), *words]
        assert cli.main(call) == 2
        said_here = " ".join(capsys.readouterr().err.split())
        assert said in said_here and not (tmp_path / "out").exists(), said_here
