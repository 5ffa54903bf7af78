"""Every hook is described, in docs/guide/plugins.md too, and has a test here whose name contains it."""

from __future__ import annotations

import ast
import inspect
import json
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dmlcore
from dmlcore import cli, hookspecs, plugins
from dmlcore.authoring import hook_reference
from dmlcore.authoring.reference import BEGIN, END, hook_names
from dmlcore.data import BatchSampler, DataSource, FeatureStore, Table, Transform, TransformOptions
from dmlcore.ensemble import Compressor, Weighting
from dmlcore.errors import ConfigError, PluginError, TrainingError
from dmlcore.evaluation import Metric
from dmlcore.losses import Loss, Miner
from dmlcore.models import Trunk
from dmlcore.training import Logger, Optimizer, RunConfig, Schedule, train

ROOT = Path(__file__).parents[1]
SHORT: dict[str, Any] = {"classes_per_batch": 6, "embedding_dim": 8, "eval_every": 2, "steps": 2, "plugins": "contrastive"}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(24), 6)
    path = tmp_path_factory.mktemp("data") / "features.npz"
    x = generator.normal(size=(24, 10))[labels] + generator.normal(size=(144, 10))
    np.savez(path, x=x.astype(np.float32), y=labels)
    return str(path)


@contextmanager
def installed(**hooks: Callable[..., Any]) -> Iterator[None]:
    """A plugin with these hooks, known to the process for a while."""
    plugin = types.SimpleNamespace(**{name: dmlcore.hookimpl(function) for name, function in hooks.items()})
    plugins.register(plugins.manager(), plugin, "guest")
    plugins.registry.cache_clear()
    try:
        yield
    finally:
        plugins.manager().unregister(plugin)
        plugins.registry.cache_clear()


def test_every_hook_has_a_test_a_description_and_a_paragraph() -> None:
    tests = [node.name for node in ast.parse(Path(__file__).read_text()).body if isinstance(node, ast.FunctionDef)]
    text = (ROOT / "docs" / "guide" / "plugins.md").read_text(encoding="utf-8")
    assert len(hook_names()) == 19 and {kind.hook for kind in plugins.KINDS.values()} < set(hook_names())
    for name in hook_names():
        hook = getattr(hookspecs, name)
        assert any(f"test_{name}" in test for test in tests), f"{name} has no test in {Path(__file__).name}"
        assert f"### `{name}(" in text, f"{name} has no paragraph: run `dmlcore plugins hooks --write docs/guide/plugins.md`"
        words = inspect.cleandoc(hook.__doc__ or "")
        for argument in inspect.signature(hook).parameters:
            assert f"\n    {argument}: " in words, f"the docstring of {name} says nothing about {argument}"
        assert "Args:" in words or "Returns:" in words, name


def test_the_reference_in_the_docs_is_the_generated_one() -> None:
    text = (ROOT / "docs" / "guide" / "plugins.md").read_text(encoding="utf-8")
    part = text.split(BEGIN)[1].split(END)[0].strip()
    assert part == hook_reference().strip(), "it has drifted: run `dmlcore plugins hooks --write docs/guide/plugins.md`"


class GuestLoss(Loss):
    """The mean square of the embeddings."""

    name = "guest_loss"

    def forward(self, embeddings, labels, *, references=None, reference_labels=None, own=None, relation=None):
        return embeddings.square().mean()


def test_dmlcore_losses(features: str, tmp_path: Path) -> None:
    with installed(dmlcore_losses=lambda: [GuestLoss]):
        assert plugins.find("loss", "guest_loss").owner == "guest"
        result = train(out=tmp_path / "run", data=features, **{**SHORT, "plugins": "contrastive,guest_loss"})
    assert [loss["name"] for loss in result["losses"]] == ["contrastive", "guest_loss"]


def test_dmlcore_kernel_headers(tmp_path: Path) -> None:
    header = tmp_path / "guest.h"
    header.write_text("// a functor")
    with installed(dmlcore_kernel_headers=lambda: [str(header)]):
        assert plugins.kernel_headers(plugins.manager()) == {header: "guest"}
    with installed(dmlcore_kernel_headers=lambda: [tmp_path / "none.h"]):
        with pytest.raises(PluginError, match=r"dmlcore_kernel_headers of guest names .*none\.h, which is no file"):
            plugins.kernel_headers(plugins.manager())
    with installed(dmlcore_kernel_headers=lambda: 1 / 0):
        with pytest.raises(PluginError, match="dmlcore_kernel_headers of guest failed: ZeroDivisionError"):
            plugins.kernel_headers(plugins.manager())


