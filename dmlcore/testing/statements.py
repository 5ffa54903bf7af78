"""The formula of a fused loss stands twice, in a C++ header and in Python. Where the two disagree, both files are named."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

from dmlcore.losses import Loss, RowLoss


def where_both_stand(loss: Loss) -> str:
    """A sentence that names the header and the Python file of a loss; empty where it has no fused form."""
    call = loss.functor_call() if isinstance(loss, RowLoss) else ""
    if not isinstance(loss, RowLoss) or isinstance(call, str):
        return ""
    header = loss.functor_header() or f"csrc/losses/{call.functor}.h"
    module = inspect.getsourcefile(type(loss)) or type(loss).__module__
    return f"The formula of '{loss.name}' stands in {header} and in {module}: if one was changed, change the other too."


@contextmanager
def naming_both(loss: Loss) -> Iterator[None]:
    """Put the names of both files behind an `AssertionError` about a fused and a plain form that differ."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{error}\n{where_both_stand(loss)}".rstrip()) from error
