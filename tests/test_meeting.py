"""How processes find those that were started with them: stores that hold what earlier ones wrote, late ones, and signals."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dmlcore import launch
from dmlcore.errors import TrainingError
from dmlcore.meeting import met

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
PATIENCE = datetime.timedelta(seconds=30)


class Store:
    """A store that is shared by threads."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)


def meet(store: Store, size: int, delays: dict[int, float] | None = None) -> list[str]:
    def one(rank: int) -> str:
        time.sleep((delays or {}).get(rank, 0))
        return met(store, rank, size, PATIENCE)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def test_each_start_has_a_name_of_its_own() -> None:
    store, names = Store(), []
    for size, late in ((4, 0), (4, 3), (4, 1), (2, 1), (1, 0), (3, 0)):
        (name,) = set(meet(store, size, {late: 0.2}))
        names.append(name)
    assert len(set(names)) == len(names)


def test_a_process_that_is_started_again_takes_its_place() -> None:
    """The second of three comes, is lost, and another one comes in its place before the last one does."""
    store = Store()
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(met, store, 1, 3, datetime.timedelta(seconds=0.3))
        (name,) = set(meet(store, 3, {1: 0.2, 2: 0.5}))
        assert len(name) == 32
        with pytest.raises(TrainingError):
            lost.result()


def test_nobody_answers_a_call_twice() -> None:
    class Counting(Store):
        answers = 0

        def set(self, key: str, value: str) -> None:
            self.answers += key == "heard/1"
            super().set(key, value)

    store = Counting()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(met, store, 0, 3, PATIENCE)
        second = pool.submit(met, store, 1, 3, PATIENCE)
        store.set("here/2", "late")
        time.sleep(0.2)
        assert store.answers == 1
        store.set("heard/2", store.values["call"].decode())
        assert first.result() == second.result()


def test_a_store_that_fails_is_told_in_a_line(monkeypatch) -> None:
    def refused(*_: object, **options: object) -> None:
        raise torch.distributed.DistStoreError("Timed out after 9 seconds waiting for clients.\n at C++ CapturedTraceback")

    monkeypatch.setattr(torch.distributed, "rendezvous", refused)
    with pytest.raises(TrainingError, match=r"^the processes cannot meet \(Timed out .* waiting for clients\)$"):
        launch.join("cpu")


def test_a_first_process_whose_place_is_taken_calls_nobody() -> None:
    store = Store()
    with ThreadPoolExecutor(3) as pool:
        old = pool.submit(met, store, 0, 2, datetime.timedelta(seconds=1))
        time.sleep(0.1)
        new = [pool.submit(met, store, rank, 2, PATIENCE) for rank in range(2)]
        assert new[0].result() == new[1].result()
        with pytest.raises(TrainingError, match="the 2 processes have not all started"):
            old.result()


def test_the_same_in_a_store_of_pytorch() -> None:
    store = torch.distributed.HashStore()
    store.set("here/1", "who died")
    store.set("call", "somebody,who died")
    store.set("begun", "somebody,who died")
    assert len(set(meet(store, 2))) == 1  # type: ignore[arg-type]


def test_a_signal_ends_a_process_that_waits_for_the_others() -> None:
    """A launcher would kill it after half a minute otherwise."""
    code = """if True:
        import torch.distributed
        from dmlcore import launch
        from dmlcore.interruption import handled_by, interrupt
        with handled_by(interrupt):
            print("waits", flush=True)
            launch.join("cpu")"""
    nobody = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | nobody, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "waits\n"
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM
