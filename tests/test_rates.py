"""Rates, decay and warm-up by role and by the depth of the trunk, against independent calculations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dmlcore.errors import ConfigError
from dmlcore.models import build_trunk
from dmlcore.models.stages import stages_of
from dmlcore.training import RunConfig, train
from dmlcore.training.folder import RunFolder
from dmlcore.training.run import Run
from dmlcore.training.step import take_step

ROLES = ("trunk", "head", "proxies", "classifier", "scalars", "weights")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "features.npz"
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(24), 6)
    np.savez(path, x=(generator.normal(size=(24, 8))[labels] + generator.normal(size=(144, 8))).astype(np.float32), y=labels)
    return str(path)


def settings(data: str, **values: Any) -> dict[str, Any]:
    common = {"data": data, "plugins": "ms", "steps": 8, "eval_every": 4, "classes_per_batch": 4, "model": "mlp", "compress": 0}
    return {**common, "report": False, "embedding_dim": 6, **values}


def new_run(data: str, folder: Path, **values: Any) -> Run:
    return Run(RunConfig.create(**settings(data, **values)), RunFolder(folder))


def test_every_role_steps_by_its_own_rate_and_decay(data: str, tmp_path: Path) -> None:
    factors = {"head": 0.5, "proxies": 3.0, "classifier": 7.0, "scalars": 2.0, "weights": 0.25}
    decays = {"head": 0.1, "proxies": 0.2, "classifier": 0.3, "scalars": 0.4, "weights": 0.05}
    run = new_run(
        data,
        tmp_path,
        plugins="cross_entropy,norm_softmax,margin",
        margin={"learn_beta": True},
        weighting="uncertainty",
        optimizer="sgd",
        sgd={"momentum": 0.0},
        learning_rate=0.01,
        weight_decay=0.02,
        clip="none",
        **{f"{role}_factor": value for role, value in factors.items()},
        **{f"{role}_decay": value for role, value in decays.items()},
    )
    assert [group["role"] for group in run.optimiser.param_groups] == list(ROLES)
    cross_entropy, norm_softmax, margin = run.ensemble.members
    owners = {
        "trunk": list(run.model.trunk.parameters()),
        "head": list(run.model.head.parameters()),
        "proxies": [norm_softmax.proxies],
        "classifier": list(cross_entropy.parameters()),
        "scalars": list(margin.parameters()),
        "weights": list(run.ensemble.weighting.parameters()),
    }
    rate = {"trunk": 0.01, **{role: 0.01 * value for role, value in factors.items()}}
    decay = {"trunk": 0.02, **decays}
    before = {role: [p.detach().clone() for p in owned] for role, owned in owners.items()}
    take_step(run, *next(run.batches()), factor=1.0)
    for role in ROLES:
        for p, old in zip(owners[role], before[role], strict=True):
            gradient = torch.zeros_like(old) if p.grad is None else p.grad
            torch.testing.assert_close(p.detach(), old - rate[role] * (gradient + decay[role] * old), rtol=1e-5, atol=1e-7)
            assert not torch.equal(p.detach(), old)


def test_without_own_values_a_classifier_learns_with_the_proxies(data: str, tmp_path: Path) -> None:
    run = new_run(data, tmp_path, plugins="cross_entropy,norm_softmax", weighting="fixed")
    groups = {group["role"]: group for group in run.optimiser.param_groups}
    assert list(groups) == ["trunk", "head", "proxies"] and groups["proxies"]["weight_decay"] == 0
    assert {id(p) for p in groups["proxies"]["params"]} == {id(p) for p in run.ensemble.parameters()}


def test_vectors_need_not_decay(data: str, tmp_path: Path) -> None:
    run = new_run(data, tmp_path, decay_vectors=False, weight_decay=0.5)
    for group in run.optimiser.param_groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.5}
    assert {id(p) for group in run.optimiser.param_groups for p in group["params"]} == {id(p) for p in run.model.parameters()}


@pytest.mark.parametrize("name, expected", [("adam", 1 - 0.1), ("adamw", 1 - 0.1 * 0.01)])
def test_the_decay_of_adam_is_part_of_the_gradient_and_that_of_adamw_is_not(name: str, expected: float) -> None:
    from dmlcore import plugins

    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    built = plugins.find("optimizer", name).component().build([{"params": [weight], "lr": 0.1, "weight_decay": 0.01}])
    weight.grad = torch.zeros(1, dtype=torch.float64)
    built.step()
    assert weight.item() == pytest.approx(expected, abs=1e-6)  # Adam divides 0.01 by its own size


# Depth.


def first_parts(trunk: nn.Module, prefix: str = "") -> list[set[str]]:
    """The first two parts of the names of each stage's parameters."""
    names = {id(p): name.removeprefix(prefix) for name, p in trunk.named_parameters()}
    return [{".".join(names[id(p)].split(".")[:2]) for p in stage.parameters()} for stage in stages_of(trunk)]


def test_stages_of_our_trunks() -> None:
    conv = build_trunk("conv", sample_shape=(1, 16, 16), kind="images")
    convolutions = {name for name, layer in conv.named_modules() if isinstance(layer, nn.Conv2d)}
    parts = first_parts(conv)
    assert [len(part & convolutions) for part in parts] == [1] * 4
    assert [len(part) for part in parts] == [2] * 4  # each with its normalisation
    assert len(stages_of(build_trunk("mlp", sample_shape=(5,), kind="features"))) == 1
    assert stages_of(nn.Identity()) == []


