"""Progress of long work: what a terminal shows at its width, and the lines elsewhere."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from data_files import feature_file, image_folder
from rich.console import Console

from dmlcore import console, progress
from dmlcore.commands import display

TERMS = ["total 12.345", "circle 35.548 x 0.18", "binomial_deviance 8.239 x 0.44", "norm_softmax 4.499 x 1.04"]


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a console on a stream of its own that is stderr for the display."""

    def make(columns: int, is_terminal: bool) -> io.StringIO:
        stream = io.StringIO()
        fake = Console(file=stream, width=columns, force_terminal=is_terminal, highlight=False, markup=False, soft_wrap=True)
        monkeypatch.setattr(console, "stderr", lambda: fake)
        return stream

    return make


class Heard:
    def __init__(self) -> None:
        self.events: list[Any] = []

    def begin(self, label: str, total: int | None) -> None:
        self.events.append((label, total))

    def advance(self, done: int) -> None:
        self.events.append(done)

    def end(self) -> None:
        self.events.append("end")


def test_work_is_told_to_who_listens() -> None:
    heard = Heard()
    assert list(progress.track("abc", "letters", 5, size=2)) == list("abc"), "nobody needs to listen"
    with progress.listening(heard):
        assert list(progress.track("abc", "letters", 5, size=2)) == list("abc")
        with pytest.raises(ValueError), progress.task("broken"):
            raise ValueError
    with progress.task("unheard"):
        pass
    assert heard.events == [("letters", 5), 2, 4, 5, "end", ("broken", None), "end"]


@pytest.mark.parametrize("columns", [30, 60, 80, 120, 200])
def test_a_terminal_shows_whole_words_at_any_width(stderr: Any, columns: int) -> None:
    stderr(columns, True)
    shown = display.Display()
    shown.start("step", 70_000, 0)
    for step in (1, 12_345):
        shown.step(step, "1,234 images/s", TERMS)
    shown.begin("embedding samples", 1_000_000)
    shown.advance(500_000)
    shown._tasks[0].began -= 10
    lines = shown.lines(columns - 1)
    shown.close()
    assert len(lines) == 3 and all(len(line) < columns for line in lines)
    assert "12,345/70,000" in lines[0] and "500,000/1,000,000" in lines[2] and lines[1].startswith("total 12.345")
    rest = re.sub(r"  \+\d more$", "", lines[1])
    assert rest == "  ".join(TERMS[: rest.count("  ") + 1]), "losses are whole or left out"
    if columns >= 80:
        assert "left" in lines[0] and "1,234 images/s" in lines[0] and "━" in lines[0]
    if columns == 120:
        assert "+" not in lines[1]


def test_short_work_is_not_shown(stderr: Any) -> None:
    stderr(80, True)
    shown = display.Display()
    shown.begin("quick", 3)
    assert shown.lines(80) == []
    shown.end()


def test_long_work_is_told_in_lines_where_there_is_no_terminal(stderr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = stderr(80, False)
    monkeypatch.setattr(display, "QUIET", 0.05)
    with display.shown(), progress.task("decoding images", 100) as advance:
        advance(50)
        time.sleep(0.3)
    with display.shown(), progress.task("nothing worth a line", 2):
        pass
    time.sleep(0.1)
    assert re.fullmatch(r"decoding images  50/100  0:00 left\n", stream.getvalue())


def test_long_lines_are_folded_between_words_on_a_terminal_only(stderr: Any) -> None:
    text = "losses    " + ", ".join(f"loss_number_{number} (fused)" for number in range(12))
    stream = stderr(80, True)
    display.Display().say(text, indent=10)
    lines = stream.getvalue().splitlines()
    assert len(lines) > 2 and max(map(len, lines)) < 80 and all(line.startswith(" " * 10) for line in lines[1:])
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
    stream = stderr(80, False)
    display.Display().say(text, indent=10)
    assert stream.getvalue() == text + "\n"


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (61, "1:01"), (3723.4, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert display.clock(seconds) == text


def test_data_and_evaluation_tell_how_far_they_are(tmp_path: Path) -> None:
    from dmlcore.training import train

    heard = Heard()
    values = {"plugins": "ms", "steps": 1, "classes_per_batch": 4, "embedding_dim": 16, "compress": 4, "image_size": 16}
    with progress.listening(heard):
        train(data=str(image_folder(tmp_path / "photos", classes=12)), out=tmp_path / "run", **values)
    labels = {event[0] for event in heard.events if isinstance(event, tuple)}
    assert {
        "reading image headers",
        "decoding images",
        "embedding samples",
        "looking at queries",
        "making thumbnails",
    } <= labels
    assert any(label.startswith("ranking") for label in labels) and any(label.startswith("fitting") for label in labels)
    assert sum(event == "end" for event in heard.events) == sum(isinstance(event, tuple) for event in heard.events)


def test_steps_of_a_part_are_told(tmp_path: Path) -> None:
    from dmlcore.training import train
    from dmlcore.training.loggers import TaskLogger

    heard = Heard()
    values = {"plugins": "ms", "steps": 3, "classes_per_batch": 4, "embedding_dim": 4, "report": False}
    with progress.listening(heard):
        train(data=str(feature_file(tmp_path / "data.npz")), out=tmp_path / "run", loggers=[TaskLogger()], **values)
    assert heard.events[-1] == "end" and {1, 2, 3} <= set(filter(lambda event: isinstance(event, int), heard.events))
    depth = 0
    for event in heard.events:
        depth += isinstance(event, tuple)
        depth -= event == "end"
        assert depth >= 0
    assert depth == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.slow)])
def test_a_training_on_a_real_terminal(tmp_path: Path, columns: int) -> None:
    import fcntl
    import pty
    import struct
    import termios

    main, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    data = feature_file(tmp_path / "data.npz")
    words = ["train", "--data", str(data), "--plugins", "ms,triplet,circle", "--steps", "30", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-P", "-m", "dmlcore", *words, "--classes-per-batch", "4", "--embedding-dim", "4"]
    environment = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment)
    os.close(child)
    content = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        content += part
    os.close(main)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", content.decode())
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    long = [line for line in lines if len(line) > columns and str(tmp_path) not in line]  # a path stays whole
    assert not long, long
    assert "losses    ms (fused), triplet (fused), circle (fused)" in text
    assert "…" not in text
