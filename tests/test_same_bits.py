"""Same seeds give the same bits: three short runs, every loss and some ensembles against what `same_bits.json` keeps.

The file holds final metrics, and hashes of weights, values and gradients. `python tests/test_same_bits.py --write FILE` writes
such a file with the dmlcore of its interpreter. Everything runs on one thread with the instruction sets that every x86-64
machine has, so that the bits depend little on the processor. They do depend on torch, on the C library and on the maker of the
processor, for which libraries have code of their own. Where those differ from the file's, numbers are compared with a
tolerance, and the tests of hashes are skipped with that reason.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

STORED = Path(__file__).with_name("same_bits.json")
# The lowest instruction set of every library that computes: dmlcore, torch's own kernels, MKL, oneDNN.
ENVIRONMENT = {
    "DML_CPU_LEVEL": "base",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "DML_CUDA": "0",
    "CUDA_VISIBLE_DEVICES": "",
    "DMLCORE_PLUGINS": "",
}
# Small images and a small trunk without batch statistics, so that a few steps improve on none.
COMMON = (
    "--data glyphs --image-size 16 --fractions 0.9,0.05,0.05 --model conv --conv.channels 8,16 --conv.norm none --device cpu"
    " --seed 5 --steps 6 --eval-every 3 --warmup 2 --classes-per-batch 12 --samples-per-class 3 --learning-rate 0.001"
)
RUNS = {
    "default": "--plugins circle,binomial_deviance,norm_softmax",
    "heads with compression": "--ensemble heads --compress 16 --plugins circle,binomial_deviance,norm_softmax",
    "wel": "--ensemble wel --plugins circle,binomial_deviance,norm_softmax",
}
ENSEMBLES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "default": (("circle", "binomial_deviance", "norm_softmax"), {"weighting": "equal_gradient_norms"}),
    "five": (("ms", "contrastive", "sup_con", "circle", "triplet"), {"weights": [1.0, 2.0, 0.5, 1.0, 3.0]}),
    "learned weights": (("ms", "proxy_anchor", "triplet"), {"weighting": "floor_square_penalty"}),
    "three heads": (("ms", "sup_con", "norm_softmax"), {"columns": [(0, 8), (8, 20), (20, 32)]}),
}
PARTS = ("model", "ensemble")
SAMPLES, WIDTH, CLASSES = 64, 32, 12


# What is measured: all of it in one child process.


def measure(losses: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything the stored file holds.

    Args:
        losses: `name` and `options` of every loss.
    """
    import torch

    torch.set_num_threads(1)
    return {
        "about": _about(),
        "runs": {name: _run(f"{COMMON} {flags}".split()) for name, flags in RUNS.items()},
        "losses": [{**loss, **_of_loss(loss["name"], loss["options"])} for loss in losses],
        "ensembles": {name: _of_ensemble(*ensemble) for name, ensemble in ENSEMBLES.items()},
    }


def _about() -> dict[str, str]:
    import torch

    import dmlcore

    folder = Path(dmlcore.__file__).parent
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
    return {
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "processor": _maker_of_processor(),
        "commit": head.stdout.strip(),
    }


def _maker_of_processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), platform.processor())


def _run(flags: list[str]) -> dict[str, Any]:
    """Final metrics of a training by the command line, and the hashes of the checkpoints' tensors."""
    import torch

    from dmlcore.cli import main

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        with contextlib.redirect_stdout(sys.stderr):
            status = main(["train", *flags, "--out", str(run)])
        if status:
            raise SystemExit(f"dmlcore train {' '.join(flags)} ended with status {status}")
        result = json.loads((run / "result.json").read_text())
        checkpoints = {
            name: torch.load(run / "checkpoints" / f"{name}.pt", map_location="cpu", weights_only=True)
            for name in ("best", "last")
        }
    return {
        **{key: result[key] for key in ("metrics", "baselines", "embeddings", "chosen_step") if key in result},
        "hashes": {f"{name} {part}": _hashes(state[part]) for name, state in checkpoints.items() for part in PARTS},
    }


