"""Stages of a pipeline beside each other: what numpy, OpenVINO, numba and FFmpeg do leaves the interpreter lock free.

Results come in the order of the items whatever the number of threads, and few items wait at a time: the memory of a
long clip is that of a short one.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
_END = object()


def ahead(items: Iterator[Item], depth: int = 2) -> Generator[Item, None, None]:
    """The items, made by a thread that is at most ``depth`` of them ahead; its exception comes in its place.

    Closing the generator ends the thread at its next item.
    """
    made: queue.Queue[tuple[object, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: object, error: BaseException | None = None) -> None:
        while not stop.is_set():
            try:
                return made.put((item, error), timeout=0.1)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    break
            else:
                put(_END)
        except BaseException as error:  # whatever it is, it belongs to who asked for the items
            put(_END, error)
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()


class Workers:
    """Threads for the stages that need the processor most; used as a context manager, whose end waits for them.

    Args:
        count: of threads; default those that torch may use, which is what a batch gives to each of its processes.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.count, "worker", initializer=torch.set_flush_denormal, initargs=(True,))

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        return self._pool.submit(work)

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """Each item and what ``work`` makes of it, in order; as many wait as there are threads."""
        waiting: deque[tuple[Item, Future[Result]]] = deque()
        for item in items:
            waiting.append((item, self._pool.submit(work, item)))
            if len(waiting) > self.count:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
