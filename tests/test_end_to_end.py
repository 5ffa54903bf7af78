"""An afternoon with dmlcore, by its commands alone: photographs, training, the page, the model, an index, a threshold, an
export and a server that finds a new picture."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_serve import Server

import dmlcore
from dmlcore.cli import main

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("faiss", reason="faiss is not installed")


@pytest.mark.slow
def test_from_photographs_to_a_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def told(*words: str) -> Any:
        assert main([*words, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    told("data", "example", "photos")
    new = Path("new.jpg")  # a picture that neither training nor the index has seen
    shutil.move("photos/digit_three/03.jpg", new)
    result = told("train", "--data", "photos", "--plugins", "ms", "--steps", "60", "--image-size", "48", "--out", "run")
    assert Path("run/report.html").stat().st_size > 10_000
    assert result["metrics"]["test"]["recall@1"] > 0
    model = dmlcore.load("run")
    embedding = model.encode(new)
    told("index", "run", "photos", "--out", "index")
    threshold = told("verify", "run")["threshold"]["threshold"]
    (found,) = told("search", "index", str(new), "--k", "5", "--threshold", "none")["queries"]
    exported = told("export", "run", "--out", "model")
    assert Path("model/model.safetensors").is_file() and exported
    shutil.rmtree("run")  # nothing of the run is needed any more
    np.testing.assert_array_equal(dmlcore.load("model").encode(new), embedding)
    with Server(Path("index"), "--model", "model", "--threshold", str(threshold)) as server:
        assert server.about["entries"] == 479
        status, answer = server.ask("/search?k=5", new.read_bytes(), "image/jpeg")
        assert status == 200
        (there,) = answer["results"]
        assert [entry["path"] for entry in there["neighbours"]] == [entry["path"] for entry in found["neighbours"]]
        first = there["neighbours"][0]
        assert there["answer"] == (first["label"] if first["score"] >= threshold else None)
        with urllib.request.urlopen(f"{server.url}/entries/{first['position']}/picture?generation=1") as picture:
            assert picture.read(3) == b"\xff\xd8\xff"  # a JPEG
