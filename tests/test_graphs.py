"""Models as graphs: every trunk, head, compressor and student can be exported and compiled, for any size of a batch."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import feature_file, image_folder
from test_text import saved_bert, transformers  # noqa: F401  (fixtures)

import dmlcore
from dmlcore import cli, plugins
from dmlcore.data import TEXT_BYTES
from dmlcore.errors import ConfigError
from dmlcore.models import build_model
from dmlcore.serving import Model
from dmlcore.serving.graphs import BATCHES, ServingGraph, graph_inputs, write_graph
from dmlcore.serving.samples import Preparation
from dmlcore.training import train

CLOSE = 1e-5  # sums are rounded in another order
SHAPES = {"images": (3, 32, 32), "features": (12,), "texts": (TEXT_BYTES,)}
TRUNKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "conv": ("conv", "images", {"channels": (4, 8)}),
    "flat_conv": ("flat_conv", "images", {"channels": (4, 8), "norm": "centred"}),
    "bn_inception": ("bn_inception", "images", {"weights": "none"}),
    "pixels": ("identity", "images", {}),
    "features": ("identity", "features", {}),
    "mlp": ("mlp", "features", {"hidden": 8}),
    "trigrams": ("trigrams", "texts", {"buckets": 64, "hidden": 8}),
    "timm": ("timm/test_vit", "images", {"weights": "none"}),
    "timm gem": ("timm/test_resnet", "images", {"weights": "none", "pool": "gem"}),
    "torchvision": ("torchvision/shufflenet_v2_x0_5", "images", {"weights": "none"}),
    "hf texts": ("hf", "texts", {}),
    "hf images": ("hf", "images", {}),
}
COMPRESSORS = sorted(entry.name for entry in plugins.registry("compressor").values())
ENDS: dict[str, dict[str, Any]] = {
    "whole": {},
    "raw": {"normalize": False},
    "no head": {"has_head": False},
    "layer norm": {"head_norm": "layer"},
    "heads": {"heads": 3},
    "student": {"student": 5, "served": "student"},
    "heads beside a student": {"heads": 2, "student": 5, "shows_features": True},
    "wide heads": {"distill_heads": (16, 24), "distills_features": True},
    **{name: {"compressor": name} for name in COMPRESSORS},
    "compressed heads": {"compressor": "pca", "heads": 3, "student": 4},
}
QUICK = [("conv", "pca"), ("features", "whole"), ("trigrams", "student"), ("mlp", "compressed heads")]
SLOW = [(trunk, "pca") for trunk in TRUNKS] + [("mlp", end) for end in ENDS]


@pytest.fixture(scope="module")
def encoders(saved_bert: Path, transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:  # noqa: F811
    """Folders of small encoders of Hugging Face by the kind of their samples."""
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(folder)
    return {"texts": saved_bert, "images": folder}


def model_of(trunk: str, end: str, encoders: dict[str, Path] | None = None) -> Model:
    name, kind, options = TRUNKS[trunk]
    shape, settings = SHAPES[kind], dict(ENDS[end])
    name = f"hf/{encoders[kind]}" if name == "hf" and encoders else name
    dim = 7
    if settings.get("has_head") is False:
        dim = build_model(name, sample_shape=shape, kind=kind, options=options).trunk.features
    if "compressor" in settings:
        width = dim * settings.get("heads", 1)
        compressor = plugins.find("compressor", settings["compressor"]).component(width, 3)
        generator = torch.Generator().manual_seed(0)
        compressor.fit(torch.randn(40, width, generator=generator), torch.arange(40) % 5)
        settings |= {"compressor": compressor, "served": "compressed"}
    module = build_model(name, sample_shape=shape, kind=kind, embedding_dim=dim, options=options, **settings).eval()
    return Model(module, trunk, Preparation(kind, shape), torch.device("cpu"))


def check(trunk: str, end: str, folder: Path, encoders: dict[str, Path] | None = None) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", *(["timm"] if trunk.startswith("timm") else [])):
        pytest.importorskip(package, reason=f"{package} is not installed")
    model = model_of(trunk, end, encoders)
    for form in ("torch-export", "onnx"):
        result = write_graph(model, folder / form, form=form)
        assert list(result["differences"]) == [str(size) for size in BATCHES]
        assert max(result["differences"].values()) < CLOSE, (form, result["differences"])
    graph = ServingGraph(model.model, model.kind).eval()
    torch.compiler.reset()
    compiled: Any = torch.compile(graph, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for size in (2, 5):
            inputs = list(graph_inputs(model, size).values())
            assert torch.allclose(compiled(*inputs), graph(*inputs), atol=CLOSE)


@pytest.mark.parametrize(("trunk", "end"), QUICK)
def test_models_become_graphs(trunk: str, end: str, tmp_path: Path) -> None:
    check(trunk, end, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("trunk", "end"), [pair for pair in dict.fromkeys(SLOW) if pair not in QUICK])
def test_every_model_becomes_a_graph(
    trunk: str,
    end: str,
    encoders: dict[str, Path],
    tmp_path: Path,
) -> None:
    check(trunk, end, tmp_path, encoders)


def test_nothing_is_left_out() -> None:
    """Whoever adds a trunk adds a row above."""
    named = {name.partition("/")[0] for name, _, _ in TRUNKS.values()}
    assert {entry.name for entry in plugins.registry("model").values() if entry.owner == "dmlcore"} <= named


def test_a_graph_of_a_run_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="runs the graph")
    onnx = pytest.importorskip("onnx", reason="reads its metadata")
    image_folder(tmp_path / "photos", classes=12, samples=4, mode="RGB", size=(24, 24))
    quick: dict[str, Any] = {"steps": 2, "eval_every": 1, "report": False, "classes_per_batch": 2, "samples_per_class": 2}
    train(data=str(tmp_path / "photos"), out=tmp_path / "run", embedding_dim=16, compress=8, **quick)
    words = ["export", str(tmp_path / "run"), "--out", str(tmp_path / "g"), "--onnx", "--int8", "--device", "cpu"]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    for part in ("model.int8.onnx", "largest difference from the model", "MAP@R on the validation classes", "uint8"):
        assert part in told, told
    paths = sorted((tmp_path / "photos").rglob("*.png"))
    expected = dmlcore.load(tmp_path / "run", device="cpu").encode(paths)
    from PIL import Image

    pixels = np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in paths])
    session = runtime.InferenceSession(str(tmp_path / "g" / "model.onnx"))
    assert np.abs(session.run(["embeddings"], {"pixels": pixels})[0] - expected).max() < CLOSE
    small = runtime.InferenceSession(str(tmp_path / "g" / "model.int8.onnx")).run(None, {"pixels": pixels})[0]
    assert (small * expected).sum(1).min() > 0.9  # cosines
    about = {entry.key: entry.value for entry in onnx.load(tmp_path / "g" / "model.onnx").metadata_props}
    assert json.loads(about["dmlcore"])["inputs"] == {"pixels": {"dtype": "uint8", "shape": ["batch", 3, 24, 24]}}
    config = json.loads((tmp_path / "g" / "config.json").read_text())
    assert "to cover 24 x 24 pixels" in config["preparation"] and 0 <= config["int8"]["map@r"]["int8"] <= 1
    for wrong, message in (
        (words, "exists already"),
        ([*words[:4], "--torch-export", "--int8"], "int8 is for graphs of ONNX"),
        ([*words[:4], "--torch-export", "--onnx"], "leave one out"),
        ([*words[:4], "--int8"], "--int8 goes with --onnx"),
    ):
        assert cli.main(wrong) == 2 and message in capsys.readouterr().err
    with pytest.raises(ConfigError, match="holds no model of this version"):
        dmlcore.load(tmp_path / "g")
    assert cli.main([*words[:4], "--torch-export", "--overwrite", "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"]["32"] < CLOSE
    module = torch.export.load(tmp_path / "g" / "model.pt2").module()
    assert np.abs(module(torch.from_numpy(pixels)).detach().numpy() - expected).max() < CLOSE


def test_what_8_bits_cost_is_measured_where_there_are_data(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    data = feature_file(tmp_path / "x.npz", classes=12)
    quick: dict[str, Any] = {"steps": 1, "eval_every": 1, "report": False, "embedding_dim": 4, "compress": 0}
    train(data=str(data), out=tmp_path / "run", **quick)
    run = dmlcore.load(tmp_path / "run", device="cpu")
    measured = write_graph(run, tmp_path / "g", int8=True)["int8"]["map@r"]
    expected = run.evaluate()["metrics"]["validation"]["map@r"]
    assert measured["model"] == pytest.approx(expected, abs=1e-6) and abs(measured["int8"] - expected) < 0.2
    data.unlink()
    small = write_graph(run, tmp_path / "g", int8=True, overwrite=True)["int8"]
    assert "x.npz" in small["why_not_measured"] and "map@r" not in small


def test_a_module_from_python_becomes_a_graph(tmp_path: Path) -> None:
    trunk = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.ReLU())
    quick: dict[str, Any] = {"steps": 1, "eval_every": 1, "report": False, "embedding_dim": 4, "compress": 0}
    train(data=str(feature_file(tmp_path / "x.npz")), model=trunk, out=tmp_path / "run", **quick)
    run = dmlcore.serving.TrainedRun(tmp_path / "run", device="cpu", model=trunk)
    assert max(write_graph(run, tmp_path / "g", form="torch-export")["differences"].values()) < CLOSE
    with pytest.raises(ConfigError, match="a module from Python, which a file of weights cannot build again"):
        dmlcore.serving.export_folder(run, tmp_path / "m")


def test_what_cannot_be_made_a_graph_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if float(x.sum()) > 0 else x

    model = model_of("features", "whole")
    monkeypatch.setattr(model.model, "head", Counting())
    with pytest.raises(ConfigError, match="the trunk 'identity' cannot be made a graph of torch-export") as error:
        write_graph(model, tmp_path / "g", form="torch-export")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
    real = importlib.import_module

    def missing(name: str, *rest: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match="pip install onnx onnxscript onnxruntime"):
        write_graph(model, tmp_path / "g")
