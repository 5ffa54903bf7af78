"""`dcl` keeps the contract of losses, and its value is the one computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from dmlcore_example import Dcl

import dmlcore
from dmlcore.testing import check


def test_the_contract() -> None:
    check(Dcl)
    check(Dcl, temperature=0.02)  # exponents too far apart for one fixed shift
    check(Dcl, temperature=0.5, reduction="sum")


def test_the_value_by_hand() -> None:
    x, labels = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    pairs = [0.0 / 0.5 - 0.6 / 0.5, 0.8 / 0.5 - 0.6 / 0.5]  # anchors 0 and 1; 2 has no positive
    assert float(Dcl(temperature=0.5)(x, labels)) == pytest.approx(sum(pairs) / 2, rel=1e-5)


def test_nt_xent_is_the_softplus_of_it() -> None:
    x, labels = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])  # one positive per anchor: a value is a pair
    dcl = Dcl(reduction="none")(x, labels)
    other = dmlcore.losses.create("nt_xent", temperature=0.1, reduction="none")(x, labels)
    assert other.tolist() == pytest.approx([math.log1p(math.exp(value)) for value in dcl.tolist()], rel=1e-4)
