"""`python -m benchmarks gpu --first` without a GPU: cases that pass, fail, hang and crash; its parts on CPU tensors."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # last: an installed package stays what is measured

from benchmarks.gpu.first import command, page, parts, plan  # noqa: E402
from benchmarks.gpu.first.runner import Case, Results, Row, read, run  # noqa: E402
from benchmarks.gpu.first.watching import Ending, watch  # noqa: E402

IDENTITY = {"device": "none", "commit": "1"}
PARTS = """
import json, os, signal, sys, time
for name in sys.argv[1:]:
    print("noise of", name)
    if name == "hangs": time.sleep(60)
    if name == "crashes": os.kill(os.getpid(), signal.SIGSEGV)
    if name == "leaves": sys.exit(3)
    if name == "tears":
        print("@part {torn", flush=True)
        continue
    print("\\n@part " + json.dumps({"status": "passed", "process": os.getpid(), "part": name}), flush=True)
    if name == "spoils": sys.exit(70)
"""


def python(text: str, name: str, **details: object) -> Case:
    return Case(name, "stage", (sys.executable, "-c", text), **{"seconds": 5.0, **details})  # type: ignore[arg-type]


def statuses(rows: list[Row]) -> dict[str, str]:
    return {row["key"]: row["status"] for row in rows}


def test_every_end_of_a_process_is_written_down(tmp_path: Path) -> None:
    cases = [
        python("print('fine')", "passes"),
        python("print('what was wrong'); raise SystemExit(4)", "fails"),
        python("import time; time.sleep(60)", "hangs", seconds=0.3),
        python("import os; os.kill(os.getpid(), 11)", "crashes"),
        Case("is missing", "stage", ("/no/such/program",)),
        python("", "is skipped", skip="there is no compute-sanitizer"),
        python("", "after a failure", needs="fails"),
        python("", "after a pass", needs="passes"),
    ]
    file, said = tmp_path / "first.jsonl", []
    began = time.monotonic()
    rows = run(cases, Results(file, IDENTITY), 60.0, {"stage": 1.0}, tmp_path, said.append)
    assert time.monotonic() - began < 5
    assert list(statuses(rows).values()) == ["passed", "failed", "hung", "crashed", "failed", "skipped", "skipped", "passed"]
    assert rows == said == read(file)
    details = {row["key"]: row["detail"] for row in rows}
    assert details["fails"] == "what was wrong" and "SIGSEGV" in details["crashes"] and "/no/such" in details["is missing"]
    assert details["after a failure"] == "fails did not pass" and details["is skipped"] == "there is no compute-sanitizer"
    assert all(row["commit"] == "1" and row["device"] == "none" for row in rows)


def test_what_a_process_starts_ends_with_it(tmp_path: Path) -> None:
    """A child that holds the pipe open, as the compiler's workers do, neither hangs the run nor lives on."""
    child = "import time; time.sleep(60)"
    text = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True)"
    began = time.monotonic()
    ending = watch([sys.executable, "-c", text], tmp_path, {}, lambda: began + 20, lambda line: None)
    assert ending.status == 0 and time.monotonic() - began < 15
    process = Path("/proc", ending.lines[0], "stat")
    until = time.monotonic() + 5
    while process.exists() and process.read_text().split()[2] != "Z" and time.monotonic() < until:
        time.sleep(0.02)
    assert not process.exists() or process.read_text().split()[2] == "Z"


def test_parts_go_on_in_another_process(tmp_path: Path) -> None:
    parts = ("a", "b", "hangs", "c", "crashes", "spoils", "d", "leaves", "tears")
    case = Case("parts", "stage", (sys.executable, "-c", PARTS), parts, seconds=1.0, start=10.0)
    rows = run([case], Results(tmp_path / "first.jsonl", IDENTITY), 60.0, {"stage": 1.0}, tmp_path, lambda row: None)
    assert statuses(rows) == {
        **{f"parts/{name}": "passed" for name in parts},
        "parts/hangs": "hung",
        "parts/crashes": "crashed",
        "parts/leaves": "failed",
        "parts/tears": "failed",
    }
    processes = {row["part"]: row["process"] for row in rows if "process" in row}
    assert processes["a"] == processes["b"] and processes["spoils"] != processes["d"]
    assert len(set(processes.values())) == 4
    assert "exit status 3 without a result; noise of d | noise of leaves" in rows[-2]["detail"]


