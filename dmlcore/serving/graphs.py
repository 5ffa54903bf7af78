"""A trained model as a graph that runs without dmlcore: ONNX, or `torch.export`. All but resizing pictures, and splitting texts
into words, is inside. What was written is run and compared with the model.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dmlcore.data import TEXT_BYTES, LabelledDataset, TextStore
from dmlcore.errors import ConfigError, DataError, DmlcoreError, TrainingError
from dmlcore.evaluation import evaluating
from dmlcore.files import plain
from dmlcore.models import EmbeddingModel, weights_follow
from dmlcore.serving.model import BATCH, Model
from dmlcore.serving.model_folder import CONFIG, GRAPH_FORMAT, TRUNK, new_folder
from dmlcore.serving.run import TrainedRun
from dmlcore.serving.samples import dataset_batches
from dmlcore.version import VERSION

GraphForm = Literal["onnx", "torch-export"]
BATCHES = (1, 2, 7, 32)  # sizes at which a graph is compared with the model
_OPSET = 18
_FILES = {"onnx": "model.onnx", "torch-export": "model.pt2"}
_INT8 = "model.int8.onnx"
_WORDS = "a few words that stand for whatever a text may say, again and again"


class ServingGraph(nn.Module):
    """What a graph computes: embeddings of pixels uint8, of features float32, or of what the trunk takes for texts.

    Args:
        model: on the CPU, in evaluation mode.
        kind: of its samples.
    """

    def __init__(self, model: EmbeddingModel, kind: str) -> None:
        super().__init__()
        self.model = model
        self.kind = kind

    def forward(self, *inputs: Tensor) -> Tensor:
        """Embeddings float32 [B, D]."""
        if self.kind == "images":
            inputs = (inputs[0].float() / 255,)
        return self.model.serve_features(self.model.trunk.graph_forward(*inputs)).float()


def write_graph(
    model: Model,
    out: str | Path,
    *,
    form: GraphForm = "onnx",
    int8: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a folder with a graph, `config.json`, which says what it takes and gives, and what a tokenizer needs.

    Args:
        model: on the CPU.
        out: the folder.
        form: `onnx` (`model.onnx`), or `torch-export` (`model.pt2`, for `torch.export.load`).
        int8: also write a graph whose weights have 8 bits (`model.int8.onnx`), and measure what that costs on the validation
            data of a run.
        overwrite: replace a folder that was exported before.

    Returns:
        `out`, `form`, `files`, `bytes`, `inputs`, `preparation`, `differences` by batch size, the largest between graph and
        model, and with `int8` the same and `map@r` on the validation classes, of the model and of the 8 bits, or
        `why_not_measured`.

    Raises:
        ConfigError: a package is missing, `out` exists, the model is not on the CPU, or it cannot be made a graph.
        TrainingError: the folder cannot be written.
    """
    if form not in _FILES:
        raise ConfigError(f"form is '{form}', but must be one of {', '.join(_FILES)}")
    if int8 and form != "onnx":
        raise ConfigError("int8 is for graphs of ONNX; leave it out, or choose --onnx")
    if model.device.type != "cpu":
        raise ConfigError(f"a graph is made of a model on the CPU, but this one is on {model.device}: --device cpu")
    compressor = model.model.compressor
    if compressor is not None and model.model.served == "compressed" and not compressor.is_online:
        compressor.check_fitted()
    if form == "onnx":
        _packages("onnx", "onnxscript", "onnxruntime")
    graph = ServingGraph(model.model, model.kind).eval()
    with new_folder(Path(out), overwrite=overwrite) as folder:
        path = folder / _FILES[form]
        example = graph_inputs(model, 3)
        about = _about(model, form, example)
        with weights_follow():
            model.model.trunk.keep(folder / TRUNK)
        try:
            (_write_onnx if form == "onnx" else _write_exported)(graph, example, path, json.dumps(about))
        except Exception as error:  # exporters raise nearly every type for what they cannot do
            if isinstance(error, ConfigError | OSError):
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(
                f"the trunk '{model.model.trunk.name}' cannot be made a graph of {form}: {reason}. Use the model folder"
                f" (--safetensors)"
            ) from error
        result: dict[str, Any] = {"out": str(out), "form": form, "inputs": about["inputs"], "preparation": about["preparation"]}
        result["differences"] = _differences(model, graph, _runner(path, form))
        if int8:
            result["int8"] = _write_int8(model, graph, path, folder / _INT8)
        (folder / CONFIG).write_text(
            json.dumps({**about, **plain({key: value for key, value in result.items() if key != "out"})}, indent=2) + "\n",
            encoding="utf-8",
        )
        result["files"] = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        result["bytes"] = sum((folder / file).stat().st_size for file in result["files"])
    return result


