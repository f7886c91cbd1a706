"""Work that hangs or crashes costs itself only, and results come in order."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from moldiff.data.workers import Result, map_stream


def slow_or_deadly(item: int) -> int:
    if item == 5:
        time.sleep(60)
    if item == 9:
        os._exit(3)
    if item == 11:
        raise ValueError("eleven\nis odd")
    if item == 13:
        os.write(1, b"a library's chatter on stdout")
    return item * item


def test_hanging_and_crashing_items_cost_themselves_only() -> None:
    results = list(map_stream(slow_or_deadly, range(40), n_processes=2, time_limit=0.5, chunk_size=8))
    assert results[5] == Result(False, "longer than 0.5 s")
    assert results[9] == Result(False, "crashed")
    assert results[11] == Result(False, "ValueError: eleven")
    assert [r.value for k, r in enumerate(results) if k not in (5, 9, 11)] == [k * k for k in range(40) if k not in (5, 9, 11)]


def test_items_are_drawn_as_they_are_needed_and_leaving_early_is_allowed() -> None:
    drawn = []

    def endless() -> Iterator[int]:
        k = 100
        while True:
            drawn.append(k)
            yield k
            k += 1

    stream = map_stream(slow_or_deadly, endless(), n_processes=1, time_limit=5.0)
    assert next(stream).value == 10000
    stream.close()
    assert len(drawn) < 5000


def test_in_this_process() -> None:
    assert list(map_stream(slow_or_deadly, [2, 11], n_processes=0, time_limit=1.0)) == [
        Result(True, 4),
        Result(False, "ValueError: eleven"),
    ]