def test_it_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    """The runner itself dies in its second case. Then it goes on, and results are not measured twice."""
    file, log = tmp_path / "first.jsonl", tmp_path / "log"
    script = f"""
import sys
sys.path.append({str(ROOT)!r})
from pathlib import Path
from benchmarks.gpu.first.runner import Case, Results, run
note = "import sys; open({str(log)!r}, 'a').write(sys.argv[1])"
cases = [Case(name, "stage", (sys.executable, "-c", note, name)) for name in "ab"]
slow = Case("slow", "stage", (sys.executable, "-c", "import sys, time; time.sleep(float(sys.argv[1]))", sys.argv[1]))
cases.insert(1, slow)
run(cases, Results(Path({str(file)!r}), {{"commit": "1"}}), 60.0, {{"stage": 1.0}}, Path.cwd(), lambda row: None)
"""
    process = subprocess.Popen([sys.executable, "-P", "-c", script, "8"], start_new_session=True)
    until = time.monotonic() + 20
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert statuses(read(file)) == {"a": "passed"}
    subprocess.run([sys.executable, "-P", "-c", script, "0"], check=True, timeout=20)
    assert statuses(read(file)) == {"a": "passed", "slow": "passed", "b": "passed"} and log.read_text() == "ab"


def test_what_had_no_time_or_was_skipped_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "first.jsonl"
    cases = [python("import time; time.sleep(60)", "long"), python("", "short"), python("", "skipped", skip="not here")]
    rows = run(cases, Results(file, IDENTITY), 0.3, {"stage": 1.0}, tmp_path, lambda row: None)
    assert list(statuses(rows).values()) == ["time", "time", "skipped"] and "cut off" in rows[0]["detail"]
    cases = [python("", name) for name in ("long", "short", "skipped")]
    rows = run(cases, Results(file, IDENTITY), 60.0, {"stage": 1.0}, tmp_path, lambda row: None)
    assert set(statuses(rows).values()) == {"passed"} and rows == read(file)


def test_a_stage_ends_with_its_share(tmp_path: Path) -> None:
    slow = PARTS.replace('print("noise of", name)', "time.sleep(0.4)")
    cases = [
        Case("early", "first", (sys.executable, "-c", slow), tuple("abcdefgh")),
        Case("late", "second", (sys.executable, "-c", slow), ("a",)),
    ]
    rows = run(cases, Results(tmp_path / "f", IDENTITY), 10.0, {"first": 0.1, "second": 0.9}, tmp_path, lambda row: None)
    early = [row["status"] for row in rows[:-1]]
    assert early[0] == "passed" and early[-1] == "time" and set(early) == {"passed", "time"}
    assert rows[-1]["status"] == "passed"


def test_results_of_another_commit_are_set_aside(tmp_path: Path) -> None:
    file = tmp_path / "first.jsonl"
    Results(file, IDENTITY).add({"key": "a", "status": "passed"})
    assert list(Results(file, IDENTITY).rows) == ["a"]
    other = Results(file, {**IDENTITY, "commit": "2"})
    assert other.rows == {} and other.set_aside is not None and json.loads(other.set_aside.read_text())["commit"] == "1"
    assert not file.exists()
    other.add({"key": "b", "status": "failed"})
    assert list(Results(file, other.identity).rows) == ["b"]
    assert Results(file, other.identity, fresh=True).rows == {} and not file.exists()


