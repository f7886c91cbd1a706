"""What ``moldiff data label`` computes: GFN2-xTB, any ASE calculator, RDKit descriptors, any function of ASE atoms."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moldiff.data.label import Labeller, LabelReport, Progress, label_store
from moldiff.errors import BadRequest, MoldiffError, unknown

if TYPE_CHECKING:
    from ase import Atoms

GFN2_UNITS = {"energy": "eV", "homo": "eV", "lumo": "eV", "gap": "eV", "dipole": "D"}
_RDKIT = "rdkit:"


def label(
    data: str | Path,
    with_: str,
    *,
    columns: Sequence[str] = (),
    prefix: str = "",
    root: str | Path | None = None,
    n_workers: int | None = None,
    time_limit: float = 60.0,
    overwrite: bool = False,
    retry: bool = False,
    progress: Progress | bool = False,
) -> LabelReport:
    """Add columns to a prepared data set, given by name or folder.

    ``with_`` is ``gfn2-xtb``, ``counts`` (multiple bonds, bonds to hydrogen and atoms of the graph: ``chem.counts``), the short
    or import name of an ASE calculator (``chgnet``, ``module:Calculator``), the import name of a function of ASE atoms that
    returns a number or named numbers, or ``rdkit:NAME,NAME`` for RDKit descriptors. ``columns`` picks some of what it gives;
    ``prefix`` goes before their names; ``progress`` is True for a bar or a function of (done, all). The rest as in
    ``data.label.label_store``.
    """
    from moldiff.data.location import find_data
    from moldiff.data.store import read_meta

    folder = find_data(data, root)
    labeller = make_labeller(with_, str(read_meta(folder)["kind"]), columns, prefix)
    with _shown(progress, with_) as tell:
        return label_store(
            folder, labeller, n_workers=n_workers, time_limit=time_limit, overwrite=overwrite, retry=retry, progress=tell
        )


@contextmanager
def _shown(progress: Progress | bool, title: str) -> Iterator[Progress | None]:
    """The function that is told of progress: the caller's, one that moves a bar on the terminal, or none."""
    if not isinstance(progress, bool):
        yield progress
        return
    if not progress:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    words = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Bar(*words, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def make_labeller(with_: str, kind: str, columns: Sequence[str] = (), prefix: str = "") -> Labeller:
    """The labeller behind a name, for ``molecule`` or ``crystal``; raises ``BadRequest`` for a name or column that is none."""
    if with_ == "gfn2-xtb":
        units, compute, origin, quick = _gfn2(kind)
    elif with_ == "counts":
        units, compute, origin, quick = _counts(kind)
    elif with_.startswith(_RDKIT):
        units, compute, origin, quick = _rdkit(with_.removeprefix(_RDKIT), kind)
    else:
        units, compute, origin, quick = _imported(with_, kind)
    for name in columns:
        if units and name not in units:
            raise unknown(f"column of {with_}", name, units)
    chosen = list(columns) or list(units)
    if not chosen:
        raise BadRequest(f"{with_} is a function that may give any numbers: name what it returns with --columns")
    named = {prefix + name: units.get(name, "") for name in chosen}
    return Labeller(
        ".".join([with_.partition(":")[0] if with_.startswith(_RDKIT) else with_, *named]),
        named,
        partial(_renamed, compute, tuple(chosen), prefix),
        origin,
        quick,
    )


def _renamed(
    compute: Callable[[Mapping[str, Any]], Any], chosen: tuple[str, ...], prefix: str, system: Mapping[str, Any]
) -> dict[str, float]:
    """The chosen values under their columns' names; a single number is the value of a single column."""
    found = compute(system)
    if not isinstance(found, Mapping):
        if len(chosen) != 1:
            raise ValueError(f"one number instead of {', '.join(chosen)}")
        found = {chosen[0]: found}
    return {prefix + name: float(found[name]) for name in chosen if name in found}


Parts = tuple[dict[str, str], Callable[[Mapping[str, Any]], Any], str, bool]


def _gfn2(kind: str) -> Parts:
    from moldiff.evaluation.molecules.energy import require_tblite

    if kind != "molecule":
        raise BadRequest("gfn2-xtb labels molecules; for crystals give chgnet or another ASE calculator")
    require_tblite()
    return GFN2_UNITS, compute_gfn2, f"GFN2-xTB single point, tblite {_version('tblite')}", False


def _counts(kind: str) -> Parts:
    from moldiff.chem.counts import NAMES, graph_counts

    if kind != "molecule":
        raise BadRequest("counts are of the graphs of molecules, and this data set holds crystals")
    return dict.fromkeys(NAMES, ""), graph_counts, "counts of the stored graph", True


def _rdkit(names: str, kind: str) -> Parts:
    from rdkit.Chem import Descriptors

    if kind != "molecule":
        raise BadRequest("RDKit descriptors are of molecules, and this data set holds crystals")
    known = [name for name, _ in Descriptors.descList]
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise BadRequest("rdkit: takes names of descriptors, such as rdkit:MolLogP,TPSA")
    for name in wanted:
        if name not in known:
            raise _unknown_descriptor(name, known)
    return dict.fromkeys(wanted, ""), partial(compute_rdkit, tuple(wanted)), f"RDKit {_version('rdkit')}", True


def _imported(name: str, kind: str) -> Parts:
    from moldiff.evaluation.crystals.relax import CALCULATORS, find_calculator

    if os.getcwd() not in sys.path:  # a module of the user's own lies where the command was given
        sys.path.insert(0, os.getcwd())
    found = find_calculator(name)
    origin = f"{name} {_version(CALCULATORS[name][1]) if name in CALCULATORS else ''}".strip()
    if not isinstance(found, type) and name not in CALCULATORS and _takes_an_argument(found):
        return {}, partial(compute_function, name), origin, False
    short = re.sub(r"\W+", "_", name.rpartition(":")[2].rpartition(".")[2]).lower()
    units = {f"{short}_energy": "eV/atom" if kind == "crystal" else "eV", f"{short}_fmax": "eV/Å"}
    return units, partial(compute_ase, name, short), origin, False


def compute_gfn2(system: Mapping[str, Any]) -> dict[str, float]:
    """Energy, HOMO, LUMO, gap (eV) and dipole (D) of the geometry as it is; raises MoldiffError where there are none."""
    from moldiff.chem.bonds import check_geometry
    from moldiff.evaluation.molecules.energy import single_point

    z, x = system["atom_types"], system["positions"]
    reason = check_geometry(z, x)
    point: dict[str, Any] = {}
    if not reason:
        point, reason = single_point(z, x, int(np.sum(system["charges"])) if "charges" in system else 0)
    if reason:
        raise MoldiffError(reason)
    return {name: float(value) for name, value in point.items() if name in GFN2_UNITS}


def compute_rdkit(names: tuple[str, ...], system: Mapping[str, Any]) -> dict[str, float]:
    """RDKit descriptors of a molecule with its stored bonds; raises MoldiffError for one that RDKit refuses."""
    from rdkit import Chem
    from rdkit.Chem import Descriptors

    from moldiff.chem.molecules import build_molecule

    built = build_molecule(system["atom_types"], system["positions"], system["bond_types"], system["charges"])
    if built.mol is None:
        raise MoldiffError(built.reason)
    # Descriptors mean molecules with implied hydrogens; with explicit ones some of them count otherwise.
    mol = Chem.RemoveHs(built.mol)
    functions = dict(Descriptors.descList)
    return {name: float(functions[name](mol)) for name in names}


def compute_ase(name: str, short: str, system: Mapping[str, Any]) -> dict[str, float]:
    """Energy (eV; an atom's share for crystals) and largest force (eV/Å) by an ASE calculator; crystals are screened first."""
    atoms = to_atoms(system)
    if "lattice" in system:
        from moldiff.chem.crystals import Crystal
        from moldiff.evaluation.crystals.relax import screen

        reason = screen(Crystal.of(system["atom_types"], system["frac_coords"], system["lattice"]), name)
        if reason:
            raise MoldiffError(reason)
    atoms.calc = _calculator(name)
    share = len(atoms) if "lattice" in system else 1
    energy = float(atoms.get_potential_energy()) / share
    force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    return {f"{short}_energy": energy, f"{short}_fmax": force}


def compute_function(name: str, system: Mapping[str, Any]) -> Any:
    """What a function of one's own says of the ASE atoms: a number, or numbers by name."""
    from moldiff.evaluation.crystals.relax import find_calculator

    return find_calculator(name)(to_atoms(system))


def to_atoms(system: Mapping[str, Any]) -> Atoms:
    """A stored system as ASE atoms, with its cell where it has one and its formal charges."""
    from ase import Atoms

    z = np.asarray(system["atom_types"], dtype=int)
    if "lattice" in system:
        return Atoms(z, cell=system["lattice"], scaled_positions=system["frac_coords"], pbc=True)
    atoms = Atoms(z, np.asarray(system["positions"], dtype=float))
    if "charges" in system:
        atoms.set_initial_charges(np.asarray(system["charges"], dtype=float))
    return atoms


@lru_cache(maxsize=2)
def _calculator(name: str) -> Any:
    """Make a calculator, once a process: loading weights takes seconds."""
    from moldiff.evaluation.crystals.relax import find_calculator

    made = find_calculator(name)
    return made(use_device="cpu") if name == "chgnet" else made()


def _takes_an_argument(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _unknown_descriptor(name: str, known: Sequence[str]) -> BadRequest:
    """There are over two hundred: name the near ones only."""
    import difflib

    folded = {k.lower(): k for k in known}
    near = [folded[k] for k in difflib.get_close_matches(name.lower(), folded, n=3)]
    hint = f"; near it: {', '.join(near)}" if near else ""
    return BadRequest(f"RDKit has no descriptor {name!r}{hint} (names as in rdkit.Chem.Descriptors)")


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""
