"""Trunks of other libraries: names, weights from files and caches, pooling, what images they want, and what a run keeps."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import image_folder
from torch import nn

from dmlcore.data import open_data
from dmlcore.errors import ConfigError, DataError, TrainingError
from dmlcore.models import ImagesWanted, Pool, build_model, images_wanted, load_weights, rows_of
from dmlcore.serving import TrainedRun
from dmlcore.training import checkpoints, train
from dmlcore.training.building import build_run_model

QUICK: dict[str, Any] = {"plugins": "ms", "classes_per_batch": 4, "samples_per_class": 2, "eval_every": 2, "compress": 8}


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("training must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def image_model(name: str, side: int = 64, **options: Any) -> Any:
    return build_model(name, sample_shape=(3, side, side), kind="images", options=options)


def first_model(run: TrainedRun) -> Any:
    return build_run_model(run.config, run.sample_shape, run.kind, run.folder.kept_trunk)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "_orig_mod.", "model.", "backbone.", "trunk.network.", "net."])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
def test_prefixes_and_wrappers_do_not_matter(tmp_path: Path, prefix: str, wrapper: str) -> None:
    trained, network = Small(), Small()
    weights: dict[str, Any] = {prefix + name: value for name, value in trained.state_dict().items()}
    weights |= {"head.weight": torch.ones(5, 4), "head.bias": torch.ones(5)}
    torch.save({wrapper: weights, "epoch": 3} if wrapper else weights, tmp_path / "w.pt")
    load_weights(network, tmp_path / "w.pt", "small", further_prefix="net.")
    assert torch.equal(network.conv1.weight, trained.conv1.weight)
    if prefix == "net.":
        with pytest.raises(ConfigError, match="not of 'small': the file lacks 6 of 7 entries"):
            load_weights(network, tmp_path / "w.pt", "small")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    weights = Small().state_dict()
    torch.save({**weights, "conv1.weight": torch.zeros(4, 3, 1, 1)}, file)
    with pytest.raises(ConfigError, match=r"not of 'small': the file has another shape of 'conv1.weight'"):
        load_weights(Small(), file, "small")
    torch.save({**weights, **{f"layer2.{part}": torch.zeros(1) for part in "abc"}}, file)
    with pytest.raises(ConfigError, match=r"the file has 3 entries too many, such as 'layer2.a'"):
        load_weights(Small(), file, "small")
    load_weights(Small(), file, "small", ignored=("layer2.",))

    def fails(weights: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("pos_embed")

    torch.save({"conv1.bias": weights["conv1.bias"]}, file)
    with pytest.raises(ConfigError, match=r"not of 'small': 'pos_embed'"):
        load_weights(Small(), file, "small", adapt=fails)
    load_weights(Small(), file, "small", adapt=lambda _: dict(weights))


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"conv1.weight": Evil()}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"holds code \(.*\), which is never run"):
        load_weights(Small(), tmp_path / "w.pth", "small")
    assert not (tmp_path / "ran").exists()


def test_pooling_is_what_its_formula_says() -> None:
    maps = torch.rand(3, 5, 2, 4)
    places = rows_of(maps)  # [3, 8, 5]
    assert torch.equal(places[1, 6], maps[1, :, 1, 2]) and torch.equal(rows_of(maps.permute(0, 2, 3, 1), True), places)
    assert torch.allclose(Pool("avg")(places), maps.mean((2, 3))) and torch.equal(Pool("max")(places), maps.amax((2, 3)))
    assert torch.equal(Pool("cls")(places), places[:, 0])
    assert torch.allclose(Pool("gem")(places), maps.pow(3).mean((2, 3)).pow(1 / 3))
    is_there = torch.arange(8) < torch.tensor([8, 3, 1])[:, None]
    for how in ("avg", "max", "gem"):
        pool = Pool(how)
        each = torch.cat([pool(row[None, :count]) for row, count in zip(places, (8, 3, 1), strict=True)])
        assert torch.allclose(pool(places, is_there), each, atol=1e-6), how
    gem = Pool("gem")
    gem(torch.zeros(2, 4, 3)).sum().backward()
    assert gem.power is not None and gem.power.grad is not None and torch.isfinite(gem.power.grad)


def test_torchvision_pools_where_its_network_averages() -> None:
    assert image_model("torchvision/resnet18", weights="none", pool="gem").trunk.network.avgpool.pool.power.item() == 3
    for name, pool in (("resnet18", "cls"), ("mobilenet_v2", "gem")):
        with pytest.raises(ConfigError, match=f"the pooling of '{name}' of torchvision cannot be '{pool}'"):
            image_model(f"torchvision/{name}", weights="none", pool=pool)


def test_published_weights_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision", reason="torchvision is not installed").models
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        image_model("torchvision/shufflenet_v2_x0_5")
    assert "not on this computer, and training fetches nothing. Fetch them once by `python -c" in str(caught.value)
    assert "get_model('shufflenet_v2_x0_5', weights='DEFAULT')" in str(caught.value)
    network = models.shufflenet_v2_x0_5()
    (tmp_path / "checkpoints").mkdir()
    url = models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.url
    torch.save(network.state_dict(), tmp_path / "checkpoints" / url.rpartition("/")[2])
    trunk = image_model("torchvision/shufflenet_v2_x0_5").trunk
    assert torch.equal(trunk.network.conv1[0].weight, network.conv1[0].weight)


@pytest.fixture(scope="module")
def timm() -> Any:
    return pytest.importorskip("timm", reason="timm is not installed: pip install timm")


@pytest.mark.parametrize(
    ("name", "pool", "features"),
    [
        ("test_resnet", "auto", None),
        ("test_resnet", "gem", None),
        ("test_vit", "auto", 64),
        ("test_vit", "cls", 64),
        ("test_vit", "max", 64),
        ("test_convnext", "avg", 64),
    ],
)
def test_timm_trunks(timm: Any, name: str, pool: str, features: int | None) -> None:
    model = build_model(f"timm/{name}", sample_shape=(1, 48, 64), kind="images", options={"weights": "none", "pool": pool})
    assert features in (None, model.trunk.features) and (model.trunk.pool is None) == (pool == "auto")
    samples = torch.rand(2, 1, 48, 64)
    model(samples).square().sum().backward()
    single = model.eval()(samples[:1])
    assert single.shape == (1, 64) and torch.allclose(single, model(samples)[:1], atol=1e-5)


def test_timm_pools_a_vision_transformer_as_it_does(timm: Any) -> None:
    own, pooled = (image_model("timm/test_vit", weights="none", pool=pool).eval().trunk for pool in ("auto", "cls"))
    samples = torch.rand(2, 3, 64, 64)
    assert own.network.global_pool == "token" and torch.allclose(own(samples), pooled(samples), atol=1e-6)
    registers = image_model("timm/test_vit", weights="none", pool="avg").eval().trunk
    places = registers.network.forward_features(registers.normalised(samples))
    assert torch.allclose(registers(samples), places[:, registers.network.num_prefix_tokens :].mean(1), atol=1e-6)


def test_timm_says_what_images_it_wants(timm: Any, tmp_path: Path) -> None:
    assert images_wanted("timm/test_vit") == ImagesWanted(160, "bicubic")
    assert images_wanted("timm/test_resnet") == ImagesWanted(160, "bilinear")
    trunk = image_model("timm/vit_tiny_patch16_224", 32, weights="none").trunk
    assert trunk.mean.flatten().tolist() == [0.5, 0.5, 0.5]  # not ImageNet's
    own = image_model("timm/test_resnet", weights="none", mean="0,0,0.25", std="1,1,0.5").trunk
    assert own.normalised(torch.full((1, 1, 2, 2), 0.5))[0, :, 0, 0].tolist() == [0.5, 0.5, 0.5]


def test_mistakes_about_timm(timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"timm has no network 'resnet81'\. Did you mean 'resnet18'"):
        image_model("timm/resnet81")
    with pytest.raises(ConfigError, match=r"timm has no weights 'a9_in1k' of 'resnet18'"):
        image_model("timm/resnet18.a9_in1k")
    with pytest.raises(ConfigError, match=r"'test_resnet' has no token of the whole image, so its pooling cannot be cls"):
        image_model("timm/test_resnet", weights="none", pool="cls")
    with pytest.raises(ConfigError, match=r"timm: mean has 2 numbers, but must have 3"):
        image_model("timm/test_resnet", mean="0,0")
    with pytest.raises(DataError, match="there is no weights file"):
        image_model("timm/test_resnet", weights=str(tmp_path / "gone.pth"))
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    from dmlcore_plugins.models import timm as plugin

    plugin._expected.cache_clear()
    with pytest.raises(ConfigError, match="timm is not installed. Run `pip install timm`"):
        image_model("timm/test_resnet")


def test_timm_takes_published_weights_from_the_cache(timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"timm\.create_model\('test_vit', pretrained=True\).*--timm\.weights"):
        image_model("timm/test_vit")
    network = timm.create_model("test_vit")  # with its classifier, for 160 pixels
    place = tmp_path / "models--timm--test_vit.r160_in1k"
    (place / "snapshots" / "abc").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    safetensors.save_file(network.state_dict(), place / "snapshots" / "abc" / "model.safetensors")
    trunk = image_model("timm/test_vit", 64).trunk
    assert torch.equal(trunk.network.blocks[0].attn.qkv.weight, network.blocks[0].attn.qkv.weight)
    assert trunk.network.pos_embed.shape[1] == 4 * 4 + trunk.network.num_prefix_tokens != network.pos_embed.shape[1]


def test_images_are_resized_as_the_trunk_or_the_user_wants(tmp_path: Path) -> None:
    folder = str(image_folder(tmp_path / "images", size=(40, 40), mode="RGB"))

    def first(**settings: Any) -> torch.Tensor:
        return open_data(folder, image_size=16, **settings).train.batch([0])

    bilinear, bicubic = first(), first(interpolation="bicubic")
    assert not torch.equal(bilinear, bicubic) and (bilinear - bicubic).abs().mean() < 0.1
    assert torch.equal(first(interpolation="bicubic", options={"interpolation": "bilinear"}), bilinear)
    assert torch.equal(first(options={"memory_mb": 0}, interpolation="bicubic"), bicubic)  # decoded when needed


def test_a_run_needs_neither_the_weights_file_nor_its_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision", reason="torchvision is not installed").models
    data = str(image_folder(tmp_path / "images", size=(32, 32), mode="RGB"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    published = models.shufflenet_v2_x0_5(num_classes=3)
    torch.save({"module." + name: value for name, value in published.state_dict().items()}, "w.pth")
    result = train(
        data=data, model="torchvision/shufflenet_v2_x0_5", torchvision={"weights": "w.pth"}, steps=4, out="run", **QUICK
    )
    Path("w.pth").unlink()
    shutil.move("run", tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = TrainedRun(tmp_path / "moved")
    again = run.evaluate()
    assert again["metrics"]["test"] == pytest.approx(result["metrics"]["test"], abs=1e-6)
    assert again["baselines"]["before training"] == result["baselines"]["before training"]  # of the file's weights
    untrained: Any = first_model(run).trunk
    assert torch.equal(untrained.network.conv1[0].weight, published.conv1[0].weight)
    resumed = train(resume=tmp_path / "moved", steps=6)
    assert resumed["steps"] == 6 and resumed["baselines"]["before training"] == result["baselines"]["before training"]
    shutil.rmtree(tmp_path / "moved" / "trunk")
    still = TrainedRun(tmp_path / "moved")  # all weights are in the checkpoint; those that it began with are gone
    with pytest.raises(DataError, match=r"there is no weights file '.*here/w\.pth'"):
        first_model(still)


def test_a_damaged_file_of_kept_weights_is_one_line(tmp_path: Path) -> None:
    data = str(image_folder(tmp_path / "images", size=(32, 32), mode="RGB"))
    models = pytest.importorskip("torchvision", reason="torchvision is not installed").models
    torch.save(models.shufflenet_v2_x0_5().state_dict(), tmp_path / "w.pth")
    options = {"weights": str(tmp_path / "w.pth")}
    train(data=data, model="torchvision/shufflenet_v2_x0_5", torchvision=options, steps=1, out=tmp_path / "run", **QUICK)
    kept = tmp_path / "run" / "trunk" / "weights.pt"
    kept.write_bytes(kept.read_bytes()[:-1000])
    run = TrainedRun(tmp_path / "run")  # which needs them only for what it is compared with
    with pytest.raises((DataError, TrainingError), match=r"weights\.pt' cannot be read"):
        first_model(run)


def test_adapters_are_trained_alone_and_merged_into_the_served_model(timm: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    plain, adapted = (image_model("timm/test_vit", weights="none", lora=rank).eval() for rank in (0, 2))
    images = torch.rand(2, 3, 64, 64)
    assert torch.allclose(plain.trunk(images), adapted.trunk(images), atol=1e-6)  # at first they change nothing
    trained = {name for name, value in adapted.trunk.named_parameters() if value.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    network = timm.create_model("test_vit", img_size=32)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    data = str(image_folder(tmp_path / "images", size=(32, 32), mode="RGB"))
    options = {"weights": str(tmp_path / "w.pth"), "lora": 2}
    result = train(data=data, model="timm/test_vit", timm=options, steps=4, out=tmp_path / "run", learning_rate=0.05, **QUICK)
    (tmp_path / "w.pth").unlink()
    run = TrainedRun(tmp_path / "run", checkpoint="last")
    served: Any = run.model.trunk
    with_adapters = first_model(run).eval()
    with_adapters.load_state_dict(checkpoints.load(tmp_path / "run" / "checkpoints", "last")["model"])
    small = torch.rand(3, 3, 32, 32)
    assert torch.allclose(run(small), with_adapters.serve(small), atol=1e-5)
    assert served.network.state_dict().keys() == timm.create_model("test_vit", img_size=32, num_classes=0).state_dict().keys()
    assert not torch.allclose(served.network.blocks[0].attn.qkv.weight, network.blocks[0].attn.qkv.weight, atol=1e-4)
    assert torch.equal(served.network.pos_embed, network.pos_embed)
    again = TrainedRun(tmp_path / "run").evaluate()
    assert again["metrics"]["test"] == pytest.approx(result["metrics"]["test"], abs=1e-6)
    first, then = (told["baselines"]["before training"]["test"] for told in (result, again))
    assert then == pytest.approx(first)
    assert train(resume=tmp_path / "run", steps=6)["steps"] == 6
    assert image_model("torchvision/resnet18", weights="none", lora=1).trunk.features == 512  # convolutions
