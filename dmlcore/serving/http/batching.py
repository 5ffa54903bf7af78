"""Samples of concurrent requests, embedded together.

One thread runs the model. Whatever waits when it becomes free is its next batch. So nobody waits for a timer, a single request
is answered at once, and many are as cheap as one large batch.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmlcore.serving.http.limits import Refused


@dataclass(eq=False)
class _Waiting:
    samples: Tensor  # [n, ...]
    answer: asyncio.Future[np.ndarray]


class Batcher:
    """Embeds what requests hand in.

    Args:
        embed: gives embeddings [b, D] of prepared samples [b, ...]; called by one thread.
        batch: samples at a time. A request of more is a batch of its own.
        waiting: samples that may wait.

    Attributes:
        batches: that were embedded.
        samples: in them.
    """

    def __init__(self, embed: Callable[[Tensor], np.ndarray], batch: int, waiting: int) -> None:
        self._embed, self._batch, self._most = embed, batch, waiting
        self._queue: deque[_Waiting] = deque()
        self._count = 0  # samples in the queue
        self._changed = threading.Condition()
        self._is_closed = False
        self.batches = self.samples = 0
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Samples that wait."""
        return self._count

    async def embed(self, samples: Tensor) -> np.ndarray:
        """Embeddings [n, D] of prepared samples [n, ...].

        Raises:
            Refused: too many samples wait.
        """
        answer: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._is_closed:
                raise Refused(503, "the server is stopping")
            if self._count and self._count + len(samples) > self._most:
                raise Refused(503, f"{self._count:,} samples wait already; come again", {"Retry-After": "1"})
            self._queue.append(_Waiting(samples, answer))
            self._count += len(samples)
            self._changed.notify()
        return await answer

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while group := self._next():
            try:
                rows = self._embed(torch.cat([item.samples for item in group]))
                parts = np.split(rows, np.cumsum([len(item.samples) for item in group])[:-1])
                self.batches, self.samples = self.batches + 1, self.samples + len(rows)
                results: list[np.ndarray | Exception] = list(parts)
            except Exception as error:
                results = [error] * len(group)
            loop = group[0].answer.get_loop()
            try:
                loop.call_soon_threadsafe(_hand_out, group, results)
            except RuntimeError:  # the loop was closed meanwhile: nobody listens
                return

    def _next(self) -> list[_Waiting]:
        """What the model takes next; nothing: the end."""
        with self._changed:
            while True:
                while not self._queue and not self._is_closed:
                    self._changed.wait()
                group: list[_Waiting] = []
                size = 0
                while self._queue and (not group or size + len(self._queue[0].samples) <= self._batch):
                    item = self._queue.popleft()
                    self._count -= len(item.samples)
                    if not item.answer.cancelled():  # whoever asked may be gone
                        group.append(item)
                        size += len(item.samples)
                if group or self._is_closed:
                    return group


def _hand_out(group: list[_Waiting], results: list[np.ndarray | Exception]) -> None:
    for item, result in zip(group, results, strict=True):
        if item.answer.done():
            continue
        if isinstance(result, Exception):
            item.answer.set_exception(result)
        else:
            item.answer.set_result(result)
