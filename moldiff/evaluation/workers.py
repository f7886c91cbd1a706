"""A map over processes of our own: no main guard needed, a time limit for each item, and a crash costs one item only."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import IO, Any, TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]

#: Below this many items a process takes longer to start than the work takes.
SERIAL_BELOW = 300
CHUNK = 50
#: A worker may need this long (s) to import its libraries, on top of the limit of its first item.
START_UP = 60.0
_SERVE = "from moldiff.evaluation.workers import serve; serve()"


class ItemFailed(Exception):
    """What a lost item is reported as: its message is ``time limit`` or ``worker died``, or the error that was raised."""


def n_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_items(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    n_processes: int | None = None,
    time_limit: float | None = None,
    failed: Callable[[T, str], R] | None = None,
    progress: Progress | None = None,
    done: Callable[[int, R], None] | None = None,
) -> list[R]:
    """Apply a function to every item and return the results in order.

    ``function`` must be importable (a module's function or a ``functools.partial`` of one). Runs in this process when there is
    one core or fewer than ``SERIAL_BELOW`` items, unless ``time_limit`` (seconds an item) asks for processes that can be killed.
    ``failed(item, reason)`` gives the result of an item that raised, ran out of time or killed its process; without it
    ``ItemFailed`` is raised. ``progress(n_done, n_items)`` is called as results come, ``done(index, result)`` for each one.
    """
    tally = _Tally(len(items), progress, done)
    workers = n_cores() if n_processes is None else max(1, n_processes)
    if time_limit is None and (workers == 1 or len(items) < SERIAL_BELOW):
        return [tally.add(i, _guarded(function, item, failed)) for i, item in enumerate(items)]
    size = 1 if time_limit is not None else CHUNK
    starts = iter(range(0, len(items), size))
    lock = threading.Lock()
    results: list[R | None] = [None] * len(items)
    errors: list[BaseException] = []
    stop = threading.Event()

    def feed() -> None:
        worker: _Worker | None = None
        try:
            while not stop.is_set():
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                worker = worker or _Worker(function)
                chunk = items[start : start + size]
                outcomes = worker.run(chunk, time_limit)
                if len(outcomes) < len(chunk):
                    # The item that was being worked on is lost with its process; what came after it is done again.
                    outcomes.append((False, worker.loss))
                    worker.close()
                    worker = None
                    redo = chunk[len(outcomes) :]
                    for item in redo:
                        worker = worker or _Worker(function)
                        single = worker.run([item], time_limit)
                        outcomes.extend(single or [(False, worker.loss)])
                        if not single:
                            worker.close()
                            worker = None
                for offset, (ok, value) in enumerate(outcomes):
                    if not ok:
                        if failed is None:
                            raise ItemFailed(str(value))
                        value = failed(chunk[offset], str(value))
                    results[start + offset] = value
                    with lock:
                        tally.add(start + offset, value)
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            errors.append(error)
            stop.set()
        finally:
            if worker is not None:
                worker.close()

    threads = [threading.Thread(target=feed, daemon=True) for _ in range(min(workers, -(-len(items) // size)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
    if errors:
        raise errors[0]
    return cast(list[R], results)


class _Tally:
    def __init__(self, total: int, progress: Progress | None, done: Callable[[int, Any], None] | None) -> None:
        self.total, self.progress, self.done = total, progress, done
        self.count = itertools.count(1)

    def add(self, index: int, result: R) -> R:
        if self.done is not None:
            self.done(index, result)
        if self.progress is not None:
            self.progress(next(self.count), self.total)
        return result


def _guarded(function: Callable[[T], R], item: T, failed: Callable[[T, str], R] | None) -> R:
    if failed is None:
        return function(item)
    try:
        return function(item)
    except Exception as error:  # noqa: BLE001 (whatever a sample raises is that sample's failure)
        return failed(item, _words(error))


def _words(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")


class _Worker:
    """One child process that applies one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **quiet, "PYTHONPATH": paths},
        )
        self.fresh = True
        self.loss = "worker died"
        assert self.process.stdin is not None and self.process.stdout is not None
        self.send, self.receive = self.process.stdin, self.process.stdout
        self._dump(function)

    def run(self, chunk: Sequence[Any], time_limit: float | None) -> list[tuple[bool, Any]]:
        """Return (succeeded, result or reason) of the items; fewer than were given when the process died or was killed."""
        timer = None
        if time_limit is not None:
            timer = threading.Timer(time_limit * len(chunk) + (START_UP if self.fresh else 0.0), self._time_out)
            timer.daemon = True
            timer.start()
        self.fresh = False
        outcomes: list[tuple[bool, Any]] = []
        try:
            self._dump(list(chunk))
            for _ in chunk:
                outcomes.append(pickle.load(self.receive))
        except (EOFError, OSError, pickle.UnpicklingError):
            pass
        finally:
            if timer is not None:
                timer.cancel()
        return outcomes

    def close(self) -> None:
        for pipe in (self.send, self.receive):
            try:
                pipe.close()
            except OSError:
                continue
        self.process.kill()
        self.process.wait()

    def _time_out(self) -> None:
        self.loss = "time limit"
        self.process.kill()

    def _dump(self, value: Any) -> None:
        pickle.dump(value, self.send, protocol=pickle.HIGHEST_PROTOCOL)
        self.send.flush()


def serve() -> None:
    """Work in a child process: read a function and then lists of items from stdin, write each result as it is ready."""
    source: IO[bytes] = sys.stdin.buffer
    # Fortran and C libraries print to descriptor 1; the results keep a private copy of it.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    function = pickle.load(source)
    while True:
        try:
            chunk = pickle.load(source)
        except EOFError:
            return
        for item in chunk:
            try:
                outcome = (True, function(item))
            except Exception as error:  # noqa: BLE001 (as in _guarded)
                outcome = (False, _words(error))
            pickle.dump(outcome, sink, protocol=pickle.HIGHEST_PROTOCOL)
            sink.flush()
