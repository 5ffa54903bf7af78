"""The cells of a grid, each a trained model: run what is missing, in several processes, and keep each result in its own file.

A cell's file is written whole when the cell is done, so an interrupted grid goes on where it was, and several computers may
share a folder. What a cell computes is not here.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError, Interrupted, TrainingError, status_of
from dmlcore.files import make_folder, plain, remove_temporaries, write_atomically
from dmlcore.seals import seal, unseal

DONE, WORK = "cells", "work"
Function = Callable[[dict[str, Any], Path], dict[str, Any]]
"""What computes a cell from its settings, with a folder for its own files. It is of a module, where other processes find it."""


@dataclass(frozen=True)
class Cell:
    """One experiment.

    Attributes:
        key: its name, of letters, digits and `_.+-`, with `/` between parts. Names its file.
        settings: everything its result depends on, as JSON holds it.
    """

    key: str
    settings: dict[str, Any]


def path_of(folder: Path, key: str) -> Path:
    """Where the result of a cell lies."""
    return folder / DONE / f"{key}.json"


def read_cell(
    path: Path, is_whole: Callable[[dict[str, Any], dict[str, Any]], object] = lambda settings, result: True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and result of a finished cell.

    Args:
        path: of its file.
        is_whole: looks at what must be there. A KeyError, a TypeError or something false means that the file is damaged.

    Raises:
        TrainingError: the file is damaged.
    """
    try:
        stored, _ = unseal(json.loads(path.read_text(encoding="utf-8")))
        settings, result = stored["settings"], stored["result"]
        if not is_whole(settings, result):
            raise ValueError("something is missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is damaged ({type(error).__name__}); remove it to run the cell again") from error
    return settings, result


