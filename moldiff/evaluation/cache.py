"""A cache of expensive results by a hash of the structure, so that a second run, or one after a kill, takes seconds."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

#: Coordinates are hashed in steps of this size (Å), the precision of an SDF.
RESOLUTION = 1e-4


def structure_key(kind: str, numbers: ArrayLike, coordinates: ArrayLike, *more: object) -> str:
    """Hash a structure for one kind of calculation.

    ``kind`` names the calculation and its version; ``numbers`` [N]; ``coordinates`` [N, 3] (Å); ``more`` is whatever else the
    result depends on (charge, bonds, settings), by its text.
    """
    steps = np.rint(np.asarray(coordinates, dtype=np.float64) / RESOLUTION).astype(np.int64)
    digest = hashlib.sha256(repr((kind, *(str(m) for m in more))).encode())
    digest.update(np.asarray(numbers, dtype=np.int16).tobytes() + steps.tobytes())
    return digest.hexdigest()


def cache_path() -> Path:
    """Return where results are kept: ``evaluation.sqlite`` under MOLDIFF_CACHE, or under ~/.cache/moldiff."""
    return Path(os.environ.get("MOLDIFF_CACHE") or Path.home() / ".cache" / "moldiff") / "evaluation.sqlite"


class ResultCache:
    """Results as JSON by key, in one SQLite file that several runs may share.

    Where the file can't be opened or written, the cache forgets at once and ``problem`` tells why: results matter more.
    """

    def __init__(self, path: Path | None = None, *, every: float = 1.0) -> None:
        self.path = cache_path() if path is None else path
        self.problem = ""
        self.every = every
        self._last = time.monotonic()
        self._waiting: dict[str, str] = {}
        self._db: sqlite3.Connection | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Worker threads hand results in under a lock of the pool.
            self._db = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
            self._db.execute("CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
            self._db.commit()
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def get(self, key: str) -> dict[str, Any] | None:
        """Return a stored result, or None."""
        if self._db is None:
            return None
        try:
            row = self._db.execute("SELECT value FROM results WHERE key = ?", (key,)).fetchone()
            return None if row is None else json.loads(row[0])
        except (sqlite3.Error, ValueError) as error:
            self._give_up(error)
            return None

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Store a result; it is on the disk within ``every`` seconds."""
        self._waiting[key] = json.dumps(value)
        if time.monotonic() - self._last >= self.every:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        self._last = time.monotonic()
        if self._db is None or not self._waiting:
            return
        try:
            with self._db:
                self._db.executemany("INSERT OR REPLACE INTO results VALUES (?, ?)", list(self._waiting.items()))
            self._waiting.clear()
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        """Write what is waiting and close the file."""
        self.flush()
        if self._db is not None:
            self._db.close()
            self._db = None

    def _give_up(self, error: Exception) -> None:
        self.problem = f"no cache at {self.path}: {error}"
        self._waiting.clear()
        if self._db is not None:
            self._db.close()
            self._db = None
