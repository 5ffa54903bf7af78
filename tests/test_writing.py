"""What texts become in files: names that are no Unicode, numbers that JSON lacks."""

from __future__ import annotations

import json
import os

import pytest

from dmlcore.errors import ConfigError
from dmlcore.files import encoded, plain, writable_text

LATIN = os.fsdecode(b"caf\xe9")


def test_bytes_of_names_are_written_as_escapes():
    assert writable_text(LATIN) == "caf\\udce9" and writable_text("Café 漢") == "Café 漢"
    text = json.dumps(plain({LATIN: [LATIN, {"x": (float("nan"), 1)}]}), ensure_ascii=False)
    assert json.loads(text.encode()) == {"caf\\udce9": ["caf\\udce9", {"x": [None, 1]}]}


def test_a_name_that_must_be_read_again_is_refused():
    assert encoded("é", "x") == b"\xc3\xa9"
    with pytest.raises(ConfigError, match=r"^config\.toml cannot be written: the path '/a/caf.udce9' holds bytes"):
        encoded(f'steps = 3\ndata = "/a/{LATIN}"\nx = "y"\n', "config.toml")
