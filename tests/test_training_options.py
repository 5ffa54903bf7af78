"""Options of training: precision, batches in parts, averaged weights, patience, freezing, beginning from features or a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dmlcore.cli import main
from dmlcore.errors import ConfigError, TrainingError
from dmlcore.losses import create
from dmlcore.models import build_model
from dmlcore.training import checkpoints, guards, requirements, train
from dmlcore.training.averaging import AveragedWeights
from dmlcore.training.configuration import RunConfig
from dmlcore.training.folder import RunFolder
from dmlcore.training.loop import Training
from dmlcore.training.measurements import StepRecord, effective_rank
from dmlcore.training.passage import Passage
from dmlcore.training.result import advice
from dmlcore.training.run import Run

SMALL: dict[str, Any] = {
    "plugins": "ms,norm_softmax",
    "steps": 6,
    "eval_every": 2,
    "warmup": 2,
    "classes_per_batch": 4,
    "samples_per_class": 3,
}
NETWORK: dict[str, Any] = {"model": "mlp", "head_start": "random", "embedding_dim": 8, "compress": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "features.npz"
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(24), 6)
    centres = generator.normal(size=(24, 12))
    np.savez(path, x=(centres[labels] + 0.7 * generator.normal(size=(144, 12))).astype(np.float32), y=labels)
    return str(path)


def records(folder: Path, kind: str = "step") -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return checkpoints.load(folder / "checkpoints", name)["model"]


# A batch in parts.


@pytest.mark.parametrize("parts", [2, 3, 5, 16])
@pytest.mark.parametrize("trunk", ["conv", "mlp"])
def test_the_gradient_in_parts_is_that_of_the_whole_batch(trunk: str, parts: int) -> None:
    options: dict[str, Any] = {"norm": "none"} if trunk == "conv" else {"dropout": 0.0}
    shape, kind = ((1, 16, 16), "images") if trunk == "conv" else ((12,), "features")
    model = build_model(trunk, sample_shape=shape, kind=kind, embedding_dim=8, options=options).double()
    x, labels = torch.rand(16, *shape, dtype=torch.float64), torch.arange(16) // 4
    loss = create("ms")
    gradients = []
    for number in (1, parts):
        model.zero_grad()
        passage = Passage(model, torch.device("cpu"), parts=number)
        passage._run = lambda part, model=model: model(part)  # type: ignore[method-assign]  # float64 all the way
        outputs = passage.outputs(x)
        passage.backward(loss(outputs, labels), outputs)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for whole, in_parts in zip(*gradients, strict=True):
        torch.testing.assert_close(in_parts, whole, rtol=1e-9, atol=1e-12)


def test_dropout_is_the_same_both_times_and_running_means_move_once() -> None:
    torch.manual_seed(0)
    model = build_model("mlp", sample_shape=(12,), kind="features", embedding_dim=8, options={"dropout": 0.5})
    model.trunk.hidden = nn.Sequential(model.trunk.hidden, nn.BatchNorm1d(256))
    passage = Passage(model.train(), torch.device("cpu"), parts=2)
    x = torch.rand(10, 12)
    outputs = passage.outputs(x)
    norm = model.trunk.hidden[1]
    assert int(norm.num_batches_tracked) == 0
    again: list[torch.Tensor] = []
    run = passage._run
    passage._run = lambda part: again.append(run(part)) or again[-1]  # type: ignore[method-assign, func-returns-value]
    passage.backward(create("ms")(outputs, torch.arange(10) // 5), outputs)
    assert torch.equal(torch.cat(again), outputs) and int(norm.num_batches_tracked) == 2


def test_a_run_in_parts_equals_one_in_whole_batches(data: str, tmp_path: Path) -> None:
    for name, parts in (("whole", 1), ("parts", 4)):
        train(out=tmp_path / name, data=data, accumulate=parts, **SMALL, **NETWORK)
    whole, in_parts = (records(tmp_path / name) for name in ("whole", "parts"))
    assert [r["total"] for r in in_parts] == pytest.approx([r["total"] for r in whole], rel=1e-5)
    with pytest.raises(ConfigError, match="accumulate is 13, but a batch has 12 samples, so at most 6 parts"):
        train(out=tmp_path / "x", data=data, accumulate=13, **SMALL, **NETWORK)


# Precision.


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_trains_as_well(precision: str, data: str, tmp_path: Path) -> None:
    results = {}
    for name in ("fp32", precision):
        results[name] = train(
            out=tmp_path / name, data=data, precision=name, **{**SMALL, "steps": 40, "eval_every": 40}, **NETWORK
        )
    scores = [result["metrics"]["test"]["map@r"] for result in results.values()]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights(tmp_path / precision).values())
    run = Run(RunConfig.create(data=data, precision=precision, **SMALL, **NETWORK), RunFolder(tmp_path / "none"))
    assert run.passage.outputs(torch.rand(4, 12)).dtype == torch.float32


def test_a_step_that_overflows_in_float16_is_left_out() -> None:
    model = build_model("mlp", sample_shape=(12,), kind="features", embedding_dim=8)
    passage = Passage(model, torch.device("cpu"), precision="fp16")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.clone() for p in model.parameters()]
    for _ in range(3):
        outputs = passage.outputs(torch.rand(8, 12))
        passage.backward(outputs.sum() * 1e38, outputs)
        passage.unscale(optimiser)
        assert not passage.step(optimiser)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert passage.scaler.get_scale() == 65536 / 8
    with pytest.raises(TrainingError, match="Use --precision bf16"):
        for _ in range(60):
            outputs = passage.outputs(torch.rand(8, 12))
            passage.backward(outputs.sum() * torch.inf, outputs)
            passage.unscale(optimiser)
            passage.step(optimiser)


def test_a_run_in_float16_resumes_exactly(data: str, tmp_path: Path) -> None:
    flags = {"precision": "fp16", "average": 0.9, **SMALL, **NETWORK}
    train(out=tmp_path / "straight", data=data, **flags)
    run = Run(RunConfig.create(data=data, **flags), RunFolder.choose(tmp_path / "parts", ["ms"]))
    training = Training(run, [], None)
    training._evaluate()
    batches = run.batches()
    for _ in range(3):
        training.step(batches)
        if run.step % 2 == 0:
            training._evaluate()
    training._save()
    run.close()
    run.folder.unlock()
    train(resume=tmp_path / "parts")
    straight, parts = (checkpoints.load(tmp_path / name / "checkpoints", "last") for name in ("straight", "parts"))
    for key in ("model", "trained"):
        assert all(torch.equal(straight[key][name], value) for name, value in parts[key].items())
    assert straight["passage"] == parts["passage"]


# Averaged weights.


def test_averages_of_weights() -> None:
    model = build_model("mlp", sample_shape=(3,), kind="features", embedding_dim=2)
    averaged = AveragedWeights(model, 0.5)
    expected = model.head.weight.detach().double().clone()
    for step in range(1, 6):
        with torch.no_grad():
            model.head.weight.add_(step)
        averaged.update(model, step)
        share = 1 - min(0.5, (1 + step) / (10 + step))
        expected += share * (model.head.weight.double() - expected)
    torch.testing.assert_close(averaged.model.head.weight.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_average_is_evaluated_and_served(data: str, tmp_path: Path) -> None:
    train(out=tmp_path / "run", data=data, average=0.99, **SMALL, **NETWORK)
    state = checkpoints.load(tmp_path / "run" / "checkpoints", "last")
    assert not torch.equal(state["model"]["head.weight"], state["trained"]["head.weight"])
    last = records(tmp_path / "run", "evaluation")[-1]
    from dmlcore.serving import TrainedRun

    result = TrainedRun(tmp_path / "run", checkpoint="last").evaluate()
    assert result["metrics"]["validation"]["map@r"] == pytest.approx(last["map@r"], abs=1e-6)


# Length and beginning.


def test_patience(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {**SMALL, "steps": 200, "learning_rate": 1e-9, "patience": 3, "head_start": "principal"}
    result = train(out=tmp_path / "run", data=data, **flags)
    assert result["steps"] == 200 and result["steps_done"] == result["chosen_step"] + 6 < 200
    with pytest.raises(ConfigError, match="is complete"):
        train(resume=tmp_path / "run")
    again = train(resume=tmp_path / "run", patience=5)
    assert again["steps_done"] >= result["steps_done"] + 4


def test_a_frozen_trunk(data: str, tmp_path: Path) -> None:
    flags = {**SMALL, **NETWORK, "eval_every": 6}
    train(out=tmp_path / "frozen", data=data, freeze=6, **flags)
    train(out=tmp_path / "thawed", data=data, freeze=5, **flags)
    train(out=tmp_path / "free", data=data, steps=1, **{k: v for k, v in flags.items() if k != "steps"})
    start = weights(tmp_path / "frozen", "best" if records(tmp_path / "frozen", "evaluation")[0]["is_best"] else "last")
    frozen, thawed = weights(tmp_path / "frozen"), weights(tmp_path / "thawed")
    first = Run(RunConfig.create(data=data, **flags), RunFolder(tmp_path / "none")).model.state_dict()
    assert torch.equal(frozen["trunk.hidden.weight"], first["trunk.hidden.weight"])
    assert not torch.equal(frozen["head.weight"], first["head.weight"]) and start.keys() == first.keys()
    assert not torch.equal(thawed["trunk.hidden.weight"], first["trunk.hidden.weight"])


def test_features_are_where_training_begins(data: str, tmp_path: Path) -> None:
    result = train(out=tmp_path / "run", data=data, **SMALL)
    config = RunConfig.read(tmp_path / "run" / "config.toml").settings
    assert (config.model.trunk, config.model.embedding_dim, config.model.compress) == ("identity", 12, 0)
    assert config.optimiser.learning_rate == 5e-4
    first = records(tmp_path / "run", "evaluation")[0]
    assert first["map@r"] == pytest.approx(result["baselines"]["raw features"]["validation"]["map@r"], abs=1e-6)
    assert list(result["baselines"]) == ["raw features"]  # before training it ranks as these do
    shorter = train(out=tmp_path / "shorter", data=data, embedding_dim=11, **SMALL)
    assert list(shorter["baselines"]) == ["raw features", "before training"]


def test_a_preset_leaves_what_the_user_says(data: str) -> None:
    def completed(**values: Any) -> Any:
        return RunConfig.create(data=data, **values).completed("features", 2, (12,)).settings

    beside = completed(model="mlp")
    assert (beside.model.embedding_dim, beside.model.compress, beside.model.head_start) == (256, 0, "principal")
    assert (beside.optimiser.learning_rate, beside.run.eval_every) == (1e-3, 25)
    alone = completed(model="mlp", mlp={"skip": False})  # nothing of the features is left to begin with
    assert (alone.model.embedding_dim, alone.model.compress, alone.model.head_start) == (256, 64, "random")
    assert (alone.optimiser.learning_rate, alone.run.eval_every) == (2e-3, 100)
    assert completed(model="mlp", eval_every=7).run.eval_every == 7
    assert completed(embedding_dim=5).model.embedding_dim == 5
    settings = completed(compress=4, learning_rate=0.1)
    assert (settings.model.embedding_dim, settings.model.compress, settings.optimiser.learning_rate) == (12, 4, 0.1)
    heads = completed(ensemble="heads", plugins="ms,triplet")
    assert (heads.model.trunk, heads.model.head_start) == ("mlp", "random")
    with pytest.raises(ConfigError, match="options of 'whitened_pca' are given, but nothing is compressed"):
        completed(compressor="whitened_pca", whitened_pca={"shrinkage": 0.1})


def test_principal_axes_keep_most_of_the_features() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 3) @ torch.randn(3, 20) + 0.01 * torch.randn(200, 20)
    model = build_model("identity", sample_shape=(20,), kind="features", embedding_dim=3)
    assert model.needs_features_to_start
    model.start_head(x)
    raw = nn.functional.normalize(x, dim=1)
    torch.testing.assert_close(model(x) @ model(x).T, raw @ raw.T, rtol=0, atol=2e-3)
    weight = model.head.weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(3), rtol=0, atol=1e-5)
    wide = build_model("identity", sample_shape=(20,), kind="features", embedding_dim=24)
    wide.start_head(None)
    torch.testing.assert_close(wide(x)[:, :20], raw)


def test_a_run_begins_from_another(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train(out=tmp_path / "first", data=data, **SMALL, **NETWORK)
    train(out=tmp_path / "second", data=data, init=str(tmp_path / "first"), **{**SMALL, "plugins": "triplet"}, **NETWORK)
    assert records(tmp_path / "second", "evaluation")[0]["map@r"] == pytest.approx(first["metrics"]["validation"]["map@r"])
    other = train(out=tmp_path / "third", data=data, init=str(tmp_path / "first"), **SMALL, **{**NETWORK, "embedding_dim": 5})
    assert "untrained network" in other["baselines"]
    shutil.move(tmp_path / "first", tmp_path / "gone")
    (tmp_path / "second" / "result.json").unlink()
    again = train(resume=tmp_path / "second", steps=8)  # what it began from is not needed any more
    assert again["steps"] == 8 and "untrained network" not in again["baselines"]
    for init, told in ((tmp_path / "first", "there is no run"), (tmp_path / "gone", "has another trunk")):
        flags = ["--data", data, "--init", str(init), "--model", "identity", "--plugins", "ms", "--out", str(tmp_path / "x")]
        assert main(["train", *flags]) == 2
        assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_compiled_model(data: str, tmp_path: Path) -> None:
    for name, compiles in (("plain", False), ("compiled", True)):
        train(out=tmp_path / name, data=data, compile=compiles, **SMALL, **NETWORK)
    plain, compiled = (records(tmp_path / name) for name in ("plain", "compiled"))
    assert [r["total"] for r in compiled] == pytest.approx([r["total"] for r in plain], rel=1e-4)


# Warnings.


def _record(step: int, **values: Any) -> StepRecord:
    return StepRecord(1.0, {}, {"ms": 1.0}, {"ms": values.pop("active", 1.0)}, {"ms": 1.0}, {}, {}, {}, {}, step, **values)


def _guards(head_dim: int = 8, step: int = 0) -> guards.Guards:
    ensemble = SimpleNamespace(names=["ms"], members=[create("ms")])
    return guards.Guards(SimpleNamespace(ensemble=ensemble, model=SimpleNamespace(head_dim=head_dim), step=step))  # type: ignore[arg-type]


def test_warnings_about_steps() -> None:
    watch = _guards()
    told = [text for step in range(1, 200) for text in watch.of_step(_record(step, active=0.0))]
    assert len(told) == 1 and "'ms' had no active sample in 50 steps" in told[0]
    told = [text for step in range(1, 200) for text in watch.of_step(_record(step, is_skipped=step > 30))]
    assert len(told) == 1 and "overflowed in float16" in told[0]
    told = [text for step in (50, 150, 200) for text in watch.of_step(_record(step, effective_rank=1.1))]
    assert len(told) == 1 and told[0].startswith("step 150: the embeddings of a batch have collapsed onto 1.1 directions")
    assert not list(_guards(2).of_step(_record(150, effective_rank=1.1)))  # two numbers are never more
    assert list(watch.of_batch(torch.arange(4))) and not list(watch.of_batch(torch.arange(4)))
    assert not list(_guards().of_batch(torch.tensor([0, 1, 1])))


def test_warnings_about_evaluations() -> None:
    watch = _guards()
    assert not [text for score in (0.5, 0.4, 0.6, 0.4, 0.4) for text in watch.of_evaluation(score)]
    assert [text for score in (0.4, 0.4) for text in watch.of_evaluation(score)] == [watch.told[0]]
    assert "below the one before any training" in watch.told[0]
    resumed = _guards(step=10)  # what was before is not known
    (text,) = (text for score in (0.5, 0.4, 0.4, 0.4) for text in resumed.of_evaluation(score))
    assert "below the one of step 10" in text


def test_effective_rank() -> None:
    assert effective_rank(torch.ones(5, 4)) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.eye(6)) == pytest.approx(6)


def test_proxies_that_never_move_are_told(data: str, tmp_path: Path) -> None:
    result = train(out=tmp_path / "run", data=data, proxies_factor=1e-30, **{**SMALL, "plugins": "norm_softmax"}, **NETWORK)
    assert any("proxies of 'norm_softmax' have not moved" in text for text in result["warnings"])


def test_advice_where_training_made_it_worse(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--embedding-dim", "2", "--compress", "0", "--head-start", "random", "--steps", "2", "--plugins", "ms"]
    assert main(["train", "--data", data, "--out", str(tmp_path / "run"), *flags]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "worse than the raw features: validation R@1" in text and "--head-start principal" in text
    better = {"test": {"recall@1": 0.5, "map@r": 0.5}}
    assert advice(better, {"raw features": {"test": {"recall@1": 0.5, "map@r": 0.4}}}, is_random=False) == []
    worse = {"raw features": {"test": {"recall@1": 0.6, "map@r": 0.4}}}
    assert "Try a smaller --learning-rate" in advice(better, worse, is_random=False)[-1]
    assert "Try more --steps" in advice(better, worse, is_random=False, still_rose=True)[-1]


def test_the_memory_of_a_step() -> None:
    model = build_model("conv", sample_shape=(3, 32, 32), kind="images", embedding_dim=16)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    sizes = [requirements.bytes_of_a_step(model, (3, 32, 32), samples) for samples in (64, 128)]
    weights_only = 4 * sum(p.numel() * 4 for p in model.parameters())
    assert (sizes[1] - weights_only) == pytest.approx(2 * (sizes[0] - weights_only), rel=0.01)
    assert sizes[1] > weights_only + 128 * 3 * 32 * 32 * 4
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert [requirements.told(size) for size in (9_000_000_000, 12_300_000, 3)] == [
        "about 9 GB",
        "about 12 MB",
        "less than 1 MB",
    ]


def test_what_cannot_train_is_refused(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["train", "--data", data, "--plugins", "ms", "--steps", "2", "--out", str(tmp_path / "run")]
    whole = ["--head", "none"]
    for more, told in (
        (whole, "there is nothing to train"),
        ([*whole, "--freeze", "1"], "freeze is 1, but head is none"),
        (["--processes", "0"], "processes is 0"),
    ):
        assert main([*flags, *more]) == 2
        assert told in " ".join(capsys.readouterr().err.split())


def test_embeddings_name_the_row_of_each_sample(data: str, tmp_path: Path) -> None:
    train(out=tmp_path / "run", data=data, **SMALL)
    assert main(["embed", str(tmp_path / "run"), "--data", data, "--out", str(tmp_path / "e.npz")]) == 0
    with np.load(data) as own, np.load(tmp_path / "e.npz") as embeddings:
        assert sorted(embeddings["row"]) == list(range(len(own["y"])))
        assert [str(own["y"][row]) for row in embeddings["row"]] == embeddings["class_name"].tolist()


def test_features_that_begin_from_a_run_are_compared_with_its_weights(data: str, tmp_path: Path) -> None:
    first = train(out=tmp_path / "first", data=data, learning_rate=0.01, **{**SMALL, "steps": 20})
    assert first["chosen_step"] > 0
    second = train(out=tmp_path / "second", data=data, init=str(tmp_path / "first"), **SMALL)
    assert list(second["baselines"]) == ["raw features", "before training"]
    assert second["baselines"]["before training"]["test"] == pytest.approx(first["metrics"]["test"], abs=1e-6)
