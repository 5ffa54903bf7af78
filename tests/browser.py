"""A real browser without a window, for tests of pages: what a page's document is after its script ran, and clicks in it."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--virtual-time-budget=3000",
)
_CLICKS = """<!doctype html><iframe src="{page}" style="width: 1200px; height: 900px"></iframe><pre id="answers"></pre>
<script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument;
  const answers = [];
  try {{ {script} }} catch (error) {{ answers.push(String(error)); }}
  document.getElementById("answers").textContent = JSON.stringify(answers);
}});
</script>"""


def document(page: Path, folder: Path, *flags: str) -> str:
    """The document as it is after the page's script ran. No address is resolved, so nothing comes from a network."""
    assert BROWSER is not None
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root has none
    command = [BROWSER, *_FLAGS, *flags, *sandbox, f"--user-data-dir={folder / 'browser'}", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def after_clicks(page: Path, folder: Path, script: str) -> list[Any]:
    """Run a script beside a page and return what it put into `answers`.

    Args:
        page: its file.
        folder: for the browser's own files and the page around the page.
        script: JavaScript, to which `page` is the page's document.
    """
    around = folder / "around.html"
    around.write_text(_CLICKS.format(page=page.as_uri(), script=script), encoding="utf-8")
    text = document(around, folder, "--disable-web-security", "--allow-file-access-from-files")
    match = re.search(r'<pre id="answers">(.*?)</pre>', text, re.S)
    assert match is not None and match[1], text[:2000]
    return json.loads(html.unescape(match[1]))


class Tab:
    """A page in a browser that runs in real time and talks to servers of this computer only.

    Args:
        folder: for the browser's own files.
        size: of the window, pixels.
    """

    def __init__(self, folder: Path, size: tuple[int, int] = (1100, 800)) -> None:
        assert BROWSER is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()

        def connect() -> None:  # the protocol of Chrome's developer tools reads from 3 and writes to 4
            for number, here in ((13, theirs_in), (14, theirs_out)):
                os.dup2(here, number)
            for number in (3, 4):
                os.dup2(number + 10, number)

        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        command = [BROWSER, "--headless", "--disable-gpu", "--no-first-run", *sandbox, "--remote-debugging-pipe"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--window-size={size[0]},{size[1]}"]
        command += [f"--user-data-dir={folder / 'tab'}", "about:blank"]
        self._process = subprocess.Popen(
            command, preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number, self._buffer = 0, b""
        self._session: str | None = None
        pages = [target for target in self._call("Target.getTargets")["targetInfos"] if target["type"] == "page"]
        attached = self._call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *reason: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def open(self, url: str) -> None:
        """Go to a page."""
        self._call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript in the page; a promise is waited for."""
        result = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = 30) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"{script} is {value!r} after {seconds} s"
            time.sleep(0.05)
        return value

    def picture(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot")["data"])

    def _call(self, method: str, **values: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": values}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._in, 1 << 16)
            assert part, "the browser has ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)