def graph_inputs(model: Model, count: int) -> dict[str, Tensor]:
    """Drawn samples as a graph of the model takes them, by name."""
    generator = torch.Generator().manual_seed(count)
    shape = (count, *model.sample_shape)
    if model.kind == "images":
        samples = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        (name,) = model.model.trunk.graph_inputs(samples)
        return {"pixels" if name == "samples" else name: samples}
    if model.kind == "features":
        return {"features": torch.randn(shape, generator=generator)}
    words = _WORDS.split()
    texts = TextStore([" ".join(words[: 3 + number % len(words)]) for number in range(count)]).fetch(np.arange(count))
    inputs = model.model.trunk.graph_inputs(texts)
    return {"bytes" if name == "samples" else name: value for name, value in inputs.items()}


def _about(model: Model, form: str, example: dict[str, Tensor]) -> dict[str, Any]:
    """What a graph takes and gives, for its metadata and for `config.json`."""
    height, width = model.sample_shape[1:] if model.kind == "images" else (0, 0)
    resized = model.preparation.in_words() if model.kind == "images" else ""
    preparation = {
        "images": f"Resize a picture {resized}, cut {width} x {height} pixels around the centre,"
        f" and give uint8 [B, {model.sample_shape[0]}, {height}, {width}]. All else is in the graph.",
        "features": "Give rows of numbers as they are in the data.",
        "texts": f"Give the UTF-8 of a text as uint8, filled up with zeros to {TEXT_BYTES}."
        if "bytes" in example
        else f"Split texts by the tokenizer in the folder '{TRUNK}', filled up to the longest of the batch.",
    }[model.kind]
    inputs = {
        name: {"dtype": str(value.dtype).removeprefix("torch."), "shape": ["batch", *_free(value)]}
        for name, value in example.items()
    }
    return {
        "format": GRAPH_FORMAT,
        "dmlcore": VERSION,
        "form": form,
        "kind": model.kind,
        "embedding_dim": model.embedding_dim,
        "has_unit_norm": model.has_unit_norm,
        "preparation": preparation,
        "inputs": inputs,
        "outputs": {"embeddings": {"dtype": "float32", "shape": ["batch", model.embedding_dim]}},
    }


def _free(value: Tensor) -> list[Any]:
    return ["length"] if value.dtype == torch.int64 else list(value.shape[1:])


def _dynamic_shapes(example: dict[str, Tensor]) -> tuple[tuple[dict[int, Any], ...]]:
    """Which sizes are free, as exporters take it: that of the batch, and the number of tokens."""
    dynamic = torch.export.Dim.DYNAMIC
    return (tuple({0: dynamic, 1: dynamic} if _free(value) == ["length"] else {0: dynamic} for value in example.values()),)


