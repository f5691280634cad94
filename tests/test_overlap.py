"""Stages beside each other: results in order, errors in their place, nothing left running."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from nphm_track.overlap import Workers, ahead


def numbers(count: int, seen: list[int], ends: bool = False) -> Iterator[int]:
    try:
        for k in range(count):
            seen.append(k)
            yield k
        if ends:
            raise KeyboardInterrupt
    finally:
        seen.append(-1)


def test_items_come_in_order_and_few_of_them_ahead() -> None:
    seen: list[int] = []
    with closing(ahead(numbers(20, seen), depth=2)) as items:
        assert next(items) == 0
        time.sleep(0.2)
        assert len(seen) <= 5
        assert list(items) == list(range(1, 20))
    assert seen[-1] == -1


def test_an_exception_comes_after_the_items_before_it() -> None:
    got = []
    with pytest.raises(KeyboardInterrupt):
        for item in ahead(numbers(7, [], ends=True)):
            got.append(item)
    assert got == list(range(7))


def test_who_stops_early_leaves_no_thread_and_no_open_source() -> None:
    seen: list[int] = []
    with closing(ahead(numbers(10**9, seen))) as items:
        assert [next(items), next(items)] == [0, 1]
    assert seen[-1] == -1
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]


@pytest.mark.parametrize("count", [1, 3])
def test_workers_give_results_in_order(count: int) -> None:
    def slow_at_first(k: int) -> int:
        time.sleep(0.02 / (k + 1))
        return k * k

    with Workers(count) as workers:
        assert list(workers.map(slow_at_first, range(12))) == [(k, k * k) for k in range(12)]


def test_an_error_of_work_reaches_who_asked() -> None:
    def work(k: int) -> int:
        return 1 // (3 - k)

    with Workers(2) as workers, pytest.raises(ZeroDivisionError):
        list(workers.map(work, range(9)))
