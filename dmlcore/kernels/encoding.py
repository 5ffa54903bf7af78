"""Passes as flat lists, as custom operators take them: `layout` tells what the passes are, by numbers and by places in the
lists of tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dmlcore.kernels.passes import FunctorCall, Pass, Relations, Target

Encoded = tuple[list[Tensor], str, list[float], list[int]]


def encoded(passes: Sequence[Pass], targets: Sequence[tuple[Target, Target]]) -> Encoded:
    """Constant tensors, functors, options and layout."""
    constants: list[Tensor] = []
    functors: list[str] = []
    options: list[float] = []
    layout: list[int] = []

    def place(tensor: Tensor | None) -> int:
        if tensor is None:
            return -1
        for index, placed in enumerate(constants):
            if placed is tensor:
                return index
        constants.append(tensor)
        return len(constants) - 1

    for pass_, ((source, first), (other, other_first)) in zip(passes, targets, strict=True):
        # a width that is not told is that of the tensor, which may change from call to call
        whole = pass_.anchors_in is None and pass_.references_in is None
        layout += [source, first, -1 if whole else pass_.anchors.shape[1], place(pass_.anchor_labels)]
        layout += [other, other_first, place(pass_.reference_labels), *map(int, pass_.normalise), *map(place, pass_.relations)]
        layout += [len(pass_.calls), -1 if pass_.owners is None else len(pass_.owners), *(pass_.owners or ())]
        for call in pass_.calls:
            functors.append(call.functor)
            options += call.options
            assert call.given is None or isinstance(call.given, Tensor)
            options += () if call.semihard is None else (call.semihard,)
            layout += [len(call.options), place(call.given), place(call.windows), int(call.semihard is not None), call.cells]
    return constants, ",".join(functors), options, layout


def decoded(
    sources: Sequence[Tensor], constants: list[Tensor], functors: str, options: list[float], layout: list[int]
) -> tuple[list[Pass], list[tuple[Target, Target]]]:
    names, numbers, values = iter(functors.split(",")), iter(layout), iter(options)
    passes: list[Pass] = []
    targets: list[tuple[Target, Target]] = []

    def take(count: int) -> list[int]:
        return [next(numbers) for _ in range(count)]

    def constant(index: int) -> Tensor | None:
        return None if index < 0 else constants[index]

    def columns(source: int, first: int, width: int) -> Tensor:
        return sources[source] if width < 0 else sources[source].narrow(1, first, width)

    while (source := next(numbers, None)) is not None:
        first, width, labels, other, other_first, other_labels, *normalise = take(8)
        own, starts, positives, count, owned = take(5)
        owners = None if owned < 0 else tuple(take(owned))
        calls = []
        for _ in range(count):
            number, per_anchor, windows, has_margin, cells = take(5)
            call_options = tuple(next(values) for _ in range(number))
            margin = next(values) if has_margin else None
            calls.append(FunctorCall(next(names), call_options, constant(per_anchor), constant(windows), cells, margin))
        passes.append(
            Pass(
                columns(source, first, width),
                constants[labels],
                None if other < 0 else columns(other, other_first, width),
                constant(other_labels),
                tuple(calls),
                (bool(normalise[0]), bool(normalise[1])),
                Relations(constant(own), constant(starts), constant(positives)),
                owners=owners,
            )
        )
        targets.append(((source, first), (other, other_first)))
    return passes, targets
