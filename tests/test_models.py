"""Models: small trunks, torchvision's, the embedding head, and building them by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmlcore.errors import ConfigError, DataError
from dmlcore.models import ImagesWanted, build_model, find_trunk, images_wanted

ROOT = Path(__file__).parents[1]


def image_model(name: str = "conv", shape: tuple[int, ...] = (1, 32, 32), **settings):
    return build_model(name, sample_shape=shape, kind="images", **settings)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (1, 28, 28), (1, 32, 32), (3, 64, 64), (3, 40, 56)])
def test_conv_takes_small_images(shape):
    model = image_model(shape=shape)
    assert torch.allclose(model.serve(torch.rand(5, *shape)).norm(dim=1), torch.ones(5), atol=1e-5)
    assert model.head.in_features == model.trunk.features


@pytest.mark.parametrize("name", ["mlp", "identity"])
def test_feature_trunks(name):
    model = build_model(name, sample_shape=(12,), kind="features", embedding_dim=7)
    assert model(torch.rand(3, 12)).shape == (3, 7) and model.embedding_dim == 7


def test_a_trunk_keeps_its_places_side_by_side():
    """Against the layers written out: same padding, odd sides rounded up, a shift and no scale behind the norm."""
    options = {"channels": "4,5", "pooled": "1", "norm": "centred"}
    model = build_model("flat_conv", sample_shape=(3, 7, 9), kind="images", embedding_dim=6, options=options, normalize=False)
    samples = torch.rand(8, 3, 7, 9)
    assert model.trunk.features == 5 * 4 * 5
    first, norm, _, _, second, last, _ = model.trunk.blocks
    assert norm.weight is None and norm.bias.shape == (4,)
    with torch.no_grad():
        norm.bias.uniform_(-1, 1)
        x = torch.nn.functional.pad(samples, (1, 1, 1, 1))
        patches = x.unfold(2, 3, 1).unfold(3, 3, 1)  # [B, C, H, W, 3, 3]
        maps = torch.einsum("bchwij,ocij->bohw", patches, first.weight) + first.bias[:, None, None]
        mean, variance = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), unbiased=False, keepdim=True)
        maps = ((maps - mean) / (variance + 1e-5).sqrt() + norm.bias[:, None, None]).relu()
        padded = torch.nn.functional.pad(maps, (0, 1, 0, 1), value=-1.0)  # behind a ReLU nothing is below 0
        pooled = padded.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
        maps = last(second(pooled)).relu()
        assert torch.allclose(model.train()(samples), model.head(maps.flatten(1)), atol=1e-5)
    with pytest.raises(ConfigError, match=r"pooled are \(3,\), but must be numbers of convolutions, from 1 to 2"):
        build_model("flat_conv", sample_shape=(3, 7, 9), kind="images", options={"channels": "4,5", "pooled": "3"})


def test_features_can_go_through_hidden_units_alone():
    model = build_model("mlp", sample_shape=(5,), kind="features", options={"hidden": 3, "skip": False})
    assert model.trunk.features == 3 and bool((model.trunk(torch.randn(7, 5)) >= 0).all())


def test_defaults_follow_the_data():
    assert build_model(sample_shape=(1, 32, 32), kind="images").trunk.name == "conv"
    assert build_model(sample_shape=(5,), kind="features").trunk.name == "identity"
    assert images_wanted() == ImagesWanted(64, "bilinear")


def test_raw_embeddings_and_head_norm():
    samples = torch.rand(4, 1, 32, 32)
    raw, unit = image_model(normalize=False), image_model(normalize=True)
    assert not raw.normalize and unit.normalize
    assert torch.allclose(torch.nn.functional.normalize(raw.eval()(samples)), unit.eval()(samples), atol=1e-6)
    assert isinstance(image_model(head_norm="layer").head[0], torch.nn.LayerNorm)


def test_weights_follow_the_seed_only():
    torch.manual_seed(1)
    first = image_model(seed=3).state_dict()
    before = torch.random.get_rng_state()
    second = image_model(seed=3).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = image_model(seed=4).state_dict()
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_step_reaches_every_parameter():
    for model, samples in (
        (image_model(), torch.rand(6, 1, 32, 32)),
        (build_model("mlp", sample_shape=(9,), kind="features"), torch.rand(6, 9)),
    ):
        model(samples)[:, 0].sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_errors_name_the_remedy():
    with pytest.raises(ConfigError, match=r"takes images, but the data are features. Models for features: identity, mlp"):
        build_model("conv", sample_shape=(5,), kind="features")
    with pytest.raises(ConfigError, match=r"conv has no option 'chanels'. Did you mean 'channels'"):
        image_model(options={"chanels": "8"})
    with pytest.raises(ConfigError, match=r"conv: channels are \(0,\)"):
        image_model(options={"channels": "0"})
    with pytest.raises(ConfigError, match=r"embedding_dim"):
        image_model(embedding_dim=0)
    with pytest.raises(ConfigError, match=r"mlp: dropout is 2"):
        build_model("mlp", sample_shape=(5,), kind="features", options={"dropout": 2})


def test_without_torchvision_everything_else_works():
    code = """
import sys
sys.modules["torchvision"] = None
from dmlcore.errors import ConfigError
from dmlcore.models import build_model
build_model("conv", sample_shape=(1, 32, 32), kind="images")
for name in ("torchvision/resnet18", "torchvision"):
    try:
        build_model(name, sample_shape=(3, 32, 32), kind="images")
    except ConfigError as error:
        assert "pip install torchvision" in str(error), error
    else:
        raise SystemExit("no error")
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins")])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True)


