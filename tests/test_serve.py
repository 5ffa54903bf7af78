"""`dmlcore serve`, asked over real sockets, and its page in a real browser."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Tab, needs_browser
from PIL import Image

import dmlcore
from dmlcore.cli import main
from dmlcore.errors import ConfigError
from dmlcore.serving.gathering import gather
from dmlcore.serving.http.batching import Batcher
from dmlcore.serving.http.limits import Limits, Refused
from dmlcore.serving.index import Index, build_index
from dmlcore.serving.index_changes import add_entries

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")
COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 180, 40),
    "blue": (40, 40, 210),
    "grey": (120, 120, 120),
    "pink": (240, 130, 180),
}
COLOURS |= {"brown": (120, 70, 20)}
SIDE = 24


def photo(path: Path, colour: tuple[int, int, int], generator: np.random.Generator) -> None:
    noise = generator.integers(-25, 25, (30, 40, 3))
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for number in range(8):
            photo(folder / name / f"{number}.png", colour, generator)
    return folder


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    settings: dict[str, Any] = {"image_size": SIDE, "classes_per_batch": 2, "samples_per_class": 2, "embedding_dim": 8}
    dmlcore.train(data=str(photos), out=out, plugins="ms", steps=2, **settings)
    return out


@pytest.fixture(scope="module")
def index(photos: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("index") / "index"
    build_index(gather(str(photos), dmlcore.load(trained)), out, model=str(trained))
    return out


class Server:
    """`dmlcore serve` as a process of its own."""

    def __init__(self, what: Path, *flags: str, **environment: str) -> None:
        command = [sys.executable, "-P", "-m", "dmlcore", "serve", str(what), "--port", "0", "--json", *flags]
        variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
        assert self.process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = self.process.stdout.readline()
            assert line, self.process.communicate()[1]
            text += line
        self.about = json.loads(text)
        self.url = self.about["url"]
        self.ask("/health")  # waits until it answers

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *reason: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, path: str, body: bytes | None = None, kind: str = "image/png", **headers: str) -> tuple[int, Any]:
        """Status and answer: JSON read, else bytes."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind, **named})
        try:
            response = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            content = response.read()
            is_json = response.headers.get("Content-Type") == "application/json"
            return response.status, json.loads(content) if is_json else content


@pytest.fixture(scope="module")
def server(index: Path) -> Iterator[Server]:
    with Server(index, "--threshold", "0.2", "--max-samples", "4", "--max-megabytes", "0.2") as running:
        yield running


def form(*files: bytes, name: str = "files") -> tuple[bytes, str]:
    """A form with files and its type."""
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="%s"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n%s\r\n'
        % (name.encode(), data)
        for data in files
    ]
    return b"".join(parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def files_of(photos: Path) -> list[Path]:
    return sorted(photos.glob("*/*.png"))


def test_embeddings_are_those_of_encode_in_every_form(server: Server, photos: Path, trained: Path) -> None:
    paths = files_of(photos)[:3]
    right = dmlcore.load(trained).encode(paths)
    data = [path.read_bytes() for path in paths]
    status, answer = server.ask("/embed", *form(*data))
    assert status == 200
    np.testing.assert_allclose(answer["embeddings"], right, atol=1e-6)
    as_text = json.dumps({"images": [base64.b64encode(item).decode() for item in data]}).encode()
    np.testing.assert_allclose(server.ask("/embed", as_text, "application/json")[1]["embeddings"], right, atol=1e-6)
    status, raw = server.ask("/embed", data[1], Accept="application/octet-stream")
    np.testing.assert_allclose(np.frombuffer(raw, "<f4"), right[1], atol=1e-6)


def test_concurrent_requests_get_their_own_answers(server: Server, photos: Path, trained: Path) -> None:
    paths = files_of(photos) * 3
    right = dmlcore.load(trained).encode(paths)
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda path: server.ask("/embed", path.read_bytes()), paths))
    assert {status for status, _ in answers} == {200}
    np.testing.assert_allclose([answer["embeddings"][0] for _, answer in answers], right, atol=1e-6)


def test_search_finds_what_the_index_finds(server: Server, photos: Path, trained: Path, index: Path) -> None:
    path = photos / "pink" / "3.png"
    opened = Index(index)
    hits = opened.search(dmlcore.load(trained).encode([path]), 5)
    status, answer = server.ask("/search?k=5", path.read_bytes())
    (result,) = answer["results"]
    assert status == 200 and answer["threshold"] == 0.2
    assert [entry["position"] for entry in result["neighbours"]] == hits.positions[0].tolist()
    np.testing.assert_allclose([entry["score"] for entry in result["neighbours"]], hits.scores[0], atol=1e-6)
    assert result["neighbours"][0]["path"] == str(path) and result["answer"] == "pink"
    _, answer = server.ask("/search?k=50&where=label%3Dred,blue", path.read_bytes())
    assert {entry["label"] for entry in answer["results"][0]["neighbours"]} == {"red", "blue"}
    assert len(answer["results"][0]["neighbours"]) == 16
    _, answer = server.ask("/search?where=label%3Dred&threshold=1", path.read_bytes())
    assert answer["results"][0]["answer"] is None  # none of these


