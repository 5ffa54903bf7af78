"""`python -m benchmarks serving`: `dmlcore serve` beside the same model in a plain handler of FastAPI, asked by 64 concurrent
clients of `wrk`, and many requests with malformed ones among them. The table is in docs/guide/serving.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from dmlcore.files import write_atomically

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "serving.json"
PAGE = ROOT / "docs" / "guide" / "serving.md"
CLIENTS = 64
ROUNDS = 3  # of each server, in turn
MALFORMED = 5  # every so-manieth request

PLAIN = """
import io, sys
import dmlcore, uvicorn
from fastapi import Body, FastAPI
from PIL import Image
model = dmlcore.load(sys.argv[1])
app = FastAPI()
@app.post("/embed")
def embed(body: bytes = Body(media_type="image/jpeg")):
    return {"embeddings": model.encode([Image.open(io.BytesIO(body))]).tolist()}
@app.get("/health")
def health():
    return {}
uvicorn.run(app, port=int(sys.argv[2]), log_level="error", access_log=False)
"""
_POST = """
local file = io.open("{picture}", "rb"); local body = file:read("*a"); file:close()
local count = 0
wrk.method = "POST"; wrk.headers["Content-Type"] = "image/jpeg"
request = function()
  count = count + 1
  if {every} > 0 and count % {every} == 0 then return wrk.format(nil, nil, nil, string.sub(body, 1, 40 + count % 200)) end
  return wrk.format(nil, nil, nil, body)
end
local threads = {{}}
setup = function(thread) table.insert(threads, thread) end
init = function(args) good = 0; refused = 0; other = 0 end
response = function(status)
  if status == 200 then good = good + 1 elseif status == 422 then refused = refused + 1 else other = other + 1 end
end
done = function(summary)
  local good, refused, other = 0, 0, 0
  for _, thread in ipairs(threads) do
    good = good + thread:get("good"); refused = refused + thread:get("refused"); other = other + thread:get("other")
  end
  print("statuses " .. good .. " " .. refused .. " " .. other)
end
"""


class _Process:
    """A server and what it costs."""

    def __init__(self, command: list[str], port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health").read()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{' '.join(command)} does not answer") from None
                time.sleep(0.2)

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Resident megabytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) / 1024


def _load(server: _Process, seconds: int, script: Path) -> dict[str, float]:
    before = server.cpu()
    command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds}", "--timeout", "60", "--latency", "-s", str(script)]
    text = subprocess.run([*command, f"{server.url}/embed"], capture_output=True, text=True, check=True).stdout
    latency = {name: _milliseconds(text, name) for name in ("50%", "90%", "99%")}
    count = int(re.findall(r"(\d+) requests in", text)[0])
    good, refused, other = map(int, re.findall(r"statuses (\d+) (\d+) (\d+)", text)[0])
    errors = (
        sum(map(int, re.findall(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)[0])) if "errors:" in text else 0
    )
    return {
        "per_second": float(re.findall(r"Requests/sec:\s+([\d.]+)", text)[0]),
        "cpu_milliseconds": 1000 * (server.cpu() - before) / count,
        "p50": latency["50%"],
        "p90": latency["90%"],
        "p99": latency["99%"],
        "good": good,
        "refused": refused,
        "other": other,
        "lost": errors,
    }


def _milliseconds(text: str, name: str) -> float:
    value, unit = re.findall(rf"{name}\s+([\d.]+)(us|ms|s)", text)[0]
    return float(value) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def run(requests: int, seconds: int, tell: Any) -> dict[str, Any]:
    """Measure both servers in turn, then send so many requests, a fifth of them malformed, to ours."""
    if shutil.which("wrk") is None:
        raise SystemExit("serving needs wrk (Debian: apt-get install wrk)")
    from dmlcore.data.example_pictures import write_example
    from dmlcore.training import train

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_example(folder / "photos")
        train(data=str(folder / "photos"), out=folder / "run", steps=1)
        picture = min((folder / "photos").rglob("*.jpg"))
        steady, mixed, plain = folder / "steady.lua", folder / "mixed.lua", folder / "plain.py"
        steady.write_text(_POST.format(picture=picture, every=0))
        mixed.write_text(_POST.format(picture=picture, every=MALFORMED))
        plain.write_text(PLAIN)
        servers = {
            "plain handler": _Process([str(plain), str(folder / "run"), "8731"], 8731),
            "dmlcore serve": _Process(["-m", "dmlcore", "serve", str(folder / "run"), "--port", "8732"], 8732),
        }
        rows: dict[str, list[dict[str, float]]] = {which: [] for which in servers}
        for server in servers.values():
            _load(server, 2, steady)  # warm
        for _ in range(ROUNDS):
            for which, server in servers.items():
                rows[which].append(_load(server, seconds, steady))
                tell(f"{which}: {rows[which][-1]}")
        ours = servers["dmlcore serve"]
        many: dict[str, Any] = {"memory": [ours.memory()], "good": 0, "refused": 0, "other": 0, "lost": 0}
        while many["good"] + many["refused"] < requests:
            part = _load(ours, seconds, mixed)
            for key in ("good", "refused", "other", "lost"):
                many[key] += int(part[key])
            many["memory"].append(ours.memory())
            tell(f"{many['good'] + many['refused']:,} requests, {many['memory'][-1]:.0f} MB")
        for server in servers.values():
            server.process.terminate()
            server.process.wait()
    return {"rounds": rows, "many": many, "cores": os.cpu_count()}


def page(results: dict[str, Any]) -> str:
    """The table, between its markers."""
    lines = ["| | requests/s | CPU ms a request | p50 ms | p90 ms | p99 ms |", "|---" * 6 + "|"]
    for which, rounds in results["rounds"].items():
        cells = [
            sorted(row[key] for row in rounds)[len(rounds) // 2]
            for key in ("per_second", "cpu_milliseconds", "p50", "p90", "p99")
        ]
        lines.append(f"| {which} | {cells[0]:.0f} | {cells[1]:.2f} | {cells[2]:.0f} | {cells[3]:.0f} | {cells[4]:.0f} |")
    many = results["many"]
    first, last = many["memory"][0], many["memory"][-1]
    lines += [
        "",
        f"Medians of {ROUNDS} rounds on {results['cores']} cores, which the clients share. Then came"
        f" {many['good'] + many['refused']:,} requests. {many['refused']:,} were malformed and refused, {many['lost']} were"
        f" lost, {many['other']} had another status, and memory went from {first:.0f} MB to {last:.0f} MB.",
    ]
    return "\n".join(lines)


def main(only_page: bool, requests: int = 100_000, seconds: int = 10) -> None:
    """Measure, and fill the page."""
    if not only_page:
        results = run(requests, seconds, print)
        write_atomically(RESULTS, (json.dumps(results, indent=1) + "\n").encode())
    text = page(json.loads(RESULTS.read_text()))
    head, _, rest = PAGE.read_text().partition("<!-- results -->\n")
    PAGE.write_text(f"{head}<!-- results -->\n{text}\n<!-- end -->{rest.partition('<!-- end -->')[2]}")
    print(PAGE)
