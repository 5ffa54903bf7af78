"""The campaign: that its faults happen and that it sees what they do, a tiny campaign, and a sampled one of two minutes."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaign import commands, faults, invariants, running
from campaign.__main__ import main
from campaign.bench import Bench
from campaign.parts import PARTS
from campaign.process import Fault, Said
from campaign.soak import judge as judge_samples
from campaign.trials import Failure, Part

LINE = "error: something is wrong with the file"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("campaign"))
    yield bench
    bench.close()


def write_carelessly(name: str) -> None:
    """A writer as none should be, run by the warm process: opens, writes, renames, without looking back."""
    beside = Path(f"{name}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(b"x" * 100)
        beside.rename(name)
    except OSError as error:
        with contextlib.suppress(OSError):
            Path("error").write_text(errno.errorcode[error.errno or 0])
    except KeyboardInterrupt:
        Path("error").write_text("interrupted")


CALL = "test_campaign:write_carelessly"


FAULTS: list[tuple[Fault, int, int, dict[str, object]]] = [
    (Fault.KILL, 1, -9, {}),
    (Fault.KILL, 2, -9, {"a.tmp": 50}),
    (Fault.KILL, 3, -9, {"a.tmp": 100}),
    (Fault.KILL, 4, 0, {"a": 100}),  # there is no fourth
    (Fault.FULL, 2, 0, {"a.tmp": 50}),  # what tells of it cannot be written either
    (Fault.BROKEN, 2, 0, {"a.tmp": 0, "error": "EIO"}),
    (Fault.BROKEN, 3, 0, {"a.tmp": 100, "error": "EIO"}),
    (Fault.INTERRUPT, 2, 0, {"a.tmp": 100, "error": "interrupted"}),
    (Fault.TERMINATE, 2, -15, {}),
    (Fault.HANG_UP, 3, -1, {}),
]


def test_every_operation_is_counted_and_faults_happen(bench: Bench) -> None:
    operations = bench.warm.run(["a"], bench.place(), logs=True, call=CALL).operations
    assert [operation.name for operation in operations] == ["open-to-write", "write", "rename"]
    assert [operation.takes_space for operation in operations] == [True, True, False]
    assert operations[2].path == "a"
    for fault, point, status, files in FAULTS:
        place = bench.place()
        said = bench.warm.run(["a"], place, fault, point, call=CALL)
        left = {path.name: path.stat().st_size if path.name != "error" else path.read_text() for path in place.iterdir()}
        assert said.status == status, (fault, point, said.err)
        if fault not in (Fault.TERMINATE, Fault.HANG_UP):  # the signal may come before or after the operation it is sent at
            assert left == files, (fault, point, said.err)


@pytest.mark.parametrize(
    ("said", "part_of_text"),
    [
        (Said(0, "", ""), ""),
        (Said(2, "", f"a note\n{LINE}\n"), ""),
        (Said(2, "", f"{LINE}\n{LINE}\n"), "2 lines of error"),
        (Said(1, "", ""), "0 lines of error"),
        (Said(1, "", "Traceback (most recent call last):\nValueError: x"), "a traceback: ValueError: x"),
        (Said(1, "", "error: ValueError: x is wrong. `--debug` shows where.\n"), "a raw message"),
        (Said(3, "", f"{LINE}\n"), "exit status 3"),
        (Said(-11, "", ""), "exit status -11"),
        (Said(0, "a \x1b[31m name", ""), "reaches the terminal"),
        (Said(0, "", "", is_late=True), "hung"),
    ],
)
def test_how_a_command_may_end(said: Said, part_of_text: str) -> None:
    text = invariants.wrong(said)
    assert part_of_text in text and bool(text) == bool(part_of_text)


def test_differences_are_named() -> None:
    expected = {"a": [1, {"b": 2.5}], "c": "x"}
    assert invariants.difference({"a": [1, {"b": 2.5}], "c": "x"}, expected) == ""
    assert invariants.difference({"a": [1, {"b": 2.6}], "c": "x"}, expected) == "a.1.b is 2.6 instead of 2.5"
    assert invariants.difference({"a": [1, {"b": 2.5}, 1], "c": "x"}, expected) == "a has 3 entries instead of 2"
    assert invariants.difference({"a": [1, {"b": 2.5}]}, expected) == "c is missing"
    assert invariants.timeless({"seconds": 1, "a": [{"wall_seconds": 2, "b": 3}]}) == {"a": [{"b": 3}]}


def test_a_lost_checkpoint_and_another_result_are_seen(bench: Bench) -> None:
    command = commands.BY_NAME["resume"]
    _, expected = faults.undisturbed(bench, command)
    killed = Said(-9, "", "")
    for damage, text in (
        (lambda run: (run / "checkpoints" / "last.pt").write_bytes(b""), ""),  # `previous.pt` is there
        (lambda run: [path.unlink() for path in (run / "checkpoints").iterdir()], "metrics.jsonl"),
        (lambda run: (run / "left.tmp").mkdir(), "unfinished files stay: run/left.tmp"),
        (lambda run: (run.parent / "x.npz").write_bytes(b"other"), "a file that was complete has changed: x.npz"),
    ):
        place = bench.place(command.template(bench))
        before = faults.contents(place, command.keeps)
        damage(place / "run")
        failure = faults.judge(bench, command, place, killed, before, expected)
        assert (text in failure.text) if text and failure else failure is None and not text


def test_growing_memory_is_seen() -> None:
    flat = [{"step": step, "memory": 100.0, "descriptors": 5, "threads": 1} for step in range(40)]
    assert judge_samples(flat) is None and judge_samples(flat[:3]) is not None
    for name, slope in (("memory", 0.5), ("descriptors", 0.1), ("threads", 0.1)):
        growing = [{**sample, name: sample[name] + slope * step} for step, sample in enumerate(flat)]
        failure = judge_samples(growing)
        assert failure is not None and f"{name} grows" in failure.text


def test_an_interrupted_campaign_goes_on_and_names_what_failed(tmp_path: Path) -> None:
    tried: list[str] = []

    def run(bench: Bench, key: str) -> Failure | None:
        tried.append(key)
        if key == "p/3" and len(tried) == 4:
            raise KeyboardInterrupt
        if key == "p/4":
            raise ZeroDivisionError("a trial that breaks is no trial that passes")
        return Failure("gone", is_lost=True) if key == "p/1" else None

    parts = [
        Part("p", lambda bench: [f"p/{k}" for k in range(5)], run),
        Part("q", lambda bench: [], run, why_not=lambda _: "no q"),
    ]
    bench, facts = Bench(tmp_path, seed=7), {"seed": 7}
    with pytest.raises(KeyboardInterrupt):
        running.run(bench, parts, running.Journal(tmp_path / "journal", facts, False), tell=lambda line: None)
    result = running.run(bench, parts, running.Journal(tmp_path / "journal", facts, False), tell=lambda line: None)
    assert tried == ["p/0", "p/1", "p/2", "p/3", "p/3", "p/4"]
    assert (result["tried"], result["failed"], result["lost"]) == (5, 2, 1)
    assert result["failures"][0]["again"] == "python -m tests.campaign --seed 7 --only p/1"
    text = running.table(result)
    assert "LOST: gone" in text and "skipped: no q" in text and "ZeroDivisionError" in text
    assert not running.Journal(tmp_path / "journal", {"seed": 8}, False).entries, "another seed is another campaign"


TINY = ["faults/train/kill/30", "faults/train/interrupt-twice/40", "damage/last/flip/1", "inputs/checkpoints/1", "inputs/npz/1"]
TINY += ["readers/pickles/1", "flags/train/--steps/0", "losses/1", "losses/2"]


def test_a_tiny_campaign_finds_nothing(bench: Bench) -> None:
    failures = {key: running.attempt(bench, PARTS[key.split("/")[0]], key) for key in TINY}
    assert not any(failures.values()), {key: failure for key, failure in failures.items() if failure}


def test_every_part_has_trials(bench: Bench) -> None:
    for part in PARTS.values():
        keys = part.keys(bench) if part.name not in ("faults", "flags") else []  # these take seconds, and others use them
        assert len(set(keys)) == len(keys) and all(key.startswith(f"{part.name}/") for key in keys)


@pytest.mark.slow
def test_a_sampled_campaign_finds_nothing(tmp_path: Path) -> None:
    status = main(["--minutes", "0.6", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "campaign.json")])
    result = json.loads((tmp_path / "campaign.json").read_text())
    assert status == 0, json.dumps(result["failures"], indent=1)
    assert all(row["tried"] or "skipped" in row for row in result["parts"].values())
