"""A map over child processes for work that may hang or crash: ordered, streaming, with a time limit for each item."""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

#: What a child may need to start and to import its libraries, beyond the limit of its first item (s).
START_UP = 60.0
#: A child holds finished results back for no longer than this (s), so that few of them are lost with it.
_HOLD = 0.2
_SERVE = "from moldiff.data.workers import serve; serve()"


class Result(NamedTuple):
    """What became of one item: ``ok`` and the function's value, or not ok and the reason in a few words."""

    ok: bool
    value: Any


def n_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_stream(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    n_processes: int,
    time_limit: float,
    chunk_size: int = 32,
) -> Iterator[Result]:
    """Yield one ``Result`` for each item, in order, while a bounded number of items is under way.

    ``function`` must be importable by name. An item that runs longer than ``time_limit`` seconds, or kills its process, is
    given up with the reason; its neighbours are not. Children are started by command line, so that no main guard is needed
    and threads do no harm. ``n_processes`` 0 works in this process, where nothing can be interrupted.
    """
    if n_processes == 0:
        for item in items:
            yield call(function, item)
        return
    pool = _Pool(function, iter(enumerate(items)), n_processes, time_limit, chunk_size)
    try:
        yield from pool.results()
    finally:
        pool.close()


class Workers:
    """Processes that stay between maps, for work that comes in small portions; ``close`` ends them.

    ``function``, ``n_processes`` and ``time_limit`` as for ``map_stream``. Maps of several threads take turns.
    """

    def __init__(self, function: Callable[[Any], Any], n_processes: int, time_limit: float) -> None:
        self._pool = _Pool(function, iter(()), n_processes, time_limit, 1)
        self._lock = threading.Lock()

    def map(self, items: Iterable[Any], chunk_size: int = 1) -> list[Result]:
        """One ``Result`` for each item, in order."""
        with self._lock:
            self._pool.begin(items, chunk_size)
            return list(self._pool.results())

    def close(self) -> None:
        """End all processes."""
        self._pool.close()


def call(function: Callable[[Any], Any], item: Any) -> Result:
    """Apply a function and turn an exception into a reason."""
    try:
        return Result(True, function(item))
    except Exception as error:  # noqa: BLE001 - whatever one item raises must not end the others
        lines = str(error).splitlines()
        return Result(False, f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": "))


class _Child:
    """One process; a thread passes on what it says."""

    def __init__(self, function: Callable[[Any], Any], inbox: queue.Queue[tuple[_Child, Any]]) -> None:
        single = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **single, "PYTHONPATH": paths},
        )
        self.pending: deque[tuple[int, Any]] = deque()
        self.careful = False
        self.deadline = float("inf")
        self.grace = START_UP
        self.late = False
        self._send(function)
        threading.Thread(target=self._listen, args=(inbox,), daemon=True).start()

    def give(self, chunk: list[tuple[int, Any]], careful: bool, time_limit: float) -> None:
        self.pending.extend(chunk)
        self.careful = careful
        self.deadline = time.monotonic() + time_limit + _HOLD + self.grace
        self._send(([item for _, item in chunk], careful))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue

    def _send(self, message: Any) -> None:
        assert self.process.stdin is not None
        try:
            pickle.dump(message, self.process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self.process.stdin.flush()
        except OSError:
            # The child is gone; the listener reports it.
            return

    def _listen(self, inbox: queue.Queue[tuple[_Child, Any]]) -> None:
        assert self.process.stdout is not None
        try:
            while True:
                inbox.put((self, pickle.load(self.process.stdout)))
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            inbox.put((self, None))


class _Pool:
    def __init__(
        self, function: Callable[[Any], Any], source: Iterator[tuple[int, Any]], n: int, time_limit: float, chunk_size: int
    ) -> None:
        self.function, self.source, self.time_limit, self.chunk_size = function, source, time_limit, chunk_size
        self.n = n
        self.inbox: queue.Queue[tuple[_Child, Any]] = queue.Queue()
        self.children: list[_Child] = []
        self.retry: deque[list[tuple[int, Any]]] = deque()
        self.ready: dict[int, Result] = {}
        self.next = 0
        self.given = 0

    def begin(self, items: Iterable[Any], chunk_size: int) -> None:
        """Take up new items once all earlier results were handed out."""
        self.source, self.chunk_size, self.next, self.given = iter(enumerate(items)), chunk_size, 0, 0
        self.ready.clear()

    def results(self) -> Iterator[Result]:
        while True:
            self._feed()
            busy = [child for child in self.children if child.pending]
            if not busy:
                break
            wait = min(max(0.0, min(child.deadline for child in busy) - time.monotonic()), 3600.0)
            try:
                self._hear(*self.inbox.get(timeout=wait))
            except queue.Empty:
                for child in busy:
                    if time.monotonic() >= child.deadline and not child.late:
                        child.late = True
                        child.deadline = float("inf")
                        child.process.kill()
            while self.next in self.ready:
                yield self.ready.pop(self.next)
                self.next += 1

    def close(self) -> None:
        for child in self.children:
            child.stop()

    def _feed(self) -> None:
        idle = [child for child in self.children if not child.pending]
        while True:
            careful = bool(self.retry)
            # Far ahead of a slow item, wait for it: what is finished has to be kept until it can be handed on in order.
            if not careful and self.given - self.next > 64 * self.chunk_size * self.n:
                return
            if not idle and len(self.children) == self.n:
                return
            chunk = self.retry.popleft() if careful else list(islice(self.source, self.chunk_size))
            if not chunk:
                return
            self.given = max(self.given, chunk[-1][0] + 1)
            if not idle:
                self.children.append(_Child(self.function, self.inbox))
                idle.append(self.children[-1])
            idle.pop().give(chunk, careful, self.time_limit)

    def _hear(self, child: _Child, message: list[Result] | None) -> None:
        if message is None:
            self._lose(child)
            return
        for result in message:
            index, _ = child.pending.popleft()
            self.ready[index] = Result(*result)
        child.grace = 0.0
        child.deadline = time.monotonic() + self.time_limit + _HOLD if child.pending else float("inf")

    def _lose(self, child: _Child) -> None:
        if child not in self.children:
            return
        self.children.remove(child)
        child.stop()
        left = list(child.pending)
        # In a chunk whose results were held back it is not known which item is to blame: do it again, one by one.
        if left and child.careful:
            reason = f"longer than {self.time_limit:g} s" if child.late else "crashed"
            self.ready[left.pop(0)[0]] = Result(False, reason)
        if left:
            self.retry.append(left)


def serve() -> None:
    """Work in a child process: read the function and then chunks from stdin, write lists of results."""
    source = sys.stdin.buffer
    # C libraries print to descriptor 1; the results keep a private copy of it.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    function = pickle.load(source)
    # Nothing done yet, but ready: from here on the limit of an item counts.
    pickle.dump([], sink, protocol=pickle.HIGHEST_PROTOCOL)
    sink.flush()
    while True:
        try:
            items, careful = pickle.load(source)
        except EOFError:
            return
        held: list[tuple[bool, Any]] = []
        since = time.monotonic()
        for k, item in enumerate(items):
            held.append(tuple(call(function, item)))
            if careful or k == len(items) - 1 or time.monotonic() - since > _HOLD:
                pickle.dump(held, sink, protocol=pickle.HIGHEST_PROTOCOL)
                sink.flush()
                held, since = [], time.monotonic()