class OnCpu:
    """A device of CPU tensors, for the parts."""

    torch = torch.device("cpu")

    def now(self) -> float:
        return time.perf_counter()

    def seconds(self, call) -> float:
        call()
        return 0.001

    def peak(self, call) -> float:
        call()
        return 1.0

    def compiled(self, function):
        return function

    def release(self) -> None:
        pass

    def about(self) -> Row:
        return {"device": "stand-in"}

    def build(self) -> Row:
        return {"status": "error", "detail": "built for 80, not for sm_120"}


def done(stage: str, *names: str, answers: bool = True) -> tuple[int, list[Row]]:
    said: list[str] = []
    status = parts.do(stage, list(names), OnCpu(), said.append, lambda: answers)  # type: ignore[arg-type]
    return status, [json.loads(line.strip().removeprefix("@part ")) for line in said]


def test_the_parts_on_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SECONDS", 0.01)
    assert done("device", "facts", "build")[1] == [
        {"status": "passed", "facts": {"device": "stand-in"}},
        {"status": "failed", "detail": "built for 80, not for sm_120"},
    ]
    status, rows = done("correctness", "evaluation", "ms", "l2_norm")
    assert status == 0 and [row["status"] for row in rows] == ["passed"] * 3, rows
    assert rows[1]["is_fused"] and rows[1]["error"] < 1e-4
    status, rows = done("losses", "five/16/8/plain", "ms/16/8/fused", "infonce/16/8/memeff")
    assert [row["status"] for row in rows][:2] == ["passed", "passed"] and rows[2]["status"] in ("skipped", "passed"), rows
    assert set(rows[0]["arms"]) == {"products", "fused", "plain"} and rows[0]["arms"]["plain"]["peak_mb"] == 1.0
    fused, plain = (rows[0]["arms"][arm]["value"] for arm in ("fused", "plain"))
    assert fused == pytest.approx(plain, rel=1e-4)
    assert done("evaluation", "40/8/torch topk")[1][0]["arms"]["dmlcore"]["gigapairs"] > 0
    assert [row["status"] for row in done("smallest", "losses", "evaluation")[1]] == ["passed", "passed"]


def test_a_wrong_result_fails_and_a_spoiled_device_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = parts.value_and_gradients

    def wrong(*arguments):
        value, gradients = exact(*arguments)
        return value * (1 + 1e-2 * (value.dtype == torch.float32)), gradients

    def not_finite(*arguments):
        value, gradients = exact(*arguments)
        return value, [gradient * (1.0 if gradient.dtype == torch.float64 else torch.nan) for gradient in gradients]

    monkeypatch.setattr(parts, "value_and_gradients", not_finite)
    assert done("correctness", "l2_norm")[1][0]["detail"].startswith("off by nan")
    monkeypatch.setattr(parts, "value_and_gradients", wrong)
    status, rows = done("correctness", "l2_norm", "l2_norm")
    assert status == 1 and [row["status"] for row in rows] == ["failed"] * 2 and "off by 1.0e-02" in rows[0]["detail"]
    status, rows = done("correctness", "no such loss", "l2_norm", answers=False)
    assert status == 70 and len(rows) == 1 and rows[0]["status"] == "failed"


def test_the_plan_names_tests_that_there_are() -> None:
    for _, file, functions in plan.TESTS:
        text = (ROOT / "tests" / file).read_text()
        assert all(re.search(rf"^def {function}\(", text, re.MULTILINE) for function in functions), file
    cases = plan.cases()
    keys = [key for case in cases for key in case.keys]
    assert len(keys) == len(set(keys)) and list(dict.fromkeys(case.stage for case in cases)) == list(plan.SHARES)
    assert sum(plan.SHARES.values()) == pytest.approx(1.0)
    assert {case.needs for case in cases} == {"", plan.BUILD} and plan.BUILD in keys
    assert all(case.advice for case in cases)