class GuestMiner(Miner):
    """Keeps nothing."""

    name = "guest_miner"

    def masks(self, similarities, positive, negative, compared):
        return torch.zeros_like(positive), torch.zeros_like(negative)


def test_dmlcore_miners(features: str, tmp_path: Path) -> None:
    with installed(dmlcore_miners=lambda: [GuestMiner]):
        x, y = torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
        assert float(dmlcore.losses.create("contrastive", miner="guest_miner")(x, y)) == 0
        assert float(dmlcore.losses.create("contrastive")(x, y)) > 0


class GuestWeighting(Weighting):
    """The first loss alone."""

    name = "guest_weighting"

    def forward(self, terms):
        return terms[0]

    @property
    def weights(self):
        return torch.eye(len(self.initial))[0]


def test_dmlcore_weightings(features: str, tmp_path: Path) -> None:
    with installed(dmlcore_weightings=lambda: [GuestWeighting]):
        ensemble = dmlcore.LossEnsemble(["contrastive", "ms"], weighting="guest_weighting")
        x, y = torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
        torch.testing.assert_close(ensemble(x, y), dmlcore.losses.create("contrastive")(x, y))


class GuestCompressor(Compressor):
    """The first columns."""

    name = "guest_compressor"

    def learn(self, embeddings, labels, seed):
        pass

    def forward(self, z):
        self.check_fitted()
        return z[:, : self.out]


def test_dmlcore_compressors(features: str, tmp_path: Path) -> None:
    with installed(dmlcore_compressors=lambda: [GuestCompressor]):
        settings = {**SHORT, "compress": 4, "compressor": "guest_compressor"}
        result = train(out=tmp_path / "run", data=features, **settings)
    assert result["embeddings"]["compressed"]["test"]["embedding_dim"] == 4


class GuestTrunk(Trunk):
    """The features, negated."""

    name = "guest_trunk"
    accepts = frozenset(("features",))
    Options = TransformOptions

    def __init__(self, options, sample_shape):
        super().__init__(options, sample_shape)
        self.features = sample_shape[0]

    def forward(self, samples):
        return -samples


def test_dmlcore_models(features: str, tmp_path: Path) -> None:
    with installed(dmlcore_models=lambda: [GuestTrunk]):
        result = train(out=tmp_path / "run", data=features, model="guest_trunk", **SHORT)
    assert result["parameters"] == 10 * 8 + 8


class GuestData(DataSource):
    """Random features."""

    name = "guest_data"
    Options = TransformOptions

    def load(self):
        labels = np.repeat(np.arange(24), 4)
        x = np.random.default_rng(0).normal(size=(96, 7)).astype(np.float32)
        return Table("features", FeatureStore(x), labels, [str(k) for k in range(24)], (7,))


def test_dmlcore_datasets(tmp_path: Path) -> None:
    with installed(dmlcore_datasets=lambda: [GuestData]):
        result = train(out=tmp_path / "run", data="guest_data", **SHORT)
    assert result["data"]["name"] == "guest_data"


class GuestTransform(Transform):
    """Nothing is left of the samples."""

    name = "guest_transform"
    accepts = frozenset(("features",))

    def __call__(self, samples, generator):
        return torch.zeros_like(samples)


def test_dmlcore_transforms(features: str, tmp_path: Path) -> None:
    with installed(dmlcore_transforms=lambda: [GuestTransform]):
        seen: list[float] = []

        class Watch(Logger):
            def started(self, run):
                state = run.sampler.state_dict()
                inputs, _ = next(run.batches())
                run.sampler.load_state_dict(state)
                seen.append(float(inputs.abs().max()))

        result = train(out=tmp_path / "run", data=features, transforms="guest_transform", loggers=[Watch()], **SHORT)
        assert seen == [0.0] and "warnings" not in result
        assert 'transforms = [\n    "guest_transform",\n]' in (tmp_path / "run" / "config.toml").read_text()
    with pytest.raises(ConfigError, match="the transform 'crop' changes images, but the data are features"):
        train(out=tmp_path / "other", data=features, transforms="crop", **SHORT)


class GuestSampler(BatchSampler):
    """The first samples again and again."""

    name = "guest_sampler"

    def draw(self, step):
        return np.arange(self.classes_per_batch * self.samples_per_class)


