"""Output files that survive a kill at any moment: data first, then one line of the journal that says how far it reaches.

After a kill the files are cut back to the last line that is whole; what lies behind it is drawn again, and since sample i of a
seed is always the same, the files end up byte for byte as if nothing had happened.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from moldiff.errors import BadRequest, DamagedFile, MoldiffError

try:
    import fcntl
except ImportError:  # Windows has no such locks; two runs in one folder are then nobody's business but the user's
    fcntl = None  # type: ignore[assignment]

JOURNAL = ".journal"


class JournaledFiles:
    """Several files that grow together, batch by batch, in one folder.

    Opening cuts the files back to what the journal vouches for; ``count`` is the number of samples in them then. Raises
    ``BadRequest`` when another run holds the folder and ``DamagedFile`` when a file is shorter than its journal says.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, tuple(names)
        self.count = 0
        self.files: dict[str, BinaryIO] = {}
        self.journal: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            self.journal = open(self.folder / JOURNAL, "a+b")  # closed in close()
            self._lock()
            self._restore()
        except OSError as error:
            self.close()
            raise failed_write(self.folder, error) from None
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; what was appended is on disk already."""
        for file in (*self.files.values(), *([self.journal] if self.journal is not None else [])):
            file.close()
        self.files, self.journal = {}, None

    def _lock(self) -> None:
        if fcntl is None or self.journal is None:
            return
        try:
            fcntl.flock(self.journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadRequest(f"another run is writing to {self.folder}") from None
        except OSError:
            return  # some network file systems know no locks

    def append(self, texts: Mapping[str, str], n: int) -> None:
        """Add ``n`` samples: text for each file, on disk before the journal says so; raises ``MoldiffError`` on a full disk."""
        assert self.journal is not None
        try:
            for name in self.names:
                self._write(self.files[name], texts[name].encode())
            line = {"count": self.count + n, "bytes": {name: self.files[name].tell() for name in self.names}}
            text = json.dumps(line)
            self._write(self.journal, f"{zlib.crc32(text.encode()):08x} {text}\n".encode())
        except OSError as error:
            raise failed_write(self.folder, error) from None
        self.count += n

    @staticmethod
    def _write(file: BinaryIO, data: bytes) -> None:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

    def _restore(self) -> None:
        assert self.journal is not None
        self.journal.seek(0)
        good, whole = None, 0
        for raw in self.journal.read().splitlines(keepends=True):
            check, _, text = raw.partition(b" ")
            if not raw.endswith(b"\n") or check != f"{zlib.crc32(text[:-1]):08x}".encode():
                break
            good, whole = json.loads(text), whole + len(raw)
        self.journal.truncate(whole)
        self.count = 0 if good is None else int(good["count"])
        for name in self.names:
            size = 0 if good is None else int(good["bytes"][name])
            path = self.folder / name
            path.touch()
            file = open(path, "r+b")  # noqa: SIM115 (closed in close())
            self.files[name] = file
            if file.seek(0, os.SEEK_END) < size:
                raise DamagedFile(f"{self.folder / name} is shorter than when the run stopped; start again in another folder")
            file.truncate(size)
            file.seek(size)


def failed_write(folder: Path, error: OSError) -> MoldiffError:
    """One sentence for a write that failed."""
    return MoldiffError(f"can't write to {folder}: {error.strerror or error}; what is done is kept, go on with --resume")