def test_verify_compares_two(server: Server, photos: Path, trained: Path) -> None:
    paths = [photos / "red" / "0.png", photos / "blue" / "0.png"]
    rows = torch.nn.functional.normalize(torch.from_numpy(dmlcore.load(trained).encode(paths)).double(), dim=1)
    score = float(rows[0] @ rows[1])
    status, answer = server.ask("/verify", *form(*(path.read_bytes() for path in paths)))
    assert status == 200 and answer["score"] == pytest.approx(score, abs=1e-6)
    assert answer == {"score": answer["score"], "threshold": 0.2, "same": score >= 0.2}


def test_what_is_wrong_is_said_in_a_line(server: Server, photos: Path) -> None:
    good = (photos / "red" / "0.png").read_bytes()
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    cases: list[tuple[str, bytes | None, str, int, str]] = [
        ("/embed", b"", "image/png", 422, "cannot be read"),
        ("/embed", b"nothing", "image/png", 422, "cannot be read"),
        ("/embed", good[:200], "image/png", 422, "cannot be read"),
        ("/embed", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "image/png", 422, "cannot be read"),
        ("/embed", bomb.getvalue(), "image/png", 413, "9,000 x 9,000 pixels"),
        ("/embed", b"\0" * 300_000, "image/png", 413, "0.3 MB"),
        ("/embed", good, "text/plain", 415, "send a picture"),
        ("/embed", b"{", "application/json", 400, "no JSON"),
        ("/embed", b"[" * 100_000, "application/json", 400, "no JSON"),
        ("/embed", b"[]", "application/json", 422, "object"),
        ("/embed", b'{"images": "a"}', "application/json", 422, "list"),
        ("/embed", b'{"images": [3]}', "application/json", 422, "list of text"),
        ("/embed", b'{"images": ["?"]}', "application/json", 422, "base64"),
        ("/embed", b'{"images": []}', "application/json", 422, "no sample"),
        ("/embed", b"\xff\xfe", "application/json", 400, "no JSON"),
        ("/embed", form(good)[0], "multipart/form-data", 400, "boundary"),
        ("/embed", b"--edge\r\nnonsense", "multipart/form-data; boundary=edge", 422, "no sample"),
        ("/embed", *form(good, good, good, good, good), 413, "Too many files"),
        ("/verify", good, "image/png", 422, "two samples"),
        ("/search?k=0", good, "image/png", 422, "k must be"),
        ("/search?k=many", good, "image/png", 422, "k must be"),
        ("/search?threshold=nan", good, "image/png", 422, "threshold must be"),
        ("/search?where=colour%3Dred", good, "image/png", 422, "colour"),
        ("/search", None, "image/png", 405, "Method Not Allowed"),
        ("/nothing", None, "image/png", 404, "Not Found"),
        ("/entries/999999/picture?generation=1", None, "image/png", 404, "no picture"),
        ("/entries/-1/picture?generation=1", None, "image/png", 404, "no picture"),
        ("/entries/1/picture?generation=7", None, "image/png", 410, "changed"),
        ("/entries/x/picture?generation=1", None, "image/png", 422, "position"),
    ]
    for path, body, kind, status, words in cases:
        got, answer = server.ask(path, body, kind)
        assert (got, list(answer)) == (status, ["error"]) and words in answer["error"], (path, body and body[:40], got, answer)
        assert "\n" not in answer["error"] and "Traceback" not in answer["error"]
    assert server.ask("/embed", good)[0] == 200
    metrics = server.ask("/metrics")[1].decode()
    assert 'dmlcore_requests_total{route="/embed",status="413"} 3' in metrics and 'status="500"' not in metrics


