"""The contract of optimizers, as checks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from dmlcore.config import build_options
from dmlcore.testing.report import Report
from dmlcore.training import Optimizer

RATE, STEPS = 0.02, 40


def check_optimizer(component: type[Optimizer], options: dict[str, Any], report: Report) -> None:
    """Groups that stay, a loss that falls, and a state from which it goes on exactly."""
    optimizer = component(build_options(component.Options, options, component.name))

    def begin() -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
        generator = torch.Generator().manual_seed(0)
        parameters = [nn.Parameter(torch.randn(n, generator=generator)) for n in (4, 3)]
        groups = [
            {"role": role, "params": [p], "lr": RATE, "base_rate": RATE, "weight_decay": 0.0}
            for role, p in zip(("trunk", "proxies"), parameters, strict=True)
        ]
        return parameters, optimizer.build(groups)

    def value(parameters: list[nn.Parameter]) -> torch.Tensor:
        return sum((p - 1).square().sum() for p in parameters)  # type: ignore[return-value]

    def go(parameters: list[nn.Parameter], built: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            built.zero_grad(set_to_none=True)
            value(parameters).backward()
            built.step()

    def keeps_groups() -> str | None:
        _, built = begin()
        if not isinstance(built, torch.optim.Optimizer):
            return f"build must return a torch.optim.Optimizer, got {type(built).__name__}"
        roles = [group.get("role") for group in built.param_groups]
        if roles != ["trunk", "proxies"]:
            return f"the groups must stay as they are given; their roles are {roles}"
        missing = [key for key in ("lr", "base_rate", "weight_decay") if any(key not in g for g in built.param_groups)]
        return f"groups have lost {', '.join(missing)}" if missing else None

    def lowers() -> str | None:
        parameters, built = begin()
        before = float(value(parameters).detach())
        go(parameters, built, STEPS)
        after = float(value(parameters).detach())
        return (
            None if after < 0.9 * before else f"{STEPS} steps at {RATE} take a sum of squares from {before:.3g} to {after:.3g}"
        )

    def resumes() -> str | None:
        parameters, built = begin()
        go(parameters, built, 3)
        others, again = begin()
        with torch.no_grad():
            for p, other in zip(parameters, others, strict=True):
                other.copy_(p)
        again.load_state_dict(copy.deepcopy(built.state_dict()))
        go(parameters, built, 3)
        go(others, again, 3)
        same = all(torch.equal(p, other) for p, other in zip(parameters, others, strict=True))
        return None if same else "with the state of another one it does not go on as that does"

    def perturbs() -> str | None:
        parameters, _ = begin()
        value(parameters).backward()
        before = [p.detach().clone() for p in parameters]
        ways = optimizer.perturbation(parameters)
        if [tuple(way.shape) for way in ways] != [tuple(p.shape) for p in parameters]:
            return "perturbation must give a tensor of each parameter's shape"
        if any(not torch.equal(p.detach(), old) for p, old in zip(parameters, before, strict=True)):
            return "perturbation must not change the parameters"
        for p in parameters:
            assert p.grad is not None
            p.grad *= 1024
        again = optimizer.perturbation(parameters)
        close = all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(ways, again, strict=True))
        return None if close else "perturbation depends on the scale of the gradient, which is arbitrary in float16"

    report.check("build: groups stay", keeps_groups)
    report.check("step: lowers a sum of squares", lowers)
    report.check("state: goes on exactly", resumes)
    if component.climbs:
        report.check("perturbation: shapes, no change, no scale", perturbs)
