"""What a composition asks of a model: formulas, a list of them, elements to keep to, to leave out, or to have."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moldiff.control import Place, Spec
from moldiff.errors import BadRequest
from moldiff.model_store import ModelInfo

if TYPE_CHECKING:
    from moldiff.sampling.control import Control

TYPES = "atom_types"
#: A formula may have this many times the atoms of the largest training system, with a warning; beyond, a model is only guessing.
STRETCH = 1.5
#: Rows of a file of compositions, at most.
MAX_ROWS = 1_000_000


@dataclass(frozen=True)
class Composition:
    """``z`` formula units of ``formula``; ``counts`` are (atomic number, atoms in the cell), in the order of the formula."""

    formula: str
    z: int
    counts: tuple[tuple[int, int], ...]

    @property
    def n_atoms(self) -> int:
        """Atoms of the cell or molecule."""
        return sum(n for _, n in self.counts)

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The atomic number of each atom."""
        return tuple(z for z, n in self.counts for _ in range(n))

    def __str__(self) -> str:
        return self.formula + (f" with z = {self.z}" if self.z != 1 else "")


@dataclass(frozen=True)
class Compositions(Spec):
    """Sample i has exactly the composition of row i modulo the number of rows, so that n rounds give n samples of each.

    Where the model is told the types they are given to it; where it makes them, the counts of the elements are fixed and the
    model says which atom is which.
    """

    rows: tuple[Composition, ...]
    name = "compositions"
    settles = True
    gives = (TYPES,)

    def settings(self) -> Any:
        return [[row.formula, row.z] for row in self.rows]

    def check(self, info: ModelInfo) -> None:
        known = info.config.vocabulary.get(TYPES, [])
        most = max(info.sizes)
        for row in self.rows:
            _check_known(info, [z for z, _ in row.counts if z not in known], str(row))
            if row.z != 1 and info.config.kind != "crystal":
                raise BadRequest(f"z counts formula units in the cell of a crystal, and {info.name} makes {info.config.kind}s")
            if row.n_atoms > STRETCH * most:
                raise BadRequest(
                    f"{row} has {row.n_atoms} atoms, too many for {info.name}, which was trained on {most} at most"
                )
            if row.n_atoms < min(info.sizes):
                raise BadRequest(
                    f"{row} has {row.n_atoms} atoms, too few for {info.name}, which was trained on {min(info.sizes)} at least"
                )

    def cautions(self, info: ModelInfo) -> list[str]:
        from moldiff.evaluation.crystals.elements import unbalanced

        most = max(info.sizes)
        said = []
        large = [row for row in self.rows if row.n_atoms > most]
        if large:
            said.append(
                f"{_named(large)} more atoms ({max(row.n_atoms for row in large)}) than {info.name} was trained on ({most}): "
                "expect worse samples"
            )
        if info.config.kind == "crystal":
            odd = [row for row in self.rows if unbalanced(row.counts)]
            if odd:
                said.append(f"{_named(odd)} no common oxidation states that balance")
        return said

    def check_beside(self, others: Sequence[Spec]) -> None:
        for other in others:
            if TYPES in other.gives:
                raise BadRequest(f"the elements of the atoms can't come from both a formula and {other.name}")

    def total(self, n: int) -> int:
        return n * len(self.rows)

    def size_of(self, index: int) -> int:
        return self._row(index).n_atoms

    def facts(self, index: int) -> Mapping[str, Any]:
        return {"request": index % len(self.rows)}

    def control(self, place: Place) -> Control:
        import torch

        from moldiff.sampling.allowed import Counted, Given

        classes = place.vocabulary.values[TYPES]
        chosen = [[classes.index(z) for z in self._row(i).numbers] for i in place.indices]
        value = torch.tensor(chosen, device=place.device)
        if TYPES in place.info.config.given:
            return Given(atom_types=value)
        counts = torch.nn.functional.one_hot(value, len(classes)).sum(1)
        return Counted(TYPES, counts, counts)

    def _row(self, index: int) -> Composition:
        return self.rows[index % len(self.rows)]


