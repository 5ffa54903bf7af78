"""Functors of plugins: compiled on first use, equal to their plain form, in the same pass as built-in losses; the folder they
are kept in; what happens without a compiler, with a broken header, and in two processes at once."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import dmlcore
from dmlcore import plugins
from dmlcore.cli import main
from dmlcore.ensemble import explain
from dmlcore.errors import ConfigError, DmlcoreError, PluginError
from dmlcore.kernels import FunctorCall, extension, fused_pass, info, plan_options, recorded_passes
from dmlcore.kernels.jit import cpu_functors, dispatch
from dmlcore.kernels.jit.cache import clear, entries, opened
from dmlcore.kernels.jit.compiler import Compiler, find_compiler
from dmlcore.losses import CrossBatchMemory, PairOptions
from dmlcore.testing import check_loss

ROOT = Path(__file__).parents[1]
TOY = ROOT / "tests" / "toy_loss" / "toy.h"
pytestmark = [
    pytest.mark.skipif(extension.cpu() is None, reason="the CPU extension is not built"),
    pytest.mark.skipif(isinstance(find_compiler(), str), reason=str(find_compiler())),
]


def toy_module() -> Any:
    spec = importlib.util.spec_from_file_location("toy_of_tests", TOY.with_suffix(".py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules["toy_of_tests"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Toy = toy_module().Toy


def header(folder: Path, name: str, *changes: tuple[str, str]) -> Path:
    """The toy's header under another name, with changes to its text."""
    text = TOY.read_text().replace("toy_functors", f"{name}_functors").replace('"toy"', f'"{name}"')
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / f"{name}.h"
    path.write_text(text)
    return path


def loss_class(path: Path) -> Any:
    """The toy loss with a header of its own, and a miner among its options."""

    @dataclass(frozen=True, kw_only=True)
    class MinedOptions(PairOptions):
        """Options of the toy."""

        margin: float = 0.3
        """As the toy's."""

    class Mine(Toy):
        """The toy, compiled at run time."""

        Options = MinedOptions

        def functor_call(self) -> FunctorCall:
            return FunctorCall(path.stem, (self.options.margin,))

    Mine.header = path
    return Mine


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DML_CACHE", str(cache))
    monkeypatch.delenv("DML_JIT", raising=False)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return loss_class(header(tmp_path_factory.mktemp("plugin"), "toy_mine"))


def batch(count: int = 90, width: int = 8, classes: int = 13) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(count, width, dtype=torch.float64), torch.arange(count) % classes


def value_and_gradient(loss: Any, x: torch.Tensor, *arguments: Any, **keywords: Any) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = x.clone().requires_grad_()
    value = loss(leaf, *arguments, **keywords)
    return value, torch.autograd.grad(value, leaf)[0]


def test_a_functor_of_a_plugin_is_like_any_other(toy: Any) -> None:
    loss, (x, y) = toy(margin=0.1), batch()
    assert loss.is_fused, loss.why_not_fused
    assert info()["runtime"]["functors"]["toy_mine"] == str(toy.functor_header())
    assert info()["fused"]["cpu"]["toy_mine"] == ["margin"]
    references = {"references": torch.randn(40, 8, dtype=torch.float64), "reference_labels": torch.arange(40) % 13}
    related = {"relation": lambda a, b: (a[:, None] - b[None, :]).abs() < 2}
    for against in ({}, references, related):
        for options in ({}, {"threads": 2}, {"workspace": 0, "tile_rows": 16, "tile_columns": 32}):
            with plan_options(**options), recorded_passes() as passes:
                outcome = value_and_gradient(loss, x, y, **against)
            assert len(passes) == 1  # the kernels ran
            torch.testing.assert_close(outcome, value_and_gradient(loss.reference, x, y, **against), rtol=1e-10, atol=1e-12)
    mined = toy(margin=-0.5, miner="multi_similarity")
    with recorded_passes() as passes:
        outcome = value_and_gradient(mined, x, y)
    assert passes and passes[-1].calls[0].windows is not None
    torch.testing.assert_close(outcome, value_and_gradient(mined.reference, x, y), rtol=1e-10, atol=1e-12)
    check_loss(toy)