@pytest.mark.parametrize(
    ("status", "lines", "state"),
    [
        (0, ["3 passed, 1 skipped in 2.0s"], "passed"),
        (0, ["SKIPPED [2] tests/test_x.py:3: torch sees no CUDA device", "2 skipped in 1.0s"], "skipped"),
        (1, ["FAILED tests/test_x.py::test_y - AssertionError", "1 failed in 1.0s"], "failed"),
        (5, ["4 deselected in 0.1s"], "failed"),
    ],
)
def test_how_pytest_is_judged(status: int, lines: list[str], state: str) -> None:
    judged, detail = plan.judge_tests(Ending(status, lines))
    assert judged == state and lines[-1] in detail


def test_the_report_says_what_to_do(tmp_path: Path) -> None:
    def row(key: str, status: str, detail: str = "", **figures: object) -> Row:
        return {"key": key, "stage": key.split("/")[0], "status": status, "seconds": 1.0, "detail": detail, **figures}

    cases = [
        Case("device", "device", ("python", "-m", "x"), ("facts", "build")),
        Case("tests/bits", "tests", ("python", "-m", "pytest"), advice="Look at the order of sums."),
        Case("sanitizer/memcheck", "sanitizer", ("compute-sanitizer",)),
        Case("losses", "losses", ("python", "-m", "x", "losses"), ("five/16/8/pml",)),
    ]
    arms = {"products": {"milliseconds": 2.0, "peak_mb": 1.0, "status": "ok"}, "pml": {"status": "memory"}}
    arms["fused"] = {"milliseconds": 5.0, "peak_mb": 3.0, "status": "ok"}
    rows = [
        row("device/facts", "passed", facts={"device": "stand-in"}),
        row("device/build", "passed"),
        row("tests/bits", "hung", "killed after 60 s"),
        row("sanitizer/memcheck", "skipped", "it is not installed"),
        row("losses/five/16/8/pml", "passed", arms=arms, case="five", n=16, d=8),
    ]
    text = page.text(cases, rows, "run")
    assert "- device: stand-in" in text and "| tests |  |  |  | 1 |  |  |" in text
    assert "- `tests/bits` hung: killed after 60 s\n  `python -m pytest`" in text
    assert "| five | 16 | 8 | fused | 5 | 2.5 |  | 3 |" in text and "| five | 16 | 8 | pml | memory |" in text
    assert "1. Begin with `tests/bits`: what failed later may follow from it. Look at the order of sums." in text
    assert "it is not installed: `sanitizer/memcheck`" in text and "run --fresh" in text
    rows[1] = row("device/build", "failed", "built for 80")
    assert page.next_steps(cases, rows, "run")[0].startswith("Build the kernels")
    good = [entry | {"status": "passed"} for entry in rows]
    assert "pytest -n 0 -m gpu tests" in page.next_steps(cases, good, "run")[0]
    assert page.next_steps(cases, [*good[:-1], row("losses/five/16/8/pml", "time")], "run") == [
        "Run `run` again: it goes on with what had no time."
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_needs_a_cuda_device(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import __main__

    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--first", "--csv", str(tmp_path / "first.jsonl")])
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    out, error = capsys.readouterr()
    assert stopped.value.code == 2 and out == "" and not list(tmp_path.iterdir())
    assert error.count("\n") == 1 and "needs a CUDA device" in error


def test_the_command_writes_results_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "why_not_measured", lambda: "")
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    monkeypatch.setattr(plan, "cases", lambda: [python("", "passes"), python("raise SystemExit(3)", "fails")])
    monkeypatch.setattr(plan, "SHARES", {"stage": 1.0})
    file = tmp_path / "first.jsonl"
    with pytest.raises(SystemExit) as stopped:
        command.main(None, file, fresh=False)
    report = file.with_suffix(".md").read_text()
    assert stopped.value.code == 1 and statuses(read(file)) == {"passes": "passed", "fails": "failed"}
    assert report in capsys.readouterr().out and "1. Begin with `fails`" in report
    assert all(row["torch"] == torch.__version__ and row["commit"] and "kernels" in row for row in read(file))
