"""What people see instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MoldiffError(Exception):
    """A failure that one sentence explains; the command line prints it and exits with ``exit_code``."""

    exit_code = 1


class BadRequest(MoldiffError):
    """The request itself is wrong (unknown name, impossible value, unreadable file): exit code 2."""

    exit_code = 2


class DamagedFile(BadRequest):
    """A file is truncated, altered or of a refused kind."""


def unknown(kind: str, name: str, known: Iterable[str]) -> BadRequest:
    """Build the error for an unknown name, with the nearest right one and the allowed values."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return BadRequest(f"unknown {kind} {name!r}{hint} (known: {', '.join(known)})")