def _of_loss(name: str, options: dict[str, Any]) -> dict[str, Any]:
    import torch

    from dmlcore.errors import ConfigError
    from dmlcore.losses import create

    torch.manual_seed(3)
    loss = create(name, num_classes=CLASSES, embedding_dim=WIDTH, **options)
    x, labels = _points(SAMPLES, seed=1)
    references, reference_labels = _points(40, seed=2)
    measured = {"batch": _value_and_gradients(loss, (x,), lambda a: loss(a, labels))}
    with contextlib.suppress(ConfigError, ValueError, TypeError):  # losses that take no references
        measured["references"] = _value_and_gradients(
            loss, (x, references), lambda a, b: loss(a, labels, references=b, reference_labels=reference_labels)
        )
    return measured


def _of_ensemble(names: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    import torch

    import dmlcore
    from dmlcore.losses import create

    torch.manual_seed(3)
    columns = options.get("columns") or [(0, WIDTH)] * len(names)
    losses = [
        create(name, num_classes=CLASSES, embedding_dim=end - start) for name, (start, end) in zip(names, columns, strict=True)
    ]
    ensemble = dmlcore.LossEnsemble(losses, **options)
    x, labels = _points(SAMPLES, seed=1)
    for _ in range(2):  # some weightings look at the calls before
        ensemble(x.clone().requires_grad_(), labels).backward()
    return {**_value_and_gradients(ensemble, (x,), lambda a: ensemble(a, labels)), "weights": _hash(ensemble.weights)}


def _points(count: int, seed: int) -> tuple[Any, Any]:
    """Points around one centre per class and their labels, unsorted: `[count, WIDTH]`, `[count]`."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    return centres[labels] + 0.9 * torch.randn(count, WIDTH, generator=generator), labels


def _value_and_gradients(module: Any, inputs: tuple[Any, ...], compute: Any) -> dict[str, Any]:
    import torch

    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    value = compute(*leaves)
    gradients = torch.autograd.grad(value, [*leaves, *parameters], allow_unused=True)
    present = [gradient for gradient in gradients if gradient is not None]
    return {
        "value": float(value.detach()),
        "norms": sorted(float(gradient.double().norm()) for gradient in present),
        "hashes": sorted([_hash(value), *map(_hash, present)]),
    }


def _hashes(state: Any) -> list[str]:
    """Hashes of all tensors of a nested state, sorted: neither names nor their order matter."""
    import torch

    def tensors(value: Any) -> Iterator[Any]:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict | list | tuple):
            for element in value.values() if isinstance(value, dict) else value:
                yield from tensors(element)

    return sorted(map(_hash, tensors(state)))


def _hash(tensor: Any) -> str:
    """Shape, type and the first 64 bits of SHA-256 of the bytes."""
    tensor = tensor.detach().cpu().contiguous()
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return f"{shape} {str(tensor.dtype).removeprefix('torch.')} {hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16]}"


def write(file: Path, like: Path | None = None) -> None:
    """Measure in a fresh process and write the file.

    Args:
        file: where to.
        like: a stored file whose losses are measured; None: those of the table of cases.
    """
    words = ["--measure", str(file), *(["--like", str(like)] if like else [])]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DML_")} | ENVIRONMENT
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-P", str(Path(__file__).resolve()), *words], env=environment, cwd=folder, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="file to write")
    parser.add_argument("--like", type=Path, help="stored file whose losses are measured (default: the table of cases)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(options.write.resolve(), options.like.resolve() if options.like else None)
        return
    if options.like:
        losses = [{key: loss[key] for key in ("name", "options")} for loss in json.loads(options.like.read_text())["losses"]]
    else:
        sys.path.insert(0, str(Path(__file__).parent))  # the process was started without it
        import cases

        losses = [{"name": case.name, "options": case.options} for case in cases.LOSSES]
    options.measure.write_text(_readable(measure(losses)))


def _readable(measured: dict[str, Any]) -> str:
    """JSON with a line per loss, ensemble and part of a run: a difference shows where it is."""

    def lines(value: Any, depth: int) -> str:
        if not depth:
            return json.dumps(value)
        pad = " " * (4 - depth)
        if isinstance(value, list):
            return "[\n" + ",\n".join(pad + json.dumps(element) for element in value) + f"\n{pad[1:]}]"
        parts = [f"{pad}{json.dumps(key)}: {lines(element, depth - 1)}" for key, element in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{pad[1:]}}}"

    depths = {"about": 0, "runs": 2, "losses": 1, "ensembles": 1}
    parts = [f" {json.dumps(key)}: {lines(measured[key], depth)}" for key, depth in depths.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


# The tests.


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return json.loads(STORED.read_text())


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("same_bits") / "measured.json"
    write(file, STORED)
    return json.loads(file.read_text())


def _why_not_same_bits(stored: dict[str, Any], measured: dict[str, Any]) -> str:
    """Why the bits cannot be expected to be the stored ones; an empty string where they can."""
    differing = [name for name in stored["about"] if name != "commit" and stored["about"][name] != measured["about"][name]]
    return ", ".join(f"{name} is {measured['about'][name]}, the file's is {stored['about'][name]}" for name in differing)


def _skip_hashes(stored: dict[str, Any], measured: dict[str, Any]) -> None:
    reason = _why_not_same_bits(stored, measured)
    if reason:
        pytest.skip(f"hashes can only agree with the same libraries: {reason}; numbers were compared with a tolerance")


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a nested result, by their path."""
    if isinstance(value, dict | list):
        for key, element in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(element, f"{path}/{key}")
    elif isinstance(value, int | float):
        yield path, float(value)


def _assert_numbers_agree(expected: Any, actual: Any, tolerance: float) -> None:
    """Every number is there again; equal where the tolerance is 0, else by relative or absolute difference."""
    before, now = dict(_numbers(expected)), dict(_numbers(actual))
    assert before and before.keys() == now.keys()
    differing = {
        path: (before[path], now[path])
        for path in before
        if not math.isclose(before[path], now[path], rel_tol=tolerance, abs_tol=tolerance)
    }
    assert not differing, f"(stored, now): {differing}"


@pytest.mark.parametrize("name", RUNS)
def test_a_run_keeps_its_metrics(name: str, stored: dict[str, Any], measured: dict[str, Any]) -> None:
    expected, actual = ({key: value for key, value in d["runs"][name].items() if key != "hashes"} for d in (stored, measured))
    if _why_not_same_bits(stored, measured):
        # A few steps move hardly any neighbour, but the best of three evaluations may be another one.
        for run in (expected, actual):
            del run["chosen_step"]
        _assert_numbers_agree(expected, actual, 0.03)
    else:
        _assert_numbers_agree(expected, actual, 0)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", RUNS)
def test_a_run_keeps_its_weights(name: str, part: str, stored: dict[str, Any], measured: dict[str, Any]) -> None:
    _skip_hashes(stored, measured)
    for checkpoint in ("best", "last"):
        key = f"{checkpoint} {part}"
        assert measured["runs"][name]["hashes"][key] == stored["runs"][name]["hashes"][key], checkpoint


def _loss_id(loss: dict[str, Any]) -> str:
    return loss["name"] + "".join(f"-{key}={value}" for key, value in loss["options"].items())


def _without_hashes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_hashes(element) for key, element in value.items() if key not in ("hashes", "weights", "options")}
    return value