def finished(folder: Path, cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """The results that are there, by key.

    Raises:
        ConfigError: a result was made with other settings.
        TrainingError: a file is damaged.
    """
    results = {}
    for cell in cells:
        path = path_of(folder, cell.key)
        if not path.exists():
            continue
        settings, result = read_cell(path)
        if settings != plain(cell.settings):
            difference = _difference(settings, plain(cell.settings))
            raise ConfigError(f"{path} holds {difference}. Choose another --out, or remove it.")
        results[cell.key] = result
    return results


def _difference(stored: dict[str, Any], expected: dict[str, Any]) -> str:
    for key in {**stored, **expected}:
        if stored.get(key) != expected.get(key):
            if isinstance(stored.get(key), dict) and isinstance(expected.get(key), dict):
                return _difference(stored[key], expected[key])
            return f"a result with {key} = {_short(stored.get(key))} instead of {_short(expected.get(key))}"
    return "another result"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def run_cells(
    folder: Path,
    cells: Sequence[Cell],
    function: Function,
    *,
    processes: int = 1,
    devices: Sequence[str] = (),
    tell: Callable[[str], None] = lambda line: None,
    again: str = "the same command",
) -> dict[str, dict[str, Any]]:
    """Run the cells that are missing and return the results of all.

    Each cell computes with one thread, so that its numbers do not depend on the number of processes or cores.

    Args:
        folder: of the results: `cells/KEY.json`. `work/KEY` is the cell's own while it runs.
        cells: in the order they are run. Keys differ.
        function: computes a cell. Called in this process when `processes` is 1 and no `devices` are named, else in fresh ones.
        processes: at a time.
        devices: of CUDA, as `CUDA_VISIBLE_DEVICES` names them. Each process sees one of them, in turn. Empty: all see all.
        tell: receives lines of progress.
        again: how the user goes on after an interruption.

    Returns:
        What `function` returned, by key.

    Raises:
        ConfigError, TrainingError: as `finished` and `function`; the cells done before stay.
        KeyboardInterrupt: an interrupt. Its text says how to go on.
    """
    assert len({cell.key for cell in cells}) == len(cells), "two cells share a key"
    results = finished(folder, cells)
    missing = [cell for cell in cells if cell.key not in results]
    if results and missing:
        tell(f"{len(results)} of {len(cells)} cells are there already")
    for place in {make_folder(folder / DONE), *(path_of(folder, cell.key).parent for cell in cells)}:
        remove_temporaries(place)
    for key in results:
        # Of a cell whose process ended between its result and the end of its work.
        shutil.rmtree(folder / WORK / key, ignore_errors=True)
    try:
        with contextlib.closing(computed(folder, missing, function, processes, devices)) as done:
            for cell, result in done:
                results[cell.key] = _write_result(folder, cell, result)
                tell(f"{len(results)} of {len(cells)}: {cell.key}{_headline(result)}")
    except KeyboardInterrupt as interrupt:
        kept = sum(path_of(folder, cell.key).is_file() for cell in cells)  # the last may be written, but not among the results
        raise Interrupted(
            f"interrupted after {kept} of {len(cells)} cells, which are kept in {folder}. Go on by {again}",
            status_of(interrupt),
        ) from None
    _remove_empty(folder / WORK)
    return {cell.key: results[cell.key] for cell in cells}


def computed(
    folder: Path, cells: Iterable[Cell], function: Function, processes: int, devices: Sequence[str] = ()
) -> Generator[tuple[Cell, dict[str, Any]]]:
    """Every cell with its result as soon as that is there.

    Args:
        folder: whose `work/KEY` is the cell's own while it runs.
        cells: a cell is taken when a process is free for it, after the results before were handed out.
        function: computes a cell.
        processes: at a time; 1 without `devices` computes in this process.
        devices: as for `run_cells`.
    """
    if processes == 1 and not devices:
        return _in_this_process(folder, cells, function)
    return _in_fresh_processes(folder, cells, function, processes, devices)


def _write_result(folder: Path, cell: Cell, result: dict[str, Any]) -> dict[str, Any]:
    """Write a cell's file and return the result as the file holds it, so that an interrupted grid gives the same numbers."""
    path = path_of(folder, cell.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(seal({"settings": plain(cell.settings), "result": plain(result)}), indent=1) + "\n"
    write_atomically(path, text.encode())
    return json.loads(text)["result"]


def _headline(result: dict[str, Any]) -> str:
    return f"  {result['headline']}" if "headline" in result else ""


def _in_this_process(folder: Path, cells: Iterable[Cell], function: Function) -> Generator[tuple[Cell, dict[str, Any]]]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for cell in cells:
            yield cell, _compute(function, cell, folder)
    finally:
        torch.set_num_threads(threads)


def _in_fresh_processes(
    folder: Path, cells: Iterable[Cell], function: Function, processes: int, devices: Sequence[str]
) -> Generator[tuple[Cell, dict[str, Any]]]:
    # Fresh interpreters: a forked one would inherit the threads' state of torch's libraries.
    context = multiprocessing.get_context("spawn")
    places = context.SimpleQueue()
    for number in range(processes if devices else 0):
        places.put(devices[number % len(devices)])
    initial = (places,) if devices else ()
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=initial)
    queue = iter(cells)
    running: dict[Future, Cell] = {}
    failure: Exception | None = None
    try:
        for cell in itertools.islice(queue, processes):
            running[pool.submit(_compute, function, cell, folder)] = cell
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                cell = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    raise
                except Exception as error:  # the cells that run now are finished and kept before it is raised
                    failure = failure or error
                    continue
                yield cell, result
                if failure is None and (following := next(queue, None)) is not None:
                    running[pool.submit(_compute, function, following, folder)] = following
        if failure is not None:
            raise failure
    except BrokenProcessPool as error:
        raise TrainingError(
            "a process of the grid ended without a result, perhaps for want of memory. Try fewer --processes; the others stay"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(devices: Any = None) -> None:
    """What a fresh process does first.

    Args:
        devices: a queue with a device of CUDA for each process; None: it sees all.
    """
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()  # CUDA reads it when it is first used
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt ends it at once; the parent says what is kept
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot stop its processes. Without this they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)  # SIGTERM would wait for the end of a step; what is written is whole in any case


def _compute(function: Function, cell: Cell, folder: Path) -> dict[str, Any]:
    work = folder / WORK / cell.key
    result = function(cell.settings, work)
    shutil.rmtree(work, ignore_errors=True)
    return result


def _remove_empty(folder: Path) -> None:
    """Remove what the work left behind: folders without files."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # somebody else is at work in there
            os.rmdir(path)
