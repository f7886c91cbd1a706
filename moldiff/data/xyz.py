"""XYZ and extended XYZ files, frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldiff.data.entry import Entry
from moldiff.data.tables import read_columns

_LAYOUT = ("Lattice", "Properties", "pbc")
_CHARGES = ("charge", "total_charge", "net_charge")


@dataclass(frozen=True)
class XyzRow:
    """One frame as text: its comment, its atom lines and the number of atoms that it announced."""

    row: int
    name: str
    n_atoms: int
    comment: str
    lines: tuple[str, ...]

    def entry(self) -> Entry:
        """Parse the frame: species and positions, numbers of an extended comment as properties, its charge if it has one."""
        try:
            numbers, positions, info = parse_frame(self)
        except ValueError as error:
            return self._rejected(str(error))
        if "Lattice" in info and np.any(info.get("pbc", True)):
            return self._rejected("periodic, not a molecule")
        info = {key: value for key, value in info.items() if key not in ("Lattice", "pbc")}
        charge = next((info.pop(key) for key in list(info) if key.lower() in _CHARGES), None)
        scalars = ((key, value) for key, value in info.items() if np.ndim(value) == 0 and not isinstance(value, bool))
        properties, texts, number, label = read_columns(scalars)
        return Entry(
            row=self.row,
            name=label or self.name,
            id=self.row if number is None else number,
            numbers=numbers,
            positions=positions,
            total_charge=None if charge is None else round(float(charge)),
            properties=properties,
            texts=texts,
        )

    def _rejected(self, problem: str) -> Entry:
        # What the frame says of itself stays: a sample that failed was still asked for something.
        info = read_comment(self.comment)
        scalars = ((k, v) for k, v in info.items() if np.ndim(v) == 0 and not isinstance(v, bool) and k not in _LAYOUT)
        return Entry(self.row, self.name, self.row, properties=read_columns(scalars)[0], problem=problem)


def parse_frame(frame: XyzRow) -> tuple[NDArray[np.int64], NDArray[np.float64], dict[str, Any]]:
    """Return atomic numbers [N], positions [N, 3] (Å) and the keys of the comment; raises ValueError with the reason."""
    if len(frame.lines) < frame.n_atoms:
        raise ValueError(f"truncated: {len(frame.lines)} of {frame.n_atoms} atoms")
    if frame.n_atoms < 1:
        raise ValueError("no atoms")
    try:
        info = _comment(frame.comment)
        kind, place = _layout(str(info.pop("Properties", "")))
    except ValueError as error:
        raise ValueError(f"unreadable comment: {error}") from error
    numbers = np.zeros(frame.n_atoms, dtype=np.int64)
    positions = np.zeros((frame.n_atoms, 3))
    for i, line in enumerate(frame.lines):
        # Mathematica's exponent stands in the raw files of QM9.
        words = line.replace("*^", "e").split()
        try:
            numbers[i] = atomic_number(words[kind])
            positions[i] = [float(word) for word in words[place : place + 3]]
        except (ValueError, IndexError) as error:
            raise ValueError(f"unreadable line of atom {i + 1}") from error
        if numbers[i] == 0:
            raise ValueError(f"unknown element {words[kind][:12]!r}")
    return numbers, positions, info


def read_xyz(lines: Iterable[str], label: str, rows: Iterator[int] | None = None) -> Iterator[XyzRow | Entry]:
    """Split lines into frames; ``label`` names those without a plain comment and ``rows`` numbers them.

    Lines where the number of atoms should stand are skipped up to the next number, and reported as one row with a problem.
    """
    rows = count(1) if rows is None else rows
    stream = iter(lines)
    lost, raw_qm9 = False, False
    while (line := next(stream, None)) is not None:
        text = line.strip()
        if not text:
            continue
        if not text.isdecimal() or len(text) > 9:
            # Raw QM9 files carry frequencies, SMILES and InChI behind the atoms.
            if not lost and not raw_qm9:
                lost = True
                row = next(rows)
                yield Entry(row, f"{label}#{row}", row, problem=f"number of atoms expected, found {text[:30]!r}")
            continue
        lost = False
        n_atoms = int(text)
        comment = next(stream, "").strip()
        raw_qm9 = comment.startswith("gdb ")
        atoms: list[str] = []
        while len(atoms) < n_atoms and (atom := next(stream, None)) is not None:
            if not atom.strip() or atom.strip().isdecimal():
                # The frame is cut off and the next one begins.
                stream = chain([atom], stream)
                break
            atoms.append(atom)
        row = next(rows)
        plain = comment if comment and "=" not in comment and not raw_qm9 else ""
        name = " ".join(comment.split()[:2]) if raw_qm9 else plain[:80]
        yield XyzRow(row, name or f"{label}#{row}", n_atoms, "" if raw_qm9 else comment, tuple(atoms))


def atomic_number(word: str) -> int:
    """Return the atomic number of a symbol (any case; D and T are hydrogen) or of a number, 0 when there is none."""
    from ase.data import atomic_numbers

    if word.isdecimal():
        return int(word) if 1 <= int(word) <= 118 else 0
    symbol = word.capitalize()
    return 1 if symbol in ("D", "T") else int(atomic_numbers.get(symbol, 0))


def read_comment(text: str) -> dict[str, Any]:
    """Read the keys of an extended comment as far as that goes; none where it can't be read."""
    try:
        return _comment(text)
    except ValueError:
        return {}


def _comment(text: str) -> dict[str, Any]:
    """Read the keys of an extended comment; a plain one has none."""
    if "=" not in text:
        return {}
    from ase.io import extxyz

    parse: Any = extxyz.key_val_str_to_dict
    try:
        return dict(parse(text))
    except Exception as error:
        # ASE's parser raises many kinds for text that only looks like key=value.
        if "Properties=" in text:
            raise ValueError(str(error)) from error
        return {}


def _layout(properties: str) -> tuple[int, int]:
    """Return the columns of the species and of the first coordinate."""
    if not properties:
        return 0, 1
    words = properties.split(":")
    start, places = 0, {}
    for name, _, width in zip(words[::3], words[1::3], words[2::3], strict=True):
        places[name] = start
        start += int(width)
    kind = next((places[key] for key in ("species", "Z", "numbers") if key in places), None)
    if kind is None or "pos" not in places:
        raise ValueError("Properties name no species or no pos")
    return kind, places["pos"]
