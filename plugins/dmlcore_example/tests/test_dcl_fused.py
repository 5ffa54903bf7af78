"""The header of `dcl` and its Python side agree; where the header can be compiled, both give the same."""

from __future__ import annotations

import re

import pytest
import torch
from dmlcore_example import Dcl


def test_header_and_module_agree() -> None:
    text = Dcl.header.read_text(encoding="utf-8")
    call = Dcl().functor_call()
    names = re.findall(r'kOptions = "([^"]*)"', text)[0].split()
    assert Dcl.header.name == f"{call.functor}.h" and f'"{call.functor}"' in text
    assert [getattr(Dcl().options, name) for name in names] == list(call.options)


def test_the_fused_form_is_the_plain_one() -> None:
    loss = Dcl()
    if not loss.is_fused:
        pytest.skip(f"not fused here: {loss.why_not_fused}")
    x, labels = torch.randn(300, 16, requires_grad=True), torch.arange(300) % 40
    fused, plain = loss(x, labels), loss.reference(x, labels)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(value, x)[0] for value in (fused, plain)), rtol=1e-4, atol=1e-6)
