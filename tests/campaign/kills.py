"""Kill -9 of real processes at random times, and what the next start makes of it."""

from __future__ import annotations

from functools import cache

from .bench import Bench
from .commands import BY_NAME, COMMANDS, Command
from .faults import contents, judge, undisturbed
from .invariants import wrong
from .process import run_real
from .trials import Failure, Part

KILLS = 25  # of each command


@cache
def _seconds(bench: Bench, command: Command) -> float:
    """How long the command takes as a process of its own."""
    import time

    place = bench.place(command.template(bench))
    began = time.monotonic()
    run_real(command.words, place)
    return time.monotonic() - began


def keys(bench: Bench) -> list[str]:
    """`kills/COMMAND/NUMBER`."""
    return [f"kills/{command.name}/{number}" for number in range(KILLS) for command in COMMANDS]


def run(bench: Bench, key: str) -> Failure | None:
    """A process killed at a random time, mostly after its imports."""
    command = BY_NAME[key.split("/")[1]]
    _, expected = undisturbed(bench, command)
    whole = _seconds(bench, command)
    after = whole * float(bench.draws(key).uniform(0.3, 1.0))
    place = bench.place(command.template(bench))
    before = contents(place, command.keeps)
    said = run_real(command.words, place, kill_after=after)
    if text := wrong(said, (-9, 0)):
        return Failure(f"killed after {after:.2f} of {whole:.2f} s: {text}")
    failure = judge(bench, command, place, said, before, expected)
    return Failure(f"killed after {after:.2f} of {whole:.2f} s: {failure.text}", failure.is_lost) if failure else None


PART = Part("kills", keys, run)
