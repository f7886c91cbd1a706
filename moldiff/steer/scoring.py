"""Rewards of many samples: in processes where that can be done, failures counted, the first one kept to be shown."""

from __future__ import annotations

import importlib.util
import math
import pickle
import threading
import traceback
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from moldiff.data.workers import Workers, n_cores
from moldiff.samples import Sample
from moldiff.steer.rewards import NoStructure, Term, property_of

#: Seconds that one reward may take in a process.
TIME_LIMIT = 60.0
_NONE = "no structure"


def reward_of(terms: Sequence[Term], sample: Sample) -> tuple[float, str]:
    """The reward of one sample and an empty string; NaN and ``no structure``, or NaN and a failure's last line."""
    try:
        total = math.fsum(term.of(property_of(term.function, sample)) for term in terms)
    except NoStructure:
        return math.nan, _NONE
    except Exception as error:  # noqa: BLE001 (a function of the user's may raise anything; the run goes on)
        lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
        return math.nan, lines[-1] if lines else type(error).__name__
    if not math.isfinite(total):
        return math.nan, f"the reward was {total}"
    return total, ""


class Scorer:
    """Rewards of samples, and what became of them: ``n_scored``, ``n_invalid`` (no structure to ask), ``n_failed``, ``first``.

    Named RDKit rewards are computed in this process, where they take less time than sending them elsewhere; other named and
    importable functions in ``n_processes`` processes that stay until the scorer goes; a lambda, and a function of a notebook or
    of the script that runs, in this process. May be called from several threads.
    """

    def __init__(self, terms: Sequence[Term], n_processes: int | None = None) -> None:
        self.terms = tuple(terms)
        self.n_scored = self.n_invalid = self.n_failed = 0
        self.first = ""
        self.n_processes = n_cores() if n_processes is None else n_processes
        self.in_processes = self.n_processes > 0 and _worth_processes(self.terms)
        self._workers: Workers | None = None
        self._lock = threading.Lock()

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """The reward of each sample: NaN where there is no structure to ask, -inf where the reward failed."""
        if self.in_processes:
            results = self._pool().map(samples, chunk_size=max(1, min(16, len(samples) // (4 * self.n_processes))))
            found = [r.value if r.ok else (math.nan, f"the reward's process {r.value}") for r in results]
        else:
            found = [reward_of(self.terms, sample) for sample in samples]
        with self._lock:
            self.n_scored += len(found)
            self.n_invalid += sum(why == _NONE for _, why in found)
            failed = [why for _, why in found if why and why != _NONE]
            self.n_failed += len(failed)
            self.first = self.first or next(iter(failed), "")
        return [-math.inf if why and why != _NONE else value for value, why in found]

    def take_notice(self) -> str:
        """One sentence on what failed since the last call, or nothing; the counts begin anew."""
        with self._lock:
            asked, failed, first = self.n_scored - self.n_invalid, self.n_failed, self.first
            self.n_scored = self.n_invalid = self.n_failed = 0
            self.first = ""
        if not failed:
            return ""
        return f"the reward failed for {failed:,} of {asked:,} structures, whose particles were dropped; first with {first}"

    def _pool(self) -> Workers:
        with self._lock:
            if self._workers is None:
                self._workers = Workers(partial(reward_of, self.terms), self.n_processes, TIME_LIMIT)
                weakref.finalize(self, self._workers.close)
            return self._workers


def _worth_processes(terms: Sequence[Term]) -> bool:
    named = [term.function for term in terms if isinstance(term.function, str)]
    if len(named) == len(terms) and all(name.startswith(("rdkit:", "crystal:")) for name in named):
        return False
    return all(importable(term.function) for term in terms if not isinstance(term.function, str))


def importable(function: Callable[[Any], Any]) -> bool:
    """Whether another process can load this function: it pickles, and its module is no notebook, script or prompt."""
    try:
        module = getattr(pickle.loads(pickle.dumps(function)), "__module__", None) or type(function).__module__
        return module != "__main__" and importlib.util.find_spec(module) is not None
    except Exception:  # noqa: BLE001 (whatever pickling raises, the answer is no)
        return False
