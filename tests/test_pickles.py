"""The restricted reader of pickles: plain data come back equal, everything else is one line, and nothing is ever executed."""

from __future__ import annotations

import builtins
import collections
import contextlib
import datetime
import importlib
import math
import os
import pickle
import pickletools
import random
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dmlcore.errors import DataError
from dmlcore.protocols.shift.pickles import parse_pickle, read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
numbers = st.one_of(
    st.integers(-(2**100), 2**100),
    st.floats(allow_nan=False),
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st.integers(0, 2**16 - 1).map(np.uint16),
    st.floats(allow_nan=False).map(np.float64),
    st.floats(width=32, allow_nan=False).map(np.float32),
    st.floats(width=16, allow_nan=False).map(np.float16),
    st.booleans().map(np.bool_),
)
numpy_texts = st.text().map(lambda text: np.str_(text.rstrip("\0")))  # numpy drops trailing zeros
leaves = st.one_of(st.none(), st.booleans(), numbers, st.text(), numpy_texts)
keys = st.one_of(st.text(), st.integers(-(2**59), 2**59), numpy_texts, st.booleans(), st.none())
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(keys, inner, max_size=5),
    ),
    max_leaves=20,
)


def plain(value: Any) -> Any:
    """The value with Python's types for numpy's."""
    if isinstance(value, dict):
        return {plain(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(part) for part in value)
    return str(value) if isinstance(value, np.str_) else value.item() if isinstance(value, np.generic) else value


def types(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: types(part) for key, part in value.items()}
    return [types(part) for part in value] if isinstance(value, list | tuple) else type(value)


@settings(max_examples=150, deadline=None)
@given(values, st.sampled_from(PROTOCOLS))
@example({"a": np.str_(""), "b": np.str_("é"), "c": [(), [], {}, ((),)]}, 2)
@example([np.str_("x")] * 300 + list(range(300)), 4)
def test_plain_data_come_back_equal(value: Any, protocol: int) -> None:
    expected = plain(value)
    for written in (pickle.dumps(value, protocol), pickletools.optimize(pickle.dumps(value, protocol))):
        value = parse_pickle(written)
        assert value == expected and types(value) == types(expected)


def test_shared_and_old_forms() -> None:
    shared = [np.str_("name"), 1.5]
    value = parse_pickle(pickle.dumps({"a": shared, "b": shared}, 2))
    assert value == {"a": ["name", 1.5], "b": ["name", 1.5]} and value["a"] is value["b"]
    assert parse_pickle(b"(dp0\nS'cafe'\np1\nI7\ns.") == {"cafe": 7}  # text of Python 2
    assert parse_pickle(b"\x80\x02U\x03abc.") == "abc"
    big_endian = pickle.dumps(np.dtype(">U2").type("ab"), 2)
    assert parse_pickle(big_endian) == "ab"
    swapped = pickle.dumps(np.array(["ab"], dtype=">U2")[0], 2)
    assert parse_pickle(swapped) == "ab"
    assert math.isnan(parse_pickle(pickle.dumps(float("nan"), 0)))
    assert parse_pickle(pickle.dumps(np.bytes_(b"abc"), 3)) == "abc"
    older = pickle.dumps(np.str_("abc"), 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert parse_pickle(older) == "abc"


class Runs:
    """Pickles itself as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


class Plain:
    pass


class WithState:
    def __setstate__(self, state: Any) -> None:
        raise AssertionError("the state was set")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def hostile(sentinel: Path) -> dict[str, bytes]:
    """Pickles that would make a file, or worse, and others that are no plain data."""
    shell, target = f"touch {sentinel}", str(sentinel).encode()
    recursive: list[Any] = []
    recursive.append(recursive)
    looped: dict[str, Any] = {}
    looped["a"] = (looped,)
    instance = WithState()
    instance.__dict__["a"] = 1
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    bomb = b"\x80\x02]q\x00(" + text("x" * 1000) + b"e" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(60)) + b"."
    tuples = b"\x80\x02)q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60))
    return {
        "os.system": pickle.dumps(Runs(os.system, shell), 0),
        "os.system, new": pickle.dumps(Runs(os.system, shell), 5),
        "eval": pickle.dumps(Runs(eval, f"open('{sentinel}', 'w')"), 2),
        "getattr": pickle.dumps(Runs(getattr, "a", "upper"), 4),
        "open": pickle.dumps(Runs(open, str(sentinel), "w"), 4),
        "partial": b"cfunctools\npartial\n(cos\nsystem\n" + b"S'" + shell.encode() + b"'\ntR.",
        "numpy.load": b"cnumpy\nload\n(S'" + target + b"'\ntR.",
        "a name of two lines": b"cno\\nsuch\\n\\x1b\nname\n.",
        "numpy's eval": b"cnumpy.testing._private.utils\nruncode\n(S'1'\ntR.",
        "codecs.encode of a chosen codec": b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.",
        "codecs.open": b"c_codecs\nlookup\n(S'a'\ntR.",
        "bytes of a length": b"c__builtin__\nbytes\n(I99999999999\ntR.",
        "called text": b"S'os.system'\n(S'a'\ntR.",
        "INST": b"(S'" + shell.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + shell.encode() + b"'\no.",
        "NEWOBJ": pickle.dumps(Plain(), 2),
        "NEWOBJ_EX": b"\x80\x04cnumpy\ndtype\n)}\x92.",
        "a whitelisted function made an object": b"\x80\x02cnumpy\ndtype\nU\x02f8\x85\x81.",
        "EXT1": b"\x80\x02\x82\x01.",
        "EXT2": b"\x80\x02\x83\x01\x01.",
        "EXT4": b"\x80\x02\x84\x01\x01\x01\x01.",
        "PERSID": b"Psomething\n.",
        "BINPERSID": b"S'a'\nQ.",
        "BUILD on an object": pickle.dumps(instance, 4),
        "BUILD on a dict": b"}}b.",
        "BUILD on a function": b"cnumpy\ndtype\n(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb.",
        "a function as the value": b"cnumpy\ndtype\n.",
        "a numpy type as the value": pickle.dumps(np.dtype("f8"), 2),
        "two states": pickle.dumps(np.dtype("f8"), 2)[:-1] + b"(K\x03U\x01<NNNK\x08K\x08K\x00tb.",
        "bytes": pickle.dumps(b"abc", 4),
        "bytes, old": pickle.dumps(b"abc", 2),
        "bytearray": pickle.dumps(bytearray(b"abc"), 5),
        "complex": pickle.dumps(1j, 2),
        "numpy complex": pickle.dumps(np.complex128(1j), 2),
        "numpy array": pickle.dumps(np.zeros(3), 4),
        "numpy objects": pickle.dumps(np.array([Plain()], dtype=object), 4),
        "numpy record": pickle.dumps(np.zeros(1, dtype=[("a", "f8")])[0], 4),
        "numpy time": pickle.dumps(np.datetime64("2020-01-01"), 4),
        "object type": b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",
        "fields": b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nN(S'a'\ntNI8\nI8\nI0\ntb.",
        "set": pickle.dumps({1, 2}, 4),
        "frozenset": pickle.dumps(frozenset({1}), 4),
        "ordered dict": pickle.dumps(collections.OrderedDict(a=1), 2),
        "date": pickle.dumps(datetime.date(2020, 1, 1), 4),
        "class": pickle.dumps(Plain, 4),
        "recursive list": pickle.dumps(recursive, 2),
        "recursive dict": pickle.dumps(looped, 2),
        "deep": pickle.dumps(deep, 2),
        "memo bomb": bomb,
        "memo bomb of tuples": tuples + b".",
        "memo bomb as a key": b"\x80\x02}" + tuples[2:] + b"K\x01s.",
        "tuple as a key": pickle.dumps({(1, 2): 3}, 2),
        "list as a key": b"}]K\x01s.",
        "key of one hash with others": pickle.dumps({2**61 - 1: 1}, 2),
        "surrogate": pickle.dumps("\ud800", 4),
        "numpy surrogate": pickle.dumps(np.str_("ab"), 2).replace(b"a\0\0\0", b"\0\xd8\0\0"),
        "too long a number": pickle.dumps(10**400, 2),
        "too long a number, as text": pickle.dumps(10**4000, 0),
        "length of text beyond the end": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"abc.",
        "length of bytes beyond the end": b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b"abc.",
        "frame beyond the end": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b".",
        "numpy length beyond the content": pickle.dumps(np.str_("ab"), 2).replace(b"U2", b"U9"),
        "junk behind": pickle.dumps([1], 2) + b"x",
        "two pickles": pickle.dumps([1], 2) * 2,
        "empty": b"",
        "no STOP": pickle.dumps([1], 2)[:-1],
        "unknown opcode": b"\xff.",
        "not a pickle": b"hello, world\n",
        "image": b"\x89PNG\r\n\x1a\n" + bytes(64),
        "nothing on the stack": b"\x80\x02.",
        "two on the stack": b"NN.",
        "open mark": b"N(.",
        "unset memo": b"h\x05.",
        "append to a number": b"K\x01K\x02a.",
        "append across a mark": b"](K\x01a.",
        "end without a mark": b"K\x01l.",
        "odd dict": b"(K\x01d.",
        "POP": b"K\x01K\x020.",
        "DUP": b"]2a.",
    }


NAMES = list(hostile(Path("x")))


@pytest.mark.parametrize("name", NAMES)
def test_hostile_pickles_are_one_line_and_run_nothing(name: str, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    path = tmp_path / "file.pkl"
    path.write_bytes(hostile(sentinel)[name])
    began = time.perf_counter()
    with pytest.raises(DataError) as refused:
        read_pickle(path)
    assert time.perf_counter() - began < 2
    assert str(refused.value).isprintable() and len(str(refused.value)) < 400 + len(str(path))
    assert not sentinel.exists()


def test_the_hostile_ones_are_hostile(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    for name in ("os.system", "os.system, new", "eval", "open", "INST", "OBJ"):
        pickle.loads(hostile(sentinel)[name])
        assert sentinel.exists(), name
        sentinel.unlink()


def test_no_file_and_too_large_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        read_pickle(tmp_path / "none.pkl")
    with pytest.raises(DataError, match="cannot read"):
        read_pickle(tmp_path)
    with open(tmp_path / "large.pkl", "wb") as file:
        file.truncate(2**30 + 1)
    with pytest.raises(DataError, match="1,073,741,825 bytes"):
        read_pickle(tmp_path / "large.pkl")


def seeds() -> list[bytes]:
    episode = {"a": [np.str_("a/1.jpg"), np.str_("a/2.jpg")], "b": [np.str_("b/1.jpg")]}
    value = {1: {"train": [np.str_("a"), np.str_("b")], "fid": np.float64(2.5), "episodes": {2: [episode, episode]}, "n": None}}
    return [*(pickle.dumps(value, protocol) for protocol in PROTOCOLS), *hostile(Path("x")).values()]


OPCODES = bytes(ord(opcode.code) for opcode in pickletools.opcodes)


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, cut out, repeated, replaced by opcodes or pieces of another pickle."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(changed) + 1)
        length = draw.choice((1, 1, 2, 4, 16))
        kind = draw.randrange(5)
        if kind == 0:
            changed[at : at + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length]
        elif kind == 3:
            changed[at : at + draw.randint(0, 1)] = bytes([draw.choice(OPCODES)])
        else:
            other = draw.choice(SEEDS)
            start = draw.randrange(len(other) + 1)
            changed[at:at] = other[start : start + 8 * length]
    return bytes(changed)


SEEDS = seeds()


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 2**63))
def test_mutations_are_read_or_refused_and_run_nothing(seed: int) -> None:
    draw = random.Random(seed)
    content = mutated(draw.choice(SEEDS[: len(PROTOCOLS)] if seed % 2 else SEEDS), draw)
    try:
        value = parse_pickle(content)
    except DataError as refused:
        assert str(refused).isprintable()
    else:
        only_plain(value)


def only_plain(value: Any) -> None:
    assert type(value) in (dict, list, tuple, str, int, float, bool, type(None))
    if isinstance(value, dict):
        for key, part in value.items():
            assert type(key) in (str, int, float, bool, type(None))
            only_plain(part)
    elif isinstance(value, list | tuple):
        for part in value:
            only_plain(part)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes(content: bytes) -> None:
    with contextlib.suppress(DataError):
        only_plain(parse_pickle(content))


def test_nothing_is_imported_or_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the interpreter's doors shut, everything is read or refused as before."""

    def closed(*arguments: Any, **named: Any) -> Any:
        raise AssertionError(f"something was called: {arguments}")

    def outcomes() -> list[bool]:
        results = []
        for content in SEEDS:
            try:
                parse_pickle(content)
                results.append(True)
            except DataError:
                results.append(False)
        return results

    assert outcomes() == [True] * len(PROTOCOLS) + [False] * len(NAMES)  # codecs of the standard library load at first use
    for owner, name in ((builtins, "eval"), (builtins, "exec"), (os, "system"), (importlib, "import_module")):
        monkeypatch.setattr(owner, name, closed)
    monkeypatch.setattr(builtins, "__import__", closed)
    again = outcomes()
    monkeypatch.undo()
    assert again == [True] * len(PROTOCOLS) + [False] * len(NAMES)
