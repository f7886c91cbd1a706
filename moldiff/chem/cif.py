"""CIF text: written as it is (P1) or symmetrised, and read without evaluating anything in it."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from moldiff.chem.crystals import MIN_VOLUME, Crystal, formula_of, from_structure
from moldiff.chem.symmetry import SYMPREC, SpaceGroup, symmetrise

#: What may stand in an operation such as ``-y, x-y, z+1/3``; anything else is refused, never evaluated.
_OPERATION = re.compile(r"[-+0-9xyzXYZ/.,\s*]{5,80}")
_OPERATION_KEYS = (
    "_symmetry_equiv_pos_as_xyz",
    "_symmetry_equiv_pos_as_xyz_",
    "_space_group_symop_operation_xyz",
    "_space_group_symop_operation_xyz_",
)
#: Groups, operations and centrings of magnetic CIFs are given as transformations, which readers used to evaluate.
_MAGNETIC = ("_space_group_magn", "_space_group_symop_magn", "_atom_site_moment")
#: A CIF of more text than this is no crystal that fits a model, and parsing it takes minutes.
MAX_CHARACTERS = 5_000_000


def raw_cif(crystal: Crystal, name: str = "crystal") -> str:
    """Write a crystal as CIF text in the cell that it has, in P1, coordinates in full single precision."""
    atoms = [(z, x) for z, x in zip(crystal.numbers.tolist(), crystal.frac_coords.tolist(), strict=True)]
    return _cif(crystal, name, SpaceGroup(1, "P1"), ["x,y,z"], atoms)


def symmetrised_cif(crystal: Crystal, name: str = "crystal", symprec: float = SYMPREC) -> str:
    """Write the conventional symmetrised cell with its space group, operations and asymmetric unit.

    Where no symmetry is found within ``symprec`` (Å) the text is that of ``raw_cif``.
    """
    found = symmetrise(crystal, symprec)
    if found is None:
        return raw_cif(crystal, name)
    operations = [_xyz(r, t) for r, t in zip(found.rotations.tolist(), found.translations.tolist(), strict=True)]
    atoms = [(int(found.crystal.numbers[i]), found.crystal.frac_coords[i].tolist()) for i in found.asymmetric.tolist()]
    return _cif(found.crystal, name, found.group, operations, atoms)


def cif_blocks(text: str) -> Iterator[str]:
    """Yield the data blocks of a CIF that hold atoms, as texts of their own; the whole text where none does."""
    starts, inside = [], False
    lines = text.splitlines(keepends=True)
    for k, line in enumerate(lines):
        if line.startswith(";"):
            inside = not inside
        elif not inside and line[:5].lower() == "data_":
            starts.append(k)
    blocks = ["".join(lines[a:b]) for a, b in pairwise([*starts, len(lines)])]
    found = [block for block in blocks if "_atom_site_" in block]
    yield from found or [text]


def read_cif(text: str) -> Crystal:
    """Read one crystal from CIF text (the first block that holds atoms).

    Raises ValueError with a reason in a few words: partial occupancy, unknown element, symmetry operations that are none,
    nothing that can be read.
    """
    from pymatgen.io.cif import CifParser

    if not text.strip():
        raise ValueError("empty CIF")
    if len(text) > MAX_CHARACTERS:
        raise ValueError("CIF of more than 5 MB")
    text = next(cif_blocks(text))
    if any(key in text.lower() for key in _MAGNETIC):
        raise ValueError("magnetic CIF")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # Nothing is checked yet but the syntax: the operations are looked at before anybody interprets them.
            parser = CifParser.from_str(text, occupancy_tolerance=1.0, check_cif=False)
            values: dict[str, Any] = next(iter(parser.as_dict().values()), {})
        except Exception as error:
            raise ValueError(f"unreadable CIF: {_first_line(error)}") from error
        for key in _OPERATION_KEYS:
            operations = values.get(key, [])
            for operation in [operations] if isinstance(operations, str) else operations:
                if not _OPERATION.fullmatch(str(operation)) or str(operation).count(",") != 2:
                    raise ValueError(f"{str(operation)[:40]!r} is no symmetry operation")
        occupancies = [_number(word) for word in values.get("_atom_site_occupancy", [])]
        try:
            structures = parser.parse_structures(primitive=False, check_occu=True, on_error="raise")
        except Exception as error:
            raise ValueError(_why(values, occupancies) or f"unreadable CIF: {_first_line(error)}") from error
    if not structures:
        raise ValueError("CIF without atoms")
    return from_structure(structures[0])


def _cif(crystal: Crystal, name: str, group: SpaceGroup, operations: list[str], atoms: list[tuple[int, list[float]]]) -> str:
    from ase.data import chemical_symbols

    label = re.sub(r"[^A-Za-z0-9_.+-]", "_", name) or "crystal"
    a, b, c = crystal.lengths.tolist()
    alpha, beta, gamma = crystal.angles.tolist()
    lines = [
        f"data_{label}",
        f"_chemical_formula_structural       {crystal.reduced_formula}",
        f"_chemical_formula_sum              '{_spaced(crystal)}'",
        f"_cell_length_a                     {a:.8f}",
        f"_cell_length_b                     {b:.8f}",
        f"_cell_length_c                     {c:.8f}",
        f"_cell_angle_alpha                  {alpha:.8f}",
        f"_cell_angle_beta                   {beta:.8f}",
        f"_cell_angle_gamma                  {gamma:.8f}",
        f"_cell_volume                       {crystal.volume:.8f}",
        f"_symmetry_space_group_name_H-M     '{group.symbol}'",
        f"_symmetry_Int_Tables_number        {group.number}",
        "loop_",
        " _symmetry_equiv_pos_site_id",
        " _symmetry_equiv_pos_as_xyz",
        *(f"  {k}  '{operation}'" for k, operation in enumerate(operations, 1)),
        "loop_",
        " _atom_site_type_symbol",
        " _atom_site_label",
        " _atom_site_fract_x",
        " _atom_site_fract_y",
        " _atom_site_fract_z",
        " _atom_site_occupancy",
    ]
    for k, (z, x) in enumerate(atoms):
        symbol = chemical_symbols[z]
        # In [0, 1) as printed, too.
        x = [round(round(value, 8) % 1.0, 8) % 1.0 for value in x]
        lines.append(f"  {symbol}  {symbol}{k}  {x[0]:.8f}  {x[1]:.8f}  {x[2]:.8f}  1.0")
    return "\n".join(lines) + "\n"


def _why(values: dict[str, Any], occupancies: list[float | None]) -> str:
    """Find the reason for which a CIF could not be turned into a structure, or return an empty string."""
    from ase.data import atomic_numbers

    if any(o is not None and o > 1.0 for o in occupancies):
        return "occupancy above 1"
    if any(o is not None and o < 1.0 for o in occupancies):
        return "partial occupancy"
    coordinates = [_number(word) for axis in "xyz" for word in values.get(f"_atom_site_fract_{axis}", [])]
    if any(x is None or x != x or abs(x) == float("inf") for x in coordinates):
        return "non-finite numbers"
    if _flat_cell(values):
        return "zero cell"
    for word in values.get("_atom_site_type_symbol", []):
        letters = re.match(r"[A-Za-z]*", str(word))
        symbol = letters.group().capitalize()[:2] if letters else ""
        if symbol not in atomic_numbers and symbol[:1] not in atomic_numbers and symbol != "D":
            return f"unknown element {str(word)[:12]!r}"
    return ""


def _flat_cell(values: dict[str, Any]) -> bool:
    """Tell whether the lengths and angles of a CIF span no volume."""
    lengths = [_number(values.get(f"_cell_length_{axis}")) for axis in "abc"]
    angles = [_number(values.get(f"_cell_angle_{axis}")) for axis in ("alpha", "beta", "gamma")]
    known = [x for x in (*lengths, *angles) if x is not None]
    if len(known) < 6:
        return False
    a, b, c = (math.cos(math.radians(x)) for x in known[3:])
    squared = 1 + 2 * a * b * c - a * a - b * b - c * c
    return min(known[:3]) <= 0 or math.prod(known[:3]) * math.sqrt(max(squared, 0.0)) < MIN_VOLUME


def _spaced(crystal: Crystal) -> str:
    return " ".join(re.findall(r"[A-Z][a-z]?\d*", formula_of(crystal.numbers)))


def _xyz(rotation: list[list[int]], translation: list[float]) -> str:
    """Write an operation as ``-y,x-y,z+1/3``; translations are fractions of 24, as in the tables."""
    words = []
    for row, shift in zip(rotation, translation, strict=True):
        # In a crystallographic setting an operation's matrix holds -1, 0 and 1 only.
        text = "".join(f"{'-' if k < 0 else '+'}{axis}" for k, axis in zip(row, "xyz", strict=True) if k)
        part = round(shift * 24) % 24
        if part:
            divisor = next(d for d in (2, 3, 4, 6, 8, 12, 24) if part * d % 24 == 0)
            text += f"+{part * divisor // 24}/{divisor}"
        words.append(text.removeprefix("+"))
    return ",".join(words)


def _number(word: object) -> float | None:
    """Read a CIF number, whose uncertainty may stand behind it in brackets."""
    try:
        return float(str(word).split("(")[0])
    except ValueError:
        return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:100]