@pytest.fixture(scope="module")
def torchvision():
    return pytest.importorskip("torchvision", reason="torchvision is not installed")


@pytest.mark.parametrize(
    ("name", "side", "features"),
    [
        ("resnet18", 32, 512),
        ("mobilenet_v3_small", 32, 1024),
        ("squeezenet1_1", 64, 512),
        ("vit_b_32", 64, 768),
        ("googlenet", 64, 1024),
        ("shufflenet_v2_x0_5", 32, 1024),
    ],
)
def test_torchvision_trunks(torchvision, name, side, features):
    model = image_model(f"torchvision/{name}", (1, side, side), options={"weights": "none"})
    assert model.trunk.features == features
    assert model(torch.rand(2, 1, side, side)).shape == (2, 64)
    assert model.eval()(torch.rand(1, 1, side, side)).shape == (1, 64)


def test_torchvision_names(torchvision):
    assert find_trunk("torchvision/resnet18", "images")[1] == {"arch": "resnet18"}
    assert images_wanted("torchvision/resnet18").size == 224
    assert images_wanted("torchvision/inception_v3").size == 299
    assert images_wanted("torchvision/swin_t") == ImagesWanted(224, "bicubic")
    with pytest.raises(ConfigError, match=r"no model 'resnet18'.* behind the library's name: .*torchvision/NAME"):
        image_model("resnet18")
    with pytest.raises(ConfigError, match=r"no classification network 'resnet19'"):
        image_model("torchvision/resnet19")
    with pytest.raises(ConfigError, match=r"no model 'cnov'. Did you mean 'conv'"):
        image_model("cnov")
    with pytest.raises(ConfigError, match=r"'alexnet' cannot take images of 16 x 16"):
        image_model("torchvision/alexnet", (3, 16, 16), options={"weights": "none"})


def test_torchvision_weights_from_a_file(torchvision, tmp_path):
    network = torchvision.models.mobilenet_v3_small(num_classes=7)
    parallel = {f"module.{key}": value for key, value in network.state_dict().items()}
    for wrapped, name in ((network.state_dict(), "plain.pth"), ({"state_dict": parallel}, "wrapped.pt")):
        torch.save(wrapped, tmp_path / name)
        model = image_model("torchvision/mobilenet_v3_small", (3, 32, 32), options={"weights": str(tmp_path / name)})
        assert torch.equal(model.trunk.network.features[0][0].weight, network.features[0][0].weight)
    with pytest.raises(ConfigError, match=r"are not of 'resnet18': the file lacks"):
        image_model("torchvision/resnet18", (3, 32, 32), options={"weights": str(tmp_path / "plain.pth")})
    with pytest.raises(DataError, match=r"no weights file"):
        image_model("torchvision/resnet18", (3, 32, 32), options={"weights": str(tmp_path / "gone.pth")})
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(DataError, match=r"cannot be read"):
        image_model("torchvision/resnet18", (3, 32, 32), options={"weights": str(tmp_path / "text.pth")})


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module.",
        "model.",
        "backbone.",
        "module._orig_mod.",
        "model.backbone.",
        "_orig_mod.module.model.backbone.",
    ],
)
def test_torchvision_weights_of_wrapped_networks(torchvision, tmp_path, prefix):
    network = torchvision.models.get_model("mobilenet_v3_small", weights=None)
    heads = (
        {f"{prefix.rpartition('backbone.')[0]}head.{part}": torch.zeros(1) for part in "abcd"} if "backbone" in prefix else {}
    )
    torch.save(
        {"state_dict": {**{prefix + key: value for key, value in network.state_dict().items()}, **heads}}, tmp_path / "w.pth"
    )
    model = image_model("torchvision/mobilenet_v3_small", (3, 32, 32), options={"weights": str(tmp_path / "w.pth")})
    right = network.state_dict()
    for key, value in model.trunk.network.state_dict().items():
        assert torch.equal(value, right[key]), key


def test_torchvision_weights_of_compiled_parts_and_of_two_networks(torchvision, tmp_path):
    network = torchvision.models.get_model("resnet18", weights=None).state_dict()
    compiled = {key.replace("layer1.", "layer1._orig_mod."): value for key, value in network.items()}
    torch.save(compiled, tmp_path / "w.pth")
    model = image_model("torchvision/resnet18", (3, 32, 32), options={"weights": str(tmp_path / "w.pth")})
    assert torch.equal(model.trunk.network.layer1[0].conv1.weight, network["layer1.0.conv1.weight"])
    torch.save({**network, **{f"model.{key}": value for key, value in network.items()}}, tmp_path / "two.pth")
    with pytest.raises(ConfigError, match=r"two\.pth' cannot be assigned: 'conv1.weight' and 'model.conv1.weight' may both"):
        image_model("torchvision/resnet18", (3, 32, 32), options={"weights": str(tmp_path / "two.pth")})
    further = {f"backbone.layer9.{part}": torch.zeros(1) for part in "abcd"}
    torch.save({**{f"backbone.{key}": value for key, value in network.items()}, **further}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"has 6 entries too many"):  # with the classifier's two
        image_model("torchvision/resnet18", (3, 32, 32), options={"weights": str(tmp_path / "w.pth")})


def test_torchvision_weights_from_safetensors(torchvision, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    network = torchvision.models.shufflenet_v2_x0_5()
    safetensors.save_file(network.state_dict(), tmp_path / "w.safetensors")
    model = image_model("torchvision/shufflenet_v2_x0_5", (3, 32, 32), options={"weights": str(tmp_path / "w.safetensors")})
    assert torch.equal(model.trunk.network.conv1[0].weight, network.conv1[0].weight)
