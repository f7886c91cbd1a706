"""Verdicts on molecules that need no reference and no energy: stability, validity, connectedness, radicals; and their rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.bonds import Bonds, bonds_of, perceive_bonds
from moldiff.chem.edm import edm_bond_orders, edm_stable_atoms
from moldiff.chem.molecules import build_molecule, canonical_smiles, formula, n_fragments, n_radicals, raw_molecule
from moldiff.chem.valence import stable_atoms
from moldiff.data.entry import Entry
from moldiff.evaluation.parallel import Progress, map_items

if TYPE_CHECKING:
    from rdkit.Chem import Mol

    from moldiff.evaluation.reference import Reference

BondSource = Literal["given", "perceived", "none"]


@dataclass(frozen=True)
class Verdict:
    """What was found of one molecule.

    ``valid``: RDKit sanitises it; ``reason`` says why not. ``bonds`` tells where its bonds are from. ``stable_atoms`` counts
    atoms whose valence fits element and charge, ``edm_stable_atoms`` those that EDM's look-up accepts (None without
    coordinates). ``unique`` marks the first valid sample of its SMILES, ``novel`` a valid one whose SMILES is not in the
    reference (None when there is none).
    """

    name: str
    n_atoms: int = 0
    formula: str = ""
    smiles: str = ""
    valid: bool = False
    reason: str = ""
    connected: bool = False
    n_fragments: int = 0
    charge: int = 0
    finite: bool = False
    bonds: BondSource = "none"
    stable_atoms: int = 0
    molecule_stable: bool = False
    edm_stable_atoms: int | None = None
    edm_molecule_stable: bool | None = None
    edm_valid: bool | None = None
    radical: bool = False
    unique: bool = False
    novel: bool | None = None

    @property
    def atom_stability(self) -> float:
        """Share of atoms that are stable; 0 where there are no atoms."""
        return self.stable_atoms / self.n_atoms if self.n_atoms else 0.0

    def row(self) -> dict[str, Any]:
        """Return the verdict as one row of ``per_sample.csv``."""
        return {**self.__dict__, "atom_stability": self.atom_stability, "valid_connected": self.valid and self.connected}


@dataclass(frozen=True)
class Judged:
    """A verdict with what it rests on: ``bonds`` given or perceived, the sanitised RDKit ``mol``; None where there is none."""

    verdict: Verdict
    bonds: Bonds | None = None
    mol: Mol | None = None


@dataclass(frozen=True)
class BasicResult:
    """The verdicts in the order of the samples, and the rates of the whole set by name (see docs/evaluation.md)."""

    verdicts: list[Verdict]
    metrics: dict[str, float] = field(default_factory=dict)


def evaluate_basic(
    entries: Sequence[Entry],
    reference: Reference | None = None,
    *,
    n_processes: int | None = None,
    progress: Progress | None = None,
) -> BasicResult:
    """Judge every molecule and compute the rates; samples that failed stay in every denominator of all n.

    ``reference`` adds novelty. Runs in this process for small sets, otherwise over ``n_processes`` (default: all cores).
    """
    verdicts = map_items(judge, list(entries), crashed, n_processes=n_processes, progress=progress)
    verdicts = mark_repeats(verdicts, reference)
    return BasicResult(verdicts, rates(verdicts))


def entry_of(
    index: int,
    numbers: Any,
    positions: Any,
    bond_types: Any | None = None,
    charges: Any | None = None,
    *,
    name: str | None = None,
    problem: str = "",
) -> Entry:
    """Make the entry of one sample from arrays.

    ``numbers`` [N], ``positions`` [N, 3] (Å), ``bond_types`` [N, N] kekulised orders 0..3 and ``charges`` [N]; bonds are
    perceived later where ``bond_types`` is None. ``problem`` marks a sample that failed before it could be judged.
    """
    z = np.asarray(numbers, dtype=np.int64)
    bonds = None
    if bond_types is not None:
        orders = np.triu(np.asarray(bond_types), k=1)
        index_pairs = np.argwhere(orders)
        q = np.zeros(len(z)) if charges is None else np.asarray(charges)
        types = orders[index_pairs[:, 0], index_pairs[:, 1]].astype(np.int8)
        bonds = Bonds(index_pairs.astype(np.int16), types, q.astype(np.int8))
    known = None if positions is None else np.asarray(positions, dtype=np.float64)
    name = f"sample_{index}" if name is None else name
    return Entry(row=index, name=name, id=index, numbers=z, positions=known, bonds=bonds, problem=problem)


def judge(entry: Entry) -> Verdict:
    """Judge one molecule by itself; never raises for a bad one.

    Bonds that are not given are perceived for the entry's total charge, and 0 where that is unknown: a generated molecule that
    only works as an ion is a failure, not an ion.
    """
    return judged(entry).verdict


def judged(entry: Entry) -> Judged:
    """Judge one molecule as ``judge`` does, and keep its bonds and its RDKit molecule."""
    if entry.problem:
        return Judged(crashed(entry, entry.problem))
    if entry.numbers is None:
        return _judge_smiles(entry)
    z = np.asarray(entry.numbers, dtype=np.int64)
    verdict = Verdict(entry.name, n_atoms=len(z), bonds="none" if entry.bonds is None else "given")
    if len(z) == 0:
        return Judged(replace(verdict, reason="no atoms"))
    if z.min() < 1 or z.max() > 118:
        return Judged(replace(verdict, reason="unknown element"))
    verdict = replace(verdict, formula=formula(z))
    x = entry.positions
    if x is not None:
        if not np.isfinite(np.asarray(x)).all():
            nothing = replace(verdict, edm_stable_atoms=0, edm_molecule_stable=False, edm_valid=False)
            return Judged(replace(nothing, reason="non-finite coordinates"))
        edm = edm_stable_atoms(z, x)
        verdict = replace(
            verdict,
            edm_stable_atoms=int(edm.sum()),
            edm_molecule_stable=bool(edm.all()),
            edm_valid=_edm_valid(z, x),
        )
    verdict = replace(verdict, finite=True)
    bonds = entry.bonds
    if bonds is None:
        if x is None:
            return Judged(replace(verdict, reason="neither bonds nor coordinates"))
        found = perceive_bonds(z, x, total_charge=entry.total_charge or 0)
        if found.bonds is None:
            return Judged(replace(verdict, reason=found.reason, radical=found.reason == "radical"))
        bonds = found.bonds
        verdict = replace(verdict, bonds="perceived")
    return _judge_graph(verdict, z, x, bonds)


def mark_repeats(verdicts: Sequence[Verdict], reference: Reference | None = None) -> list[Verdict]:
    """Set ``unique`` on the first valid sample of each canonical SMILES, and ``novel`` where there is a reference."""
    seen: set[str] = set()
    known = reference.contains([v.smiles for v in verdicts]) if reference is not None else None
    marked = []
    for i, verdict in enumerate(verdicts):
        first = verdict.valid and verdict.smiles not in seen
        seen.update([verdict.smiles] if verdict.valid else [])
        novel = None if known is None else bool(verdict.valid and not known[i])
        marked.append(replace(verdict, unique=first, novel=novel))
    return marked


def fractions(verdicts: Sequence[Verdict]) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return numerator and denominator of every rate as one value a sample, so that a rate is their ratio of sums.

    Rates that need coordinates or a reference are absent where no sample has them.
    """

    def column(name: str) -> NDArray[np.float64]:
        return np.array([float(getattr(v, name) or 0) for v in verdicts])

    one = np.ones(len(verdicts))
    valid, unique, atoms = column("valid"), column("unique"), column("n_atoms")
    table = {
        "atom_stability": (column("stable_atoms"), atoms),
        "molecule_stability": (column("molecule_stable"), one),
        "validity": (valid, one),
        "valid_connected": (valid * column("connected"), one),
        "no_radicals": (valid * (1 - column("radical")), one),
        "uniqueness": (unique, valid),
    }
    if any(v.novel is not None for v in verdicts):
        novel = column("novel")
        table["novelty"] = (unique * novel, unique)
        table["vun"] = (unique * novel, one)
    if any(v.edm_molecule_stable is not None for v in verdicts):
        table["edm_atom_stability"] = (column("edm_stable_atoms"), atoms)
        table["edm_molecule_stability"] = (column("edm_molecule_stable"), one)
        table["edm_validity"] = (column("edm_valid"), one)
    return table