def test_losses_keep_their_values(stored: dict[str, Any], measured: dict[str, Any]) -> None:
    tolerance = 1e-4 if _why_not_same_bits(stored, measured) else 0
    for key in ("losses", "ensembles"):
        by_name = [
            {_loss_id(row): row for row in d["losses"]} if key == "losses" else d["ensembles"] for d in (stored, measured)
        ]
        _assert_numbers_agree(_without_hashes(by_name[0]), _without_hashes(by_name[1]), tolerance)


def test_losses_keep_the_bits_of_their_gradients(stored: dict[str, Any], measured: dict[str, Any]) -> None:
    _skip_hashes(stored, measured)
    differing = [_loss_id(a) for a, b in zip(stored["losses"], measured["losses"], strict=True) if a != b]
    differing += [name for name in ENSEMBLES if stored["ensembles"][name] != measured["ensembles"][name]]
    assert not differing


def test_the_libraries_use_their_lowest_instruction_set() -> None:
    """The variables must take effect: otherwise the stored bits are those of one kind of processor."""
    words = (
        "import torch, dmlcore.kernels as k;"
        "print(torch.backends.cpu.get_cpu_capability(), k.info()['cpu']['level'], torch.get_num_threads());"
        "torch.backends.mkldnn.verbose(1).__enter__();"
        "torch.nn.functional.conv2d(torch.ones(4, 8, 9, 9), torch.ones(8, 8, 3, 3))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", words], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0].split() == ["DEFAULT", "base", "1"]
    isa = [line for line in done.stdout.splitlines() if "isa:" in line]
    assert all("isa:Intel SSE4.1" in line for line in isa), isa  # none where torch was built without oneDNN


if __name__ == "__main__":
    main()
