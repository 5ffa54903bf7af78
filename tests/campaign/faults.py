"""A fault at every file operation of every command, and what the next start makes of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .bench import Bench
from .commands import BY_NAME, COMMANDS, Command, must, refusal_is_right
from .invariants import (
    DONE,
    FAILED,
    HUNG_UP,
    INTERRUPTED,
    MISTAKE,
    TERMINATED,
    difference,
    hash_of,
    unfinished,
    wrong,
)
from .process import Fault, Operation, Said
from .trials import Failure, Part

STATUSES = {
    Fault.KILL: (-9,),
    Fault.FULL: (DONE, FAILED, MISTAKE),
    Fault.BROKEN: (DONE, FAILED, MISTAKE),
    Fault.INTERRUPT: (DONE, INTERRUPTED),
    Fault.INTERRUPT_TWICE: (DONE, INTERRUPTED),
    Fault.TERMINATE: (DONE, TERMINATED),
    Fault.HANG_UP: (DONE, HUNG_UP),
}
WORDS = {fault: fault.name.lower().replace("_", "-") for fault in STATUSES}
SIGNALS = (Fault.TERMINATE, Fault.HANG_UP)


@cache
def undisturbed(bench: Bench, command: Command) -> tuple[tuple[Operation, ...], Any]:
    """The operations of a command, and the state that it leaves."""
    place = bench.place(command.template(bench))
    said = must(bench.warm.run(command.words, place, logs=True))
    return said.operations, command.state(place, said)


def keys(bench: Bench) -> list[str]:
    """`faults/COMMAND/FAULT/POINT` for every operation that the fault can hit."""
    result = []
    for command in COMMANDS:
        operations, _ = undisturbed(bench, command)
        for fault, word in WORDS.items():
            for point, operation in enumerate(operations, 1):
                can_hit = operation.takes_space if fault is Fault.FULL else True
                # Both come to the same handler, so every third point will do.
                if can_hit and (fault not in SIGNALS or point % 3 == SIGNALS.index(fault)):
                    result.append(f"faults/{command.name}/{word}/{point}")
    return result


def run(bench: Bench, key: str) -> Failure | None:
    """One fault, then the next start without any."""
    _, name, word, number = key.split("/")
    command, fault, point = BY_NAME[name], next(fault for fault in WORDS if WORDS[fault] == word), int(number)
    operations, expected = undisturbed(bench, command)
    operation = operations[point - 1] if point <= len(operations) else None
    where = f"at {operation.name} {Path(operation.path).name}: " if operation else ""
    place = bench.place(command.template(bench))
    before = contents(place, command.keeps)
    said = bench.warm.run(command.words, place, fault, point)
    texts = [wrong(said, _statuses(fault, said))]
    failure = judge(bench, command, place, said, before, expected)
    texts += [failure.text] if failure else []
    if not any(texts):
        return None
    return Failure(where + "; ".join(filter(None, texts)), failure is not None and failure.is_lost)


def _statuses(fault: Fault, said: Said) -> tuple[int, ...]:
    """Statuses that are right; before training begins there is nothing to save, and a signal may end the process as it does."""
    own = {Fault.TERMINATE: -15, Fault.HANG_UP: -1}.get(fault)
    is_training = "\ntraining " in said.err
    return STATUSES[fault] if own is None or is_training else (*STATUSES[fault], own)


def judge(bench: Bench, command: Command, place: Path, said: Said, before: dict[str, str], expected: Any) -> Failure | None:
    """What the next start does after a fault.

    Args:
        bench: the workplace.
        command: that was disturbed.
        place: its folder.
        said: what it said.
        before: hashes of what no fault may change.
        expected: the state that the undisturbed command leaves.
    """
    if text := difference(contents(place, command.keeps), before):
        return Failure(f"a file that was complete has changed: {text}", is_lost=True)
    if said.status == DONE and (text := difference(command.state(place, said), expected)):
        return Failure(f"it ended with status 0, but {text}", is_lost=True)
    saved = saved_step(place)
    words = command.again(place)
    following = bench.warm.run(words, place)
    if not refusal_is_right(command, place, following):
        if text := wrong(following, (DONE,)):
            is_lost = following.status != DONE
            return Failure(f"then `dmlcore {' '.join(words[:3])}`: {text}", is_lost)
        done = re.search(r", ([\d,]+) done already", following.err)
        began = int(done[1].replace(",", "")) if done else 0
        if saved > began and "--resume" in words:
            return Failure(f"the checkpoint of step {saved} is intact, but the next start began at step {began}", is_lost=True)
    if text := difference(command.state(place, following), expected):
        return Failure(f"after the next start {text}", is_lost=True)
    if leftovers := unfinished(place):
        return Failure(f"unfinished files stay: {', '.join(leftovers[:3])}")
    return None


def saved_step(place: Path) -> int:
    """The step of the newest intact checkpoint of the run, -1 for none."""
    from dmlcore.training import checkpoints

    steps = [-1]
    for name in ("last", "previous"):
        try:
            steps.append(int(checkpoints.load(place / "run" / "checkpoints", name)["step"]))
        except Exception:  # there is none, or it is no checkpoint: nothing to go on with
            continue
    return max(steps)


def contents(place: Path, names: Sequence[str]) -> dict[str, str]:
    """Hashes of files, by name."""
    return {name: hash_of((place / name).read_bytes()) if (place / name).exists() else "missing" for name in names}


PART = Part("faults", keys, run, share=4.0)
