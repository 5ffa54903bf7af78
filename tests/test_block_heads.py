"""Heads that each see another block of the trunk: values, gradients, a run from its start to its evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupting import Stop, records
from torch.nn import functional

import dmlcore
from dmlcore import cli
from dmlcore.errors import ConfigError
from dmlcore.models import EmbeddingModel, architecture_of, build_architecture, build_model, serving_state
from dmlcore.serving import TrainedRun
from dmlcore.training import train

CHANNELS = (3, 4, 6)


def model_of(heads: int = 3, blocks: int = 3, **head: Any) -> EmbeddingModel:
    options = {"channels": CHANNELS, "pooled_blocks": blocks}
    settings = {"sample_shape": (1, 8, 8), "kind": "images", "embedding_dim": 5, "options": options}
    return build_model("conv", **settings, heads=heads, heads_see_blocks=True, **head)


def features_of_blocks(model: EmbeddingModel, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Mean and maximum over the places behind every block, the deepest last."""
    pooled, places = [], pixels - 0.5
    blocks: Any = model.trunk.blocks
    for layer in blocks:
        places = layer(places)
        if isinstance(layer, torch.nn.ReLU):
            flat = places.flatten(2)
            pooled.append(torch.cat([flat.mean(2), flat.amax(2)], 1))
    return pooled


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("hidden", [0, 7, None])
@pytest.mark.parametrize(("heads", "blocks", "of_head"), [(3, 3, (2, 1, 0)), (3, 2, (2, 1, 2)), (2, 2, (2, 1))])
def test_the_first_head_sees_the_deepest_block(
    pixels: torch.Tensor, heads: int, blocks: int, of_head: tuple[int, ...], hidden: int | None
) -> None:
    model = model_of(heads, blocks, head_hidden=hidden).double()
    gradients = []
    cotangent = torch.randn(7, 5 * heads, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reference = []
    for head, block in enumerate(of_head):
        maps = [layer for layer in model.head.heads[head].modules() if isinstance(layer, torch.nn.Linear)]  # type: ignore[union-attr, index]
        values = features_of_blocks(model, pixels)[block]
        assert maps[0].in_features == 2 * CHANNELS[block]
        for layer in maps[:-1]:
            values = (values @ layer.weight.T + layer.bias).clamp(min=0)
        values = values @ maps[-1].weight.T + maps[-1].bias
        reference.append(values / values.square().sum(1, keepdim=True).sqrt())
    for outputs in (model(pixels), torch.cat(reference, 1)):
        model.zero_grad()
        (outputs * cotangent).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(model(pixels), torch.cat(reference, 1), rtol=1e-9, atol=1e-12)
    for own, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-7, atol=1e-10)


def test_a_head_reaches_no_block_behind_its_own(pixels: torch.Tensor) -> None:
    model = model_of().double()
    model(pixels)[:, 5:10].square().cumsum(1).sum().backward()  # the second head
    blocks: Any = model.trunk.blocks
    slopes = [bool(layer.weight.grad.any()) if layer.weight.grad is not None else False for layer in blocks[::4]]
    assert len(slopes) == 3 and slopes == [True, True, False]


def test_it_is_built_again_of_its_description(pixels: torch.Tensor) -> None:
    model = model_of(head_norm="layer").eval()
    described = architecture_of(model)
    again = build_architecture(described, (1, 8, 8), "images")
    again.load_state_dict(serving_state(model))
    assert torch.equal(again.eval().serve(pixels.float()), model.serve(pixels.float()))
    whole, heads = model.serve(pixels.float()), model.embeddings(model(pixels.float()))
    expected = sum(torch.cdist(heads[name], heads[name]).square() / 3 for name in ("head 1", "head 2", "head 3"))
    torch.testing.assert_close(torch.cdist(whole, whole).square(), expected, rtol=1e-4, atol=1e-5)
    del described["heads_see_blocks"]  # as an earlier version wrote it
    assert not build_architecture(described, (1, 8, 8), "images").heads_see_blocks


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(16), 8)
    x = generator.integers(0, 256, (16, 8, 8))[y] // 2 + generator.integers(0, 128, (128, 8, 8))
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(path, x=x.astype(np.uint8), y=y)
    return str(path)


RUN: dict[str, Any] = {
    "plugins": ("ms", "triplet", "sup_con"),
    "ensemble": "heads",
    "heads_see": "blocks",
    "conv": {"channels": CHANNELS, "pooled_blocks": 3},
    "steps": 6,
    "eval_every": 3,
    "embedding_dim": 6,
    "compress": 4,
    "classes_per_batch": 4,
    "device": "cpu",
    "report": False,
}


def test_a_run_resumes_exactly_and_is_evaluated(pictures: str, tmp_path: Path) -> None:
    values = {"data": pictures, **RUN}
    straight = train(out=tmp_path / "straight", gradient_checkpointing=True, **values)
    with pytest.raises(KeyboardInterrupt):
        train(out=tmp_path / "parts", loggers=[Stop(4)], gradient_checkpointing=True, **values)
    assert train(resume=tmp_path / "parts")["metrics"] == straight["metrics"]
    assert records(tmp_path / "parts") == records(tmp_path / "straight")
    named = straight["embeddings"]
    assert set(named) == {"whole", "compressed", "head ms", "head triplet", "head sup_con"}
    run = TrainedRun(tmp_path / "straight")
    assert run.evaluate()["embeddings"] == named and run.model.heads_see_blocks
    assert functional.normalize(run(torch.rand(2, 1, 8, 8))).shape == (2, 4)
    assert dmlcore.load(tmp_path / "straight").embed(pictures).embeddings.shape == (128, 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ensemble": "shared"}, "heads_see is blocks, which needs a head per loss"),
        ({"conv": {"channels": CHANNELS}}, "'conv' gives its features as one piece.*--conv.pooled-blocks 3"),
        ({"model": "identity", "conv": {}}, "'identity' gives its features as one piece"),
        ({"plugins": ("ms", "triplet")}, "gives 3 blocks to 2 heads"),
        ({"head_start": "principal"}, "head_start is principal, but heads_see is blocks"),
        ({"heads_see": "layers"}, "must be one of all, blocks"),
    ],
)
def test_what_cannot_be_is_refused(pictures: str, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    given = {key: value for key, value in {**RUN, **values}.items() if value != {}}
    with pytest.raises(ConfigError, match=message):
        train(out=tmp_path / "run", data=pictures, **given)


def test_the_command_line_says_so(pictures: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--data", pictures, "--ensemble", "heads", "--heads-see", "blocks", "--steps", "1"]
    words += ["--conv.channels", "3,4,6", "--embedding-dim", "4", "--out", str(tmp_path / "run")]
    assert cli.main(words) == 2
    assert "error: heads_see is blocks, but the model 'conv'" in " ".join(capsys.readouterr().err.split())
    assert cli.main([*words, "--conv.pooled-blocks", "3"]) == 0
    captured = capsys.readouterr()
    assert "3 heads of 4, each on one block of the trunk" in captured.out + captured.err