@dataclass(frozen=True)
class Elements(Spec):
    """Atoms of ``only`` these elements (None: any), none of ``exclude``, and at least one of each of ``require``.

    All are atomic numbers.
    """

    only: tuple[int, ...] | None = None
    exclude: tuple[int, ...] = ()
    require: tuple[int, ...] = ()
    name = "elements"
    settles = True

    def settings(self) -> Any:
        only = None if self.only is None else list(self.only)
        return {"only": only, "exclude": list(self.exclude), "require": list(self.require)}

    def check(self, info: ModelInfo) -> None:
        known = info.config.vocabulary.get(TYPES, [])
        for verb, named in (("elements", self.only or ()), ("require", self.require)):
            _check_known(info, [z for z in named if z not in known], f"--{verb}")
        for a, b, both in (
            ("require", "exclude", set(self.require) & set(self.exclude)),
            ("elements", "exclude", set(self.only or ()) & set(self.exclude)),
        ):
            if both:
                raise BadRequest(f"--{a} and --{b} contradict each other: both name {_symbols(sorted(both))}")
        missed = set() if self.only is None else set(self.require) - set(self.only)
        if missed:
            raise BadRequest(f"--require asks for {_symbols(sorted(missed))}, which --elements leaves out")
        if not self.allowed(known):
            raise BadRequest(f"--exclude leaves none of the elements that {info.name} knows")
        if len(self.require) > max(info.sizes):
            most = max(info.sizes)
            raise BadRequest(f"--require asks for {len(self.require)} elements, and {info.name} makes {most} atoms at most")

    def check_beside(self, others: Sequence[Spec]) -> None:
        for row in (row for other in others if isinstance(other, Compositions) for row in other.rows):
            mine = {z for z, _ in row.counts}
            left = mine - set(self.allowed(sorted(mine)))
            if left:
                raise BadRequest(f"{row.formula} holds {_symbols(sorted(left))}, which --elements or --exclude leave out")
            if not set(self.require) <= mine:
                raise BadRequest(f"{row.formula} lacks {_symbols(sorted(set(self.require) - mine))}, which --require asks for")
        for fragment in (part for other in others if (part := getattr(other, "fragment", None)) is not None):
            kept = {int(z) for z in fragment.numbers}
            left = kept - set(self.allowed(sorted(kept)))
            if left:
                raise BadRequest(f"what is kept holds {_symbols(sorted(left))}, which --elements or --exclude leave out")

    def allowed(self, known: Sequence[int]) -> list[int]:
        """Those of the known elements that may occur."""
        return [z for z in known if (self.only is None or z in self.only) and z not in self.exclude]

    def admits(self, size: int) -> bool:
        return size >= len(self.require)

    def control(self, place: Place) -> Control:
        import torch

        from moldiff.sampling.allowed import Counted
        from moldiff.sampling.control import Control

        if TYPES in place.info.config.given:
            return Control()  # the composition is given, and was found to agree
        classes = place.vocabulary.values[TYPES]
        fair = set(self.allowed(classes))
        low = torch.tensor([int(z in self.require) for z in classes], device=place.device)
        high = torch.tensor([place.size if z in fair else 0 for z in classes], device=place.device)
        rows = len(place.indices)
        return Counted(TYPES, low.expand(rows, -1), high.expand(rows, -1))


def make_composition(formula: Any, z: Any = None) -> Composition:
    """Read a formula and a number of formula units; raises ``BadRequest`` for what is none."""
    from moldiff.chem.formula import whole_counts
    from moldiff.request import whole_number

    units = 1 if z is None else whole_number("z", z)
    if not 1 <= units <= 1000:
        raise BadRequest(f"z must be a whole number from 1 to 1000, found {units}")
    try:
        counts = whole_counts(formula)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    return Composition(str(formula).strip(), units, tuple((element, n * units) for element, n in counts.items()))


def compositions_from(formula: Any = None, z: Any = None, compositions: Any = None) -> Compositions | None:
    """The specification that ``formula`` with ``z``, or ``compositions`` (a CSV, or a list), ask for; None for none."""
    if compositions is None:
        if formula is None:
            if z is not None:
                raise BadRequest("z counts formula units: give a formula too")
            return None
        return Compositions((make_composition(formula, z),))
    if formula is not None or z is not None:
        raise BadRequest("give either a formula (with z) or a list of compositions, not both")
    if isinstance(compositions, (str, Path)):
        return Compositions(read_compositions(compositions))
    rows = tuple(make_composition(one) if isinstance(one, str) else make_composition(*one) for one in compositions)
    if not rows:
        raise BadRequest("the list of compositions is empty")
    return Compositions(rows)


def read_compositions(path: str | Path) -> tuple[Composition, ...]:
    """Read a CSV with a column ``formula`` and maybe ``z`` (1 where empty); raises ``BadRequest`` with the line that is wrong."""
    path = Path(path)
    found = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = {str(name).strip().lower(): name for name in reader.fieldnames or ()}
            if "formula" not in names:
                raise BadRequest(f"{path} needs a column 'formula' (it has: {', '.join(names) or 'none'})")
            for row in reader:
                text = (row.get(names.get("z", "")) or "").strip()
                try:
                    found.append(make_composition(row[names["formula"]] or "", _whole(text) if text else None))
                except BadRequest as error:
                    raise BadRequest(f"{path}, line {reader.line_num}: {error}") from None
                if len(found) > MAX_ROWS:
                    raise BadRequest(f"{path} has more than {MAX_ROWS:,} rows")
    except FileNotFoundError:
        raise BadRequest(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadRequest(f"{path} is no readable CSV: {str(error).splitlines()[0]}") from None
    if not found:
        raise BadRequest(f"{path} holds no compositions")
    return tuple(found)


def elements_from(only: Any = None, exclude: Any = None, require: Any = None) -> Elements | None:
    """The specification that lists of elements ask for, None for none; raises ``BadRequest`` for an unknown element."""
    from moldiff.chem.formula import parse_elements

    if only is None and exclude is None and require is None:
        return None
    lists: list[tuple[int, ...] | None] = []
    for verb, value in (("elements", only), ("exclude", exclude), ("require", require)):
        try:
            lists.append(None if value is None else parse_elements(value))
        except ValueError as error:
            raise BadRequest(f"--{verb}: {error}") from None
    return Elements(lists[0], lists[1] or (), lists[2] or ())


def _check_known(info: ModelInfo, strange: Sequence[int], where: str) -> None:
    if strange:
        raise BadRequest(f"{where}: {info.name} does not know {_symbols(strange)}")


def _named(rows: Sequence[Composition]) -> str:
    if len(rows) == 1:
        return f"{rows[0]} has"
    return f"{len(rows):,} compositions ({rows[0]} the first) have"


def _symbols(numbers: Sequence[int]) -> str:
    from ase.data import chemical_symbols

    return ", ".join(chemical_symbols[z] for z in numbers)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise BadRequest(f"z must be a whole number, found {text!r}") from None