def test_dmlcore_samplers(features: str, tmp_path: Path) -> None:
    with installed(dmlcore_samplers=lambda: [GuestSampler]):
        seen: list[list[int]] = []

        class Watch(Logger):
            def started(self, run):
                seen.extend(labels.tolist() for _, labels in run.batches())
                run.sampler.step = 0

        train(out=tmp_path / "run", data=features, sampler="guest_sampler", loggers=[Watch()], **SHORT)
        assert len(seen) == 2 and seen[0] == seen[1] and len(set(seen[0])) == 4  # six samples of each class
    shuffled = train(out=tmp_path / "shuffled", data=features, sampler="shuffled", **SHORT)
    assert shuffled["steps"] == 2


class GuestOptimizer(Optimizer):
    """No step at all."""

    name = "guest_optimizer"

    def build(self, groups):
        return torch.optim.SGD([{**group, "lr": 0.0, "base_rate": 0.0} for group in groups])


def test_dmlcore_optimizers(features: str, tmp_path: Path) -> None:
    with installed(dmlcore_optimizers=lambda: [GuestOptimizer]):
        train(out=tmp_path / "run", data=features, optimizer="guest_optimizer", **SHORT)
        records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert len({record["map@r"] for record in records if record["kind"] == "evaluation"}) == 1


class GuestSchedule(Schedule):
    """A tenth of the rate."""

    name = "guest_schedule"

    def factor(self, step, steps, warmup):
        return 0.1


def test_dmlcore_schedules(features: str, tmp_path: Path) -> None:
    with installed(dmlcore_schedules=lambda: [GuestSchedule]):
        train(out=tmp_path / "run", data=features, schedule="guest_schedule", learning_rate=0.5, warmup=0, **SHORT)
        records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert {round(r["learning_rates"]["head"], 9) for r in records if r["kind"] == "step"} == {0.05}


class GuestMetric(Metric):
    """The number of samples."""

    name = "guest_metric"

    def __call__(self, embeddings, labels):
        return {"count": float(len(labels)), "nothing": float("nan")}


def test_dmlcore_metrics(features: str, tmp_path: Path) -> None:
    with installed(dmlcore_metrics=lambda: [GuestMetric]):
        settings = {**SHORT, "metrics": "guest_metric,uniformity"}
        result = train(out=tmp_path / "run", data=features, **settings)
        test = result["metrics"]["test"]
        assert test["guest_metric.count"] == test["queries"] and test["guest_metric.nothing"] is None
        assert test["uniformity.uniformity"] < 0 and test["uniformity.alignment"] > 0
        assert result["baselines"]["raw features"]["test"]["guest_metric.count"] == test["queries"]
        assert '"guest_metric.count"' in (tmp_path / "run" / "metrics.jsonl").read_text()
        from dmlcore.serving import TrainedRun

        again = TrainedRun(tmp_path / "run").evaluate()
        assert again["metrics"]["test"]["uniformity.uniformity"] == pytest.approx(test["uniformity.uniformity"])


class GuestLogger(Logger):
    """Counts what it hears."""

    name = "guest_logger"
    heard: tuple[str, ...] = ()

    def started(self, run):
        GuestLogger.heard += ("started",)

    def checkpoint_saved(self, run, name, path):
        assert path.exists()
        GuestLogger.heard += (name,)

    def closed(self):
        GuestLogger.heard += ("closed",)


def test_dmlcore_loggers(features: str, tmp_path: Path) -> None:
    with installed(dmlcore_loggers=lambda: [GuestLogger]):
        train(RunConfig.create(data=features, loggers="guest_logger", **SHORT), out=tmp_path / "run")
    assert GuestLogger.heard[:2] == ("started", "best") and GuestLogger.heard[-2:] == ("last", "closed")