def rates(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Compute the rates of a set by name; NaN where a denominator is zero (uniqueness of no valid sample)."""
    sums = {name: (float(top.sum()), float(bottom.sum())) for name, (top, bottom) in fractions(verdicts).items()}
    return {name: top / bottom if bottom else float("nan") for name, (top, bottom) in sums.items()}


def failures(verdicts: Sequence[Verdict]) -> Mapping[str, int]:
    """Count the invalid samples by reason, the commonest first."""
    counts: dict[str, int] = {}
    for verdict in verdicts:
        if not verdict.valid:
            counts[verdict.reason] = counts.get(verdict.reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _judge_graph(verdict: Verdict, z: NDArray[np.int64], x: NDArray[Any] | None, bonds: Bonds) -> Judged:
    orders = bonds.matrix()
    stable = stable_atoms(z, orders, bonds.charges)
    verdict = replace(
        verdict,
        stable_atoms=int(stable.sum()),
        molecule_stable=bool(stable.all()),
        charge=int(bonds.charges.sum(dtype=np.int64)),
    )
    built = build_molecule(z, x, orders, bonds.charges)
    if built.raw is not None:
        verdict = replace(verdict, n_fragments=n_fragments(built.raw))
    if built.mol is None:
        return Judged(replace(verdict, reason=built.reason), bonds)
    verdict = replace(
        verdict,
        valid=True,
        smiles=canonical_smiles(built.mol),
        connected=verdict.n_fragments == 1,
        radical=n_radicals(built.mol) > 0,
    )
    return Judged(verdict, bonds, built.mol)


def _judge_smiles(entry: Entry) -> Judged:
    from rdkit import Chem, rdBase

    if entry.smiles is None:
        return Judged(Verdict(entry.name, reason="neither atoms nor SMILES"))
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(entry.smiles)
        if mol is None:
            return Judged(Verdict(entry.name, reason="SMILES does not parse"))
        mol = Chem.AddHs(mol)
        if mol.GetNumAtoms() == 0:
            return Judged(Verdict(entry.name, reason="no atoms"))
        bonds = bonds_of(mol)
    z = np.array([a.GetAtomicNum() for a in mol.GetAtoms()])
    if z.min() < 1:
        return Judged(Verdict(entry.name, n_atoms=len(z), reason="unknown element"))
    verdict = Verdict(entry.name, n_atoms=len(z), formula=formula(z), finite=True, bonds="given")
    return _judge_graph(verdict, z, None, bonds)


def _edm_valid(z: NDArray[np.int64], x: NDArray[Any]) -> bool:
    """Tell whether RDKit sanitises the graph of EDM's look-up, which may lack hydrogens: EDM lets RDKit imply them."""
    from rdkit import Chem, rdBase

    mol = raw_molecule(z, None, edm_bond_orders(z, x))
    for atom in mol.GetAtoms():
        atom.SetNoImplicit(False)
    with rdBase.BlockLogs():
        try:
            Chem.SanitizeMol(mol)
        except (Chem.MolSanitizeException, RuntimeError):
            return False
    return True


def crashed(entry: Entry, reason: str) -> Verdict:
    """Return the verdict on a sample that could not be judged."""
    return Verdict(entry.name, n_atoms=0 if entry.numbers is None else len(entry.numbers), reason=reason)