def test_a_body_without_a_length_is_cut_off_too(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(64):
                connection.sendall(b"10000\r\n" + b"\0" * 0x10000 + b"\r\n")
        except OSError:
            pass  # it does not listen to the end
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


@pytest.mark.slow
def test_slow_requests_end_in_time(trained: Path, photos: Path) -> None:
    with Server(trained, "--timeout", "1") as running:
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 100\r\n\r\nabc")
            assert connection.recv(64).startswith(b"HTTP/1.1 408")
        assert running.ask("/search", b"")[1] == {"error": "there is no index: start `dmlcore serve` with one to search"}
        assert running.ask("/embed", (photos / "red" / "0.png").read_bytes())[0] == 200


@pytest.mark.slow
def test_a_token_is_asked_for(trained: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("open-sesame\n")
    data = (photos / "red" / "0.png").read_bytes()
    with Server(trained, "--token-file", str(tmp_path / "token")) as running:
        assert running.ask("/health")[0] == 200 and running.ask("/")[0] == 200
        for given in ("", "open-sesame", "Bearer open-sesam", "Basic open-sesame"):
            status, answer = running.ask("/embed", data, Authorization=given)
            assert status == 401 and "token" in answer["error"]
        assert running.ask("/metrics")[0] == 401
        assert running.ask("/embed", data, Authorization="Bearer open-sesame")[0] == 200


@pytest.mark.slow
def test_a_changed_index_is_taken_under_way(trained: Path, photos: Path, tmp_path: Path) -> None:
    model = dmlcore.load(trained)
    build_index(gather(str(photos / "red"), model), tmp_path / "index", model=str(trained))
    path = photos / "blue" / "1.png"
    with Server(tmp_path / "index") as running:
        ends = threading.Event()
        statuses: set[int] = set()

        def ask() -> None:
            while not ends.is_set():
                statuses.add(running.ask("/search", path.read_bytes())[0])

        asking = threading.Thread(target=ask)
        asking.start()
        add_entries(tmp_path / "index", gather(str(photos / "blue"), model))
        end = time.monotonic() + 30
        while running.ask("/health")[1]["entries"] != 16:
            assert time.monotonic() < end
            time.sleep(0.1)
        ends.set()
        asking.join()
        assert statuses == {200}
        found = running.ask("/search?k=1", path.read_bytes())[1]["results"][0]["neighbours"][0]
        assert found["path"] == str(path) and found["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_sigterm_lets_begun_requests_end(trained: Path, photos: Path) -> None:
    data = (photos / "red" / "0.png").read_bytes()
    with Server(trained, "--max-samples", "2000") as running, ThreadPoolExecutor(4) as pool:
        body, kind = form(*[data] * 400)
        asked = [pool.submit(running.ask, "/embed", body, kind) for _ in range(2)]
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        answers = [future.result() for future in asked]
        assert [(status, len(answer["embeddings"])) for status, answer in answers] == [(200, 400)] * 2
        _, errors = running.process.communicate(timeout=60)
        assert running.process.returncode == 0 and "stopped after 3 requests" in errors and "Traceback" not in errors


@needs_browser
def test_the_page_searches_by_drag_and_drop(server: Server, photos: Path, tmp_path: Path) -> None:
    data = base64.b64encode((photos / "green" / "2.png").read_bytes()).decode()
    with Tab(tmp_path) as tab:
        tab.open(server.url + "/")
        assert tab.wait("document.getElementById('about')?.textContent.includes('48 entries')")
        tab.run(f"""
            const file = new File([Uint8Array.from(atob("{data}"), c => c.charCodeAt(0))], "query.png", {{type: "image/png"}});
            const transfer = new DataTransfer();
            transfer.items.add(file);
            document.getElementById("drop").dispatchEvent(new DragEvent("drop", {{dataTransfer: transfer, bubbles: true}}));
        """)
        assert tab.wait("document.querySelectorAll('#found li').length") == 12
        assert tab.run("document.getElementById('token').offsetParent === null")  # nobody asks for one
        assert tab.run("document.getElementById('answer').textContent") == "Most likely: green"
        assert tab.wait("[...document.querySelectorAll('#found img')].every(image => image.naturalWidth === 192)")
        assert tab.run("document.querySelector('#found li').textContent").startswith("green  1.000")
        tab.run("document.getElementById('where').value = 'colour=red'; document.querySelector('form').requestSubmit()")
        assert "colour" in tab.wait("document.querySelector('#answer.bad')?.textContent")


def test_mistakes_of_the_command(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text("two words")
    taken = socket.create_server(("127.0.0.1", 0))
    for flags, words in (
        ((str(tmp_path),), "holds no trained model"),
        ((str(trained), "--token-file", str(tmp_path / "token")), "one word"),
        ((str(trained), "--port", str(taken.getsockname()[1])), "cannot listen at 127.0.0.1"),
        ((str(trained), "--port", "0", "--threshold", "3"), "threshold is 3"),
        ((str(trained), "--timeout", "0"), "seconds is 0"),
    ):
        status, (out, errors) = main(["serve", *flags]), capsys.readouterr()
        assert status == 2 and out == "" and words in errors and errors.count("\n") == 1, errors
    taken.close()


def test_the_model_takes_what_waits_and_sends_the_rest_away() -> None:
    sizes: list[int] = []
    free = threading.Event()

    def embed(samples: torch.Tensor) -> np.ndarray:
        free.wait(10)
        sizes.append(len(samples))
        return samples.numpy() * 2

    async def ask() -> None:
        batcher = Batcher(embed, batch=4, waiting=6)
        first = asyncio.create_task(batcher.embed(torch.tensor([[0.0]])))
        await asyncio.sleep(0.1)  # the model is at work now
        tasks = [asyncio.create_task(batcher.embed(torch.full((1, 1), float(n)))) for n in range(1, 7)]
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="wait already"):
            await batcher.embed(torch.zeros(1, 1))
        tasks[1].cancel()
        free.set()
        assert (await first).tolist() == [[0.0]]
        for number in (1, 3, 4, 5, 6):
            assert (await tasks[number - 1]).tolist() == [[2.0 * number]]
        await asyncio.to_thread(batcher.close)
        with pytest.raises(Refused, match="stopping"):
            await batcher.embed(torch.zeros(1, 1))

    asyncio.run(ask())
    assert sizes == [1, 4, 1]  # one that nobody waits for any more is left out


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match="samples is 0"):
        Limits(samples=0)
