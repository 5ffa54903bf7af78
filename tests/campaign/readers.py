"""The readers themselves on inputs of `malformed`: one line, or every row accounted for. `malformed_readers` judges them."""

from __future__ import annotations

from pathlib import Path

from .bench import Bench
from .invariants import error_of
from .trials import Failure, Part

INPUTS, TRIALS = 20, 50  # of a trial, and trials of each reader
SECONDS = 120.0


def keys(bench: Bench) -> list[str]:
    """`readers/KIND/NUMBER`."""
    from malformed_readers import READERS

    return [f"readers/{kind}/{number}" for number in range(TRIALS) for kind in READERS]


def run(bench: Bench, key: str) -> Failure | None:
    """Some inputs of one reader."""
    _, kind, number = key.split("/")
    said = bench.warm.run(
        [kind, str(TRIALS * bench.seed + int(number))], bench.place(), call="campaign.readers:attempt_all", seconds=SECONDS
    )
    if said.is_late:
        return Failure("it hung and was killed")
    return None if said.status == 0 else Failure(error_of(said))


def attempt_all(kind: str, seed: str) -> None:
    """Let a reader read the inputs of a seed, in the present folder.

    Raises:
        AssertionError: one of them is not treated as it must be; the text names it.
    """
    from malformed_readers import READERS, attempt

    for name, content in READERS[kind][0](int(seed), INPUTS):
        try:
            attempt(kind, name, content, Path())
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error


PART = Part("readers", keys, run)