def _write_onnx(graph: nn.Module, example: dict[str, Tensor], path: Path, about: str) -> None:
    with _quiet():
        program: Any = torch.onnx.export(
            graph,
            tuple(example.values()),
            dynamo=True,
            dynamic_shapes=_dynamic_shapes(example),
            input_names=list(example),
            output_names=["embeddings"],
            opset_version=_OPSET,
            verbose=False,
        )
        program.model.metadata_props["dmlcore"] = about
        program.save(path)  # what a file of ONNX cannot hold, 2 GB, goes into a second one
    importlib.import_module("onnx.checker").check_model(str(path))


def _write_exported(graph: nn.Module, example: dict[str, Tensor], path: Path, about: str) -> None:
    with _quiet(), torch.no_grad():
        program = torch.export.export(graph, tuple(example.values()), dynamic_shapes=_dynamic_shapes(example))
        torch.export.save(program, path, extra_files={"dmlcore.json": about})


def _runner(path: Path, form: str) -> Callable[[dict[str, Tensor]], np.ndarray]:
    """Runs a graph that was written."""
    if form == "onnx":
        options = importlib.import_module("onnxruntime").SessionOptions()
        options.log_severity_level = 3
        session = importlib.import_module("onnxruntime").InferenceSession(str(path), options, ["CPUExecutionProvider"])
        return lambda inputs: session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    with _quiet():
        module = torch.export.load(path).module()

    def run(inputs: dict[str, Tensor]) -> np.ndarray:
        with torch.no_grad():
            return module(*inputs.values()).numpy()

    return run


def _differences(model: Model, graph: nn.Module, run: Callable[[dict[str, Tensor]], np.ndarray]) -> dict[str, float]:
    """The largest difference between a graph and the model, by batch size.

    Raises:
        TrainingError: the graph gives something else than embeddings.
    """
    differences = {}
    for count in BATCHES:
        inputs = graph_inputs(model, count)
        with torch.inference_mode():
            expected = graph(*inputs.values()).numpy()
        computed = run(inputs)
        if computed.shape != expected.shape or not np.isfinite(computed).all():
            raise TrainingError(f"the graph gives {list(computed.shape)} for {count} samples, but the model {expected.shape}")
        differences[str(count)] = float(np.abs(computed - expected).max())
    return differences


def _write_int8(model: Model, graph: nn.Module, path: Path, out: Path) -> dict[str, Any]:
    """Write the graph with weights of 8 bits, and say what that costs."""
    quantization = importlib.import_module("onnxruntime.quantization")
    with _quiet():
        quantization.quantize_dynamic(str(path), str(out), weight_type=quantization.QuantType.QUInt8)
    run = _runner(out, "onnx")
    result: dict[str, Any] = {"bytes": out.stat().st_size, "differences": _differences(model, graph, run)}
    try:
        validation = _validation_of(model)
    except DmlcoreError as error:  # such as data that are gone
        return {**result, "why_not_measured": str(error)}

    def measured(embed: Callable[[Tensor], Tensor]) -> float | None:
        rows = torch.cat([embed(batch) for batch in dataset_batches(validation, BATCH, 0)])
        return evaluating.evaluate(rows, validation).get("map@r")

    def embedded(batch: Tensor) -> Tensor:
        names = graph_inputs(model, 1)
        samples = (batch * 255).round().to(torch.uint8) if model.kind == "images" else batch
        inputs = model.model.trunk.graph_inputs(samples).values()
        return torch.from_numpy(run(dict(zip(names, inputs, strict=True))))

    result["map@r"] = {"model": measured(model), "int8": measured(embedded)}
    return result


def _validation_of(model: Model) -> LabelledDataset:
    """The validation part of a run's data.

    Raises:
        DataError: there is none that can be ranked.
        ConfigError: it needs code that was not consented to.
    """
    if not isinstance(model, TrainedRun):
        raise DataError("only a run has validation classes of its own")
    validation = model.open().validation
    if reason := evaluating.why_not_ranked(validation):
        raise DataError(reason)
    return validation


def _packages(*names: str) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"graphs of ONNX need the package {name} ({error}): `pip install {' '.join(names)}`") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the remarks of exporters off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
