"""A real browser without a window, for tests of pages: what a page's document is after its script ran, and clicks in it."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
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