def test_it_shares_the_pass_of_an_ensemble(toy: Any) -> None:
    x, y = batch()
    ensemble = dmlcore.LossEnsemble([toy(margin=0.1), "ms", "triplet", toy(margin=-0.5)], weights=[1.0, 2.0, 0.5, 3.0])
    assert all(row["fused"] for row in ensemble.describe())
    with recorded_passes() as passes:
        outcome = value_and_gradient(ensemble, x, y)
    assert [[call.functor for call in pass_.calls] for pass_ in passes] == [["toy_mine", "ms", "triplet_all", "toy_mine"]]

    def alone(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        parts = zip([1.0, 2.0, 0.5, 3.0], ensemble.members, strict=True)
        return torch.stack([weight * loss.reference(embeddings, labels) for weight, loss in parts]).sum()

    torch.testing.assert_close(outcome, value_and_gradient(alone, x, y), rtol=1e-10, atol=1e-12)
    said = explain([toy(), "ms"], 512, 16)
    assert len(said.passes) == 1 and not said.plain and "toy" in str(said)


def test_it_takes_a_memory_and_half_precision(toy: Any) -> None:
    x, y = batch()
    plain, fused = (CrossBatchMemory(toy(), size=200, embedding_dim=8) for _ in range(2))
    plain.loss.forward = plain.loss.reference
    for k in range(3):
        rolled = x.roll(k, 0)
        torch.testing.assert_close(
            value_and_gradient(fused, rolled, y), value_and_gradient(plain, rolled, y), rtol=1e-9, atol=1e-12
        )
    half = toy()(x.bfloat16(), y)
    torch.testing.assert_close(half, toy()(x.bfloat16().float(), y))


def test_on_another_device_the_plain_form_runs(toy: Any) -> None:
    assert "no form for mps" in dispatch.why_not_loaded("toy_mine", toy.functor_header(), "mps")


def test_it_may_be_first_used_under_compilation(tmp_path: Path) -> None:
    x, y = batch()
    path = header(tmp_path, "toy_traced")
    ensemble = dmlcore.LossEnsemble([loss_class(path)(), "ms"])
    assert path not in [library.header for library in cpu_functors.loaded()]
    compiled = torch.compile(ensemble, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_gradient(compiled, x, y), value_and_gradient(ensemble, x, y))
    assert path in [library.header for library in cpu_functors.loaded()]


def test_every_instruction_set_has_its_own(toy: Any) -> None:
    x, y = batch(40)
    before = extension.level()
    try:
        for level in extension.cpu().levels():
            extension.use_level(level)
            loss = toy()
            assert loss.is_fused and any(entry.level == level for entry in cpu_functors.loaded())
            outcome = value_and_gradient(loss, x.float(), y)
            torch.testing.assert_close(outcome, value_and_gradient(loss.reference, x.float(), y))
    finally:
        extension.use_level(before)
    assert toy().is_fused


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ms", "contrastive", "triplet", "smooth_ap", "histogram", "lifted_structure", "margin"])
def test_built_in_headers_give_the_same_bits(name: str, tmp_path: Path) -> None:
    text = (ROOT / "csrc" / "losses" / f"{name}.h").read_text().replace(f"{name}_functors", f"again_{name}_functors")
    path = tmp_path / f"again_{name}.h"
    path.write_text(re.sub(r'(add<\w+>\(")', r"\1again_", text))
    names = cpu_functors.build(path).functors
    assert names and all(name.startswith("again_") for name in names)
    x, y = batch(200)
    for again in names:
        options, _ = extension.functors()[again]
        numbers = {"bins": 11.0, "scale": 2.0, "temperature": 0.1, "cells": 11.0}
        call = FunctorCall(
            again, tuple(numbers.get(option, 0.5) for option in options), torch.ones(1, 200, dtype=torch.float64)
        )
        built_in = FunctorCall(again.removeprefix("again_"), call.options, call.given)
        for values in (x, x.float()):
            leaves = [values.clone().requires_grad_() for _ in range(2)]
            passes = [
                fused_pass(leaf, y, None, None, (functor,)) for leaf, functor in zip(leaves, (call, built_in), strict=True)
            ]
            assert all(torch.equal(*pair) for pair in zip(*passes, strict=True))
            gradients = [
                torch.autograd.grad(passed[0].sum() + passed[2].square().sum(), leaf)[0]
                for passed, leaf in zip(passes, leaves, strict=True)
            ]
            assert torch.equal(*gradients)


CHILD = """
import sys, warnings
sys.path[:0] = [sys.argv[2]]
import torch
from test_runtime_functors import batch, loss_class, value_and_gradient
from dmlcore.kernels.jit import cpu_functors
from pathlib import Path
loss = loss_class(Path(sys.argv[1]))()
x, y = batch()
value, _ = value_and_gradient(loss, x, y)
print(loss.is_fused, [one.compiled for one in cpu_functors.loaded()], float(value), float(loss.reference(x, y)))
"""


def child(path: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", CHILD, str(path), str(Path(__file__).parent)]
    return subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result(process: subprocess.Popen[str]) -> tuple[bool, float]:
    """Whether the child compiled, and the value it found, which must be that of the plain form."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    fused, compiled, value, plain = out.split()
    assert fused == "True" and abs(float(value) / float(plain) - 1) < 1e-9
    return compiled == "[True]", float(value)


@pytest.mark.slow
def test_processes_share_what_one_of_them_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "factor.h").write_text("#define TWICE 2\n")
    path = header(tmp_path, "toy_shared", ("#pragma once\n", '#pragma once\n#include "factor.h"\n'), ("-2 * w", "-TWICE * w"))
    calls = tmp_path / "calls"
    counting = tmp_path / "counting"
    counting.write_text(f'#!/bin/sh\necho called >> {calls}\nexec g++ "$@"\n')
    counting.chmod(0o755)
    environment = {"CXX": str(counting), "DML_CACHE": str(tmp_path / "kept")}
    together = [child(path, **environment) for _ in range(2)]
    assert sorted(result(process)[0] for process in together) == [False, True]
    assert calls.read_text().split() == ["called"]
    assert not result(child(path, **environment))[0]  # a third process, later
    assert calls.read_text().split() == ["called"]
    folder = tmp_path / "kept" / "kernels"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(file.suffix for file in folder.iterdir()) == ["", ".json", ".so"]  # the lock, and no leftovers

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    level = extension.level()
    assert not cpu_functors._cached_or_compiled(path, level, find_compiler())[1]
    (tmp_path / "factor.h").write_text("#define TWICE (1 + 1)\n")  # what it includes counts too
    assert cpu_functors._cached_or_compiled(path, level, find_compiler())[1]
    assert calls.read_text().split() == ["called", "called"]
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert not cpu_functors._cached_or_compiled(path, level, find_compiler())[1]  # what is kept needs no compiler


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("typo", ("r.push += hinge * hinge;", "r.push += hinje * hinge;"), r"^toy_typo\.h:22: .*hinje"),
        ("part", ("static constexpr int kValues = 1;", ""), r"^toy_part\.h:7: ToyPairs .*kValues"),
        ("options", ('"margin"', '"margin scale"'), r"^toy_options\.h:7: ToyPairs .*kOptions names every option"),
        (
            "list",
            ("struct toy_list_functors", "struct other_functors"),
            r"^toy_list\.h must end with `struct toy_list_functors`",
        ),
        ("taken", ('add<Toy>("toy_taken")', 'add<Toy>("ms")'), r"^the functor 'ms' has the name of one that is built in"),
    ],
)
def test_a_broken_header_is_one_message_and_the_plain_form(
    name: str, change: tuple[str, str], words: str, tmp_path: Path
) -> None:
    path = header(tmp_path, f"toy_{name}", change)
    loss, (x, y) = loss_class(path)(), batch()
    with pytest.warns(UserWarning, match="runs in plain PyTorch") as warned:
        assert not loss.is_fused
        assert re.search(words, loss.why_not_fused) and "\n" not in loss.why_not_fused
        assert torch.equal(loss(x, y), loss.reference(x, y))
    assert len(warned) == 1
    assert info()["runtime"]["failed"][str(path)] == loss.why_not_fused
    with pytest.raises(PluginError, match=words):
        cpu_functors.build(path)


def test_a_name_that_is_not_there(tmp_path: Path, toy: Any) -> None:
    path = header(tmp_path, "toy_named", ('add<Toy>("toy_named")', 'add<Toy>("toy_other_name")'))
    assert "toy_named.h lists no functor 'toy_named', but toy_other_name" in loss_class(path)().why_not_fused
    with pytest.warns(UserWarning, match="there is no header"):
        assert not loss_class(tmp_path / "toy_gone.h")().is_fused
    (tmp_path / 'a"b').mkdir()
    with pytest.raises(PluginError, match="such characters"):
        cpu_functors.build(header(tmp_path / 'a"b', "toy_quoted"))
    other = loss_class(header(tmp_path, "toy_mine"))()  # of another folder
    assert "has the name of one of" in other.why_not_fused and str(toy.functor_header()) in other.why_not_fused


@pytest.mark.parametrize(
    "environment", [{"CXX": "/nowhere/g++"}, {"CXX": "", "PATH": "/nowhere"}, {"CXX": "g++ '", "X": "", "Y": ""}]
)
def test_without_a_compiler_the_plain_form_runs(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    loss, (x, y) = loss_class(header(tmp_path, f"toy_lone_{len(environment)}"))(), batch()
    with pytest.warns(UserWarning, match="many times slower") as warned:
        assert torch.equal(loss(x, y), loss.reference(x, y))
        assert not loss.is_fused and re.search("no C.. compiler|is not found|is no command", loss.why_not_fused)
    assert len(warned) == 1


def test_it_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DML_JIT", "0")
    loss, (x, y) = loss_class(header(tmp_path, "toy_off"))(), batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # who asked for it needs no warning
        assert loss.why_not_fused == "DML_JIT=0 switches run-time compilation off"
        assert torch.equal(loss(x, y), loss.reference(x, y))
    with pytest.raises(DmlcoreError, match="DML_JIT=0"):
        cpu_functors.build(tmp_path / "toy_off.h")


def test_nothing_is_loaded_from_where_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "open"
    monkeypatch.setenv("DML_CACHE", str(place))
    path = header(tmp_path, "toy_unsafe")
    folder = opened()
    for unsafe, mode, words in ((folder, 0o777, "can be written by others"), (place, 0o777, "can be written by everybody")):
        before = stat.S_IMODE(unsafe.stat().st_mode)
        unsafe.chmod(mode)
        with pytest.raises(ConfigError, match=words):
            cpu_functors.build(path)
        with pytest.raises(ConfigError, match=words):
            clear()
        assert main(["kernels", "list"]) == 2
        unsafe.chmod(before)
    place.chmod(0o1777)  # sticky, as /tmp
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="can be written by everybody, so it is not compiled"):
        cpu_functors.build(path)
    path.chmod(0o644)
    with monkeypatch.context() as other:
        other.setattr(os, "getuid", lambda: 12345)
        kept_by_root = folder.stat().st_uid == 0
        os.chown(folder, 23456, -1) if kept_by_root else None
        with pytest.raises(ConfigError, match="belongs to user"):
            opened()
        os.chown(folder, 0, -1) if kept_by_root else None

    compiler = find_compiler()
    assert isinstance(compiler, Compiler)
    file, compiled = cpu_functors._cached_or_compiled(path, extension.level(), compiler)
    assert compiled
    file.chmod(0o666)
    with pytest.raises(ConfigError, match="can be written by others"):
        cpu_functors.build(path)
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:1000])  # not loaded yet; damaged
    assert cpu_functors._cached_or_compiled(path, extension.level(), compiler)[1]
    assert not cpu_functors._cached_or_compiled(path, extension.level(), compiler)[1]


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DML_CACHE", str(tmp_path / "kept"))
    path = header(tmp_path, "toy_listed")
    assert main(["kernels", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kernels"] == []
    assert main(["kernels", "build", str(path), "--json"]) == 0
    (built,) = json.loads(capsys.readouterr().out)["built"]
    assert built["functors"] == ["toy_listed"] and built["compiled"] and built["level"] == extension.level()
    assert main(["kernels", "list", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["kernels"]
    assert entry["header"] == str(path) and entry["state"] == "current" and entry["functors"] == ["toy_listed"]
    path.write_text(path.read_text() + "// changed\n")
    assert main(["kernels", "list"]) == 0 and "changed" in capsys.readouterr().out
    broken = header(tmp_path, "toy_refused", ("T margin;", "T margin"))
    assert main(["kernels", "build", str(broken)]) == 1
    assert "toy_refused.h:11: expected" in capsys.readouterr().out
    assert main(["kernels", "build", "toy_listde"]) == 2
    assert main(["kernels", "clear", "another", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == []
    assert main(["kernels", "clear", "toy_listed"]) == 0
    assert "toy_listed-" in capsys.readouterr().out and entries() == []


def test_dmlcore_kernel_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = header(tmp_path, "toy_hooked")
    offered: list[Any] = [path]
    hook = types.SimpleNamespace(dmlcore_kernel_headers=dmlcore.hookimpl(lambda: list(offered)))
    manager = plugins.new_manager()
    plugins.register(manager, hook, "mine")
    monkeypatch.setattr(plugins, "manager", lambda: manager)
    unnamed = loss_class(path)
    unnamed.header = None
    assert unnamed().is_fused, unnamed().why_not_fused
    assert plugins.kernel_headers(manager) == {path: "mine"}
    for wrong, words in ((3, "failed: TypeError"), (tmp_path / "none.h", "which is no file NAME.h")):
        offered[0] = wrong
        with pytest.raises(PluginError, match=words):
            plugins.kernel_headers(manager)


def test_an_installed_package_brings_the_headers(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "DML_CUDA": "0"})
    assert done.returncode == 0, done.stderr
    from dmlcore.kernels.jit import headers

    assert headers.fingerprint(tmp_path / "dmlcore" / "include") == extension.cpu().headers()
    assert headers.fingerprint(tmp_path / "dmlcore" / "include", "cuda") == headers.fingerprint(ROOT / "csrc", "cuda")