def test_stages_of_networks_of_torchvision() -> None:
    pytest.importorskip("torchvision")
    resnet = build_trunk("torchvision/resnet18", sample_shape=(3, 32, 32), kind="images", options={"weights": "none"})
    parts = [{name.partition(".")[0] for name in names} for names in first_parts(resnet, "network.")]
    assert parts == [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]
    vit = build_trunk("torchvision/vit_b_16", sample_shape=(3, 32, 32), kind="images", options={"weights": "none"})
    stages = stages_of(vit)
    assert len(stages) == 13
    names = {id(p): name for name, p in vit.named_parameters()}
    assert {"network.class_token", "network.conv_proj.weight"} <= {names[id(p)] for p in stages[0].parameters()}
    assert any(names[id(p)].startswith("network.encoder.ln.") for p in stages[-1].parameters())


def test_stages_of_networks_of_timm() -> None:
    pytest.importorskip("timm")
    options = {"weights": "none"}
    vit = build_trunk("timm/vit_tiny_patch16_224", sample_shape=(3, 32, 32), kind="images", options=options)
    parts = first_parts(vit, "network.")
    assert len(parts) == 13 and {"cls_token", "pos_embed", "patch_embed.proj"} <= parts[0]
    assert [part & {f"blocks.{n}"} for n, part in enumerate(parts[1:])] == [{f"blocks.{n}"} for n in range(12)]
    convnext = build_trunk("timm/convnext_atto", sample_shape=(3, 32, 32), kind="images", options=options)
    parts = first_parts(convnext, "network.")
    assert parts[0] == {"stem.0", "stem.1"} and [f"stages.{n}" in parts[n + 1] for n in range(4)] == [True] * 4


def test_the_rate_decays_towards_the_input(tmp_path: Path) -> None:
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(8), 6)
    np.savez(tmp_path / "i.npz", x=generator.integers(0, 255, (48, 16, 16), dtype=np.uint8), y=labels)
    run = new_run(str(tmp_path / "i.npz"), tmp_path / "run", model="conv", layer_decay=0.5, learning_rate=0.08, compress=0)
    rate_of = {id(p): group["lr"] for group in run.optimiser.param_groups for p in group["params"]}
    convolutions = [layer for layer in run.model.trunk.modules() if isinstance(layer, nn.Conv2d)]
    assert [rate_of[id(layer.weight)] for layer in convolutions] == pytest.approx([0.01, 0.02, 0.04, 0.08])
    assert all(rate_of[id(p)] == 0.08 for p in run.model.head.parameters())
    assert set(rate_of) == {id(p) for p in run.model.parameters()}
    record = take_step(run, *next(run.batches()), factor=0.5)
    assert record.learning_rates["trunk"] == pytest.approx(0.04)  # of the last stage


def test_the_trunk_rises_on_its_own(data: str, tmp_path: Path) -> None:
    train(out=tmp_path / "run", **settings(data, freeze=2, trunk_warmup=4, warmup=0, schedule="constant", learning_rate=0.1))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rates"] for line in lines if line["kind"] == "step"]
    assert [rate["head"] for rate in rates] == pytest.approx([0.1] * 8)
    assert [rate["trunk"] for rate in rates] == pytest.approx([0, 0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_every_role_rises_on_its_own(data: str, tmp_path: Path) -> None:
    warmups = {"head": 2, "proxies": 3, "classifier": 4, "scalars": 5, "weights": 6}
    losses = {"plugins": "cross_entropy,norm_softmax,margin", "margin": {"learn_beta": True}, "weighting": "uncertainty"}
    equal = {f"{role}_factor": 1.0 for role in warmups} | {"warmup": 0, "schedule": "constant", "learning_rate": 0.01}
    rising = {f"{role}_warmup": steps for role, steps in warmups.items()}
    train(out=tmp_path / "run", **settings(data, **losses, **equal, **rising))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rates"] for line in lines if line["kind"] == "step"]
    for role, steps in {"trunk": 1, **warmups}.items():
        expected = [0.01 * min(1, (step + 1) / steps) for step in range(8)]
        assert [rate[role] for rate in rates] == pytest.approx(expected), role


def test_what_nothing_has_is_refused(data: str, tmp_path: Path) -> None:
    for values, told in (
        ({"classifier_factor": 2.0}, "no loss has a classifier"),
        ({"classifier_decay": 0.1}, "no loss has a classifier"),
        ({"proxies_decay": 0.1}, "no loss has proxies"),
        ({"weights_decay": 0.1}, "learns no weights"),
        ({"proxies_warmup": 5}, "no loss has proxies"),
        ({"classifier_warmup": 0}, "no loss has a classifier"),
        ({"head": "none", "embedding_dim": "none", "head_decay": 0.1}, "no embedding head"),
    ):
        with pytest.raises(ConfigError, match=told):
            new_run(data, tmp_path, **values)
    for key, value in (("layer_decay", 0), ("layer_decay", 1.5), ("head_decay", -1), ("trunk_warmup", -1), ("head_warmup", -1)):
        with pytest.raises(ConfigError, match=key):
            RunConfig.create(**{key: value})


def test_files_of_before_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("format = 2\n[optimiser]\nhead_factor = 0.5\nfreeze = 3\nweight_decay = 0.1\n")
    read = RunConfig.read(tmp_path / "config.toml").settings
    assert (read.rates.head_factor, read.rates.freeze, read.optimiser.weight_decay) == (0.5, 3, 0.1)
    (tmp_path / "config.toml").write_text("[optimiser]\nlayer_decay = 0.5\n")
    with pytest.raises(ConfigError, match=r"setting of \[rates\]"):
        RunConfig.read(tmp_path / "config.toml")
