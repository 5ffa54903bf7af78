"""`dmlcore export`: a trained model as a folder of its own, or in a form of other libraries."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from cyclopts import App

from dmlcore import console
from dmlcore.commands.line import CommandLine
from dmlcore.commands.trained import LOADING, MODEL
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag
from dmlcore.hookspecs import hookimpl

_FORMS = ("safetensors", "hf", "onnx", "torch-export")


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    flags = [
        MODEL,
        flag("out", Path, "The folder to write.", inspect.Parameter.empty),
        flag("safetensors", bool, "A model folder, which `dmlcore.load` reads (this is the default).", False),
        flag("hf", bool, "A folder that sentence-transformers reads.", False),
        flag("onnx", bool, "A folder with a graph of ONNX, for onnxruntime and others.", False),
        flag("torch_export", bool, "A folder with a graph for torch.export.load.", False),
        flag("int8", bool, "With --onnx: also a graph with weights of 8 bits, and what that costs.", False),
        flag("licence", str | None, "Of the model, such as mit or cc-by-4.0, for its card."),
        flag("name", str | None, "Of the model, for its card (default: that of the folder)."),
        flag("overwrite", bool, "Replace what was exported there before.", False),
        *LOADING,
        *COMMON,
    ]
    app.command(command(_export, flags, "Write a trained model in a form of its own."), name="export")


def _export(
    model: str,
    *,
    out: Path,
    safetensors: bool,
    hf: bool,
    onnx: bool,
    torch_export: bool,
    int8: bool,
    licence: str | None,
    name: str | None,
    overwrite: bool,
    checkpoint: str,
    device: str,
    trust_plugins: bool,
    json: bool,
    debug: bool,
) -> int:
    from dmlcore.serving import export_folder, load, write_graph

    forms = [name for name, is_on in zip(_FORMS, (safetensors, hf, onnx, torch_export), strict=True) if is_on]
    if len(forms) > 1:
        raise ConfigError(f"--{' and --'.join(forms)} are different forms; leave one out")
    form: Any = forms[0] if forms else "safetensors"
    is_graph = form in ("onnx", "torch-export")
    if int8 and not is_graph:
        raise ConfigError("--int8 goes with --onnx")
    if is_graph and (licence or name):
        raise ConfigError("--licence and --name are for model cards, which a folder with a graph has none of")
    on_device = "cpu" if is_graph and device == "auto" else device
    trained = load(model, checkpoint=checkpoint, device=on_device, trust_plugins=trust_plugins)
    if is_graph:
        result = write_graph(trained, out, form=form, int8=int8, overwrite=overwrite)
    else:
        result = export_folder(trained, out, form=form, name=name, licence=licence, overwrite=overwrite)
    if json:
        console.show_json(result)
        return 0
    console.show_sentences(f"{out}: {', '.join(result['files'])} ({result['bytes'] / 1e6:,.1f} MB)")
    if is_graph:
        _show_graph(result)
    else:
        console.show_sentences(result["use"])
    return 0


def _show_graph(result: dict[str, Any]) -> None:
    for name, about in result["inputs"].items():
        console.show(f"takes {name}, {about['dtype']} [{', '.join(map(str, about['shape']))}]")
    console.show_sentences(result["preparation"])
    _show_differences("largest difference from the model", result["differences"])
    small = result.get("int8")
    if small is None:
        return
    _show_differences(f"largest difference with 8 bits ({small['bytes'] / 1e6:,.1f} MB)", small["differences"])
    measured = small.get("map@r")
    if measured is None:
        console.show_sentences(f"What 8 bits cost in MAP@R was not measured: {small['why_not_measured']}")
    else:
        lost = measured["model"] - measured["int8"]
        console.show_sentences(
            f"MAP@R on the validation classes: {measured['model']:.4f}, with 8 bits {measured['int8']:.4f} ({-lost:+.4f})"
        )


def _show_differences(label: str, differences: dict[str, float]) -> None:
    sizes = ", ".join(f"{value:.1g} at {size}" for size, value in differences.items())
    console.show_sentences(f"{label}, by batch size: {sizes}")