def test_dmlcore_commands(capsys: pytest.CaptureFixture[str]) -> None:
    def commands(app: Any) -> None:
        @app.command
        def guest_command(number: int = 1) -> int:
            """Divide."""
            print(6 // number)
            return 0

    with installed(dmlcore_commands=commands):
        assert cli.main(["guest-command", "--number", "2"]) == 0
        assert capsys.readouterr().out == "3\n"


@contextmanager
def failing(event: str) -> Iterator[list[str]]:
    """A plugin that hears of an event and raises, and one that hears of it too; gives what the second one heard."""
    heard: list[str] = []

    arguments = list(inspect.signature(getattr(hookspecs, f"dmlcore_{event}")).parameters)
    names = ", ".join(arguments)
    space: dict[str, Any] = {"heard": heard}
    exec(
        f"def fail({names}): raise RuntimeError('guest of {event}')\ndef hear({names}): heard.append(str({arguments[-1]}))",
        space,
    )
    first, second = types.SimpleNamespace(), types.SimpleNamespace()
    setattr(first, f"dmlcore_{event}", dmlcore.hookimpl(space["fail"]))
    setattr(second, f"dmlcore_{event}", dmlcore.hookimpl(space["hear"]))
    plugins.register(plugins.manager(), second, "listener")
    plugins.register(plugins.manager(), first, "faulty")
    try:
        yield heard
    finally:
        plugins.manager().unregister(first)
        plugins.manager().unregister(second)


def goes_on(event: str, times: int, features: str, tmp_path: Path) -> None:
    with failing(event) as heard:
        result = train(out=tmp_path / "run", data=features, **SHORT)
    assert len(heard) == times and (tmp_path / "run" / "result.json").exists()
    said = result.get("warnings", [])
    if event != "training_ended":  # result.json is written by then
        assert said == [
            f"the hook dmlcore_{event} of faulty failed: RuntimeError: guest of {event}. Training goes on; this is said once."
        ]


def test_dmlcore_training_started(features: str, tmp_path: Path) -> None:
    goes_on("training_started", 1, features, tmp_path)


def test_dmlcore_step_ended(features: str, tmp_path: Path) -> None:
    goes_on("step_ended", 2, features, tmp_path)


def test_dmlcore_evaluated(features: str, tmp_path: Path) -> None:
    goes_on("evaluated", 2, features, tmp_path)


def test_dmlcore_checkpoint_saved(features: str, tmp_path: Path) -> None:
    with failing("checkpoint_saved") as heard:
        train(out=tmp_path / "run", data=features, **SHORT)
    assert [Path(path).stem for path in heard if "last" in path] == ["last", "last"] and any("best" in path for path in heard)


def test_dmlcore_training_ended(features: str, tmp_path: Path) -> None:
    goes_on("training_ended", 1, features, tmp_path)


def test_an_event_hook_may_stop_a_run(features: str, tmp_path: Path) -> None:
    def stop(run: Any) -> None:
        raise TrainingError("the oven is on")

    with installed(dmlcore_training_started=stop), pytest.raises(TrainingError, match="the oven is on"):
        train(out=tmp_path / "run", data=features, **SHORT)


class FaultyLoss(GuestLoss):
    """Fails at the second call."""

    name = "faulty_loss"
    calls = 0

    def forward(self, embeddings, labels, **references):
        FaultyLoss.calls += 1
        if FaultyLoss.calls == 2:
            raise RuntimeError("no idea")
        return embeddings.square().mean()


def test_a_component_that_fails_stops_the_run_and_is_named(features: str, tmp_path: Path) -> None:
    with installed(dmlcore_losses=lambda: [FaultyLoss]), pytest.raises(PluginError) as caught:
        train(out=tmp_path / "run", data=features, **{**SHORT, "plugins": "contrastive,faulty_loss"})
    assert str(caught.value) == (
        "loss 'faulty_loss' of guest (dmlcore_losses) failed: RuntimeError: no idea. Training stops after step 1;"
        " the checkpoint of step 0 is intact. `--debug` shows where."
    )


class FaultyMetric(GuestMetric):
    """Fails."""

    name = "faulty_metric"

    def __call__(self, embeddings, labels):
        return {}["missing"]


def test_other_components_that_fail_are_named_too(features: str, tmp_path: Path) -> None:
    with installed(dmlcore_metrics=lambda: [FaultyMetric]):
        with pytest.raises(PluginError, match=r"metric 'faulty_metric' of guest \(dmlcore_metrics\) failed: KeyError"):
            train(out=tmp_path / "run", data=features, **{**SHORT, "metrics": "faulty_metric"})


def test_what_is_no_plugins_fault_passes_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), plugins.blaming():
        1 / 0  # noqa: B018


def test_wrappers_of_hooks_are_refused() -> None:
    def wrap(run: Any) -> Iterator[None]:
        yield

    plugin = types.SimpleNamespace(dmlcore_training_started=dmlcore.hookimpl(wrapper=True)(wrap))
    with pytest.raises(PluginError, match="'guest' is refused: dmlcore_training_started is a wrapper"):
        plugins.register(plugins.new_manager(), plugin, "guest")
