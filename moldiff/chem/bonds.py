"""Bonds and formal charges of a molecule whose atoms and positions are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from rdkit.Chem import Mol

#: Two nuclei closer than this (Å) are an error of the file or of a model, not chemistry: H2, the shortest bond, has 0.74.
OVERLAP_DISTANCE = 0.5
#: Bound on RDKit's search over bond orders; without one some inputs never return.
MAX_ITERATIONS = 1000
#: Connectivity rules, tried in this order: (useVdw, covFactor) of RDKit's DetermineConnectivity.
CONNECTIVITY_RULES: tuple[tuple[bool, float], ...] = ((False, 1.3), (True, 1.3), (True, 1.2), (True, 1.15))


@dataclass(frozen=True)
class Bonds:
    """The bonds and charges of one molecule: ``index`` int16 [B, 2] with i < j, kekulised ``types`` int8 [B] in 1..3,
    formal ``charges`` int8 [N]; ``matches_smiles`` tells whether they are those of the SMILES that was given."""

    index: NDArray[np.int16]
    types: NDArray[np.int8]
    charges: NDArray[np.int8]
    matches_smiles: bool = False

    def matrix(self) -> NDArray[np.int8]:
        """Return the symmetric matrix [N, N] of bond orders 0..3."""
        n = len(self.charges)
        dense = np.zeros((n, n), dtype=np.int8)
        dense[self.index[:, 0], self.index[:, 1]] = self.types
        dense[self.index[:, 1], self.index[:, 0]] = self.types
        return dense


@dataclass(frozen=True)
class Perception:
    """The outcome of ``perceive_bonds``: either ``bonds``, or None and the ``reason`` in a few words."""

    bonds: Bonds | None
    reason: str = ""


def check_geometry(numbers: ArrayLike, positions: ArrayLike) -> str:
    """Return why atoms and positions can't be a molecule, or an empty string.

    Atomic numbers [N] must lie in 1..118 and positions [N, 3] (Å) be finite and at least ``OVERLAP_DISTANCE`` apart.
    """
    z = np.asarray(numbers)
    x = np.asarray(positions, dtype=np.float64)
    if z.ndim != 1 or x.shape != (len(z), 3):
        return f"positions have shape {x.shape} for {z.size} atoms"
    if len(z) == 0:
        return "no atoms"
    if z.min() < 1 or z.max() > 118:
        return "unknown element"
    if not np.isfinite(x).all():
        return "non-finite coordinates"
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    distances[np.diag_indices(len(z))] = np.inf
    if len(z) > 1 and distances.min() < OVERLAP_DISTANCE:
        return "overlapping atoms"
    return ""


def perceive_bonds(
    numbers: ArrayLike,
    positions: ArrayLike,
    *,
    total_charge: int | None = 0,
    smiles: str | None = None,
    max_iterations: int = MAX_ITERATIONS,
) -> Perception:
    """Find bonds and formal charges from atomic numbers [N] and positions [N, 3] (Å).

    Each connectivity rule is tried in turn. Where ``smiles`` is given and one of them gives its graph, the orders and charges
    of the SMILES are taken; otherwise the first rule whose bond orders RDKit can assign without radicals wins.
    ``total_charge`` None stands for a charge that is not known: 0, then +1, then -1. Never raises for bad molecules.

    Source: Kim and Kim, Bull. Korean Chem. Soc. 36, 1769 (2015), as implemented in RDKit's DetermineBonds.
    """
    reason = check_geometry(numbers, positions)
    if reason:
        return Perception(None, reason)
    fresh = _skeletons(np.asarray(numbers), np.asarray(positions, dtype=np.float64))
    made: list[Mol] = []
    reference = _hydrogenated(smiles) if smiles is not None else None
    if reference is not None:
        for skeleton in _each(made, fresh):
            bonds = _orders_of(reference, skeleton)
            if bonds is not None:
                return Perception(bonds)
    for charge in (0, 1, -1) if total_charge is None else (total_charge,):
        for skeleton in _each(made, fresh):
            bonds, why = _assign_orders(skeleton, charge, max_iterations)
            if bonds is not None:
                return Perception(bonds)
            reason = reason or why
    return Perception(None, reason)


def bonds_of(mol: Mol, matches_smiles: bool = False) -> Bonds:
    """Read bonds and charges off a molecule with explicit hydrogens, kekulised on a copy.

    Raises RDKit's KekulizeException when aromatic flags have no Kekulé form.
    """
    from rdkit import Chem

    mol = Chem.Mol(mol)
    Chem.Kekulize(mol, clearAromaticFlags=True)
    rows = sorted((*sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())), round(b.GetBondTypeAsDouble())) for b in mol.GetBonds())
    table = np.array(rows, dtype=np.int16).reshape(-1, 3)
    charges = np.array([a.GetFormalCharge() for a in mol.GetAtoms()], dtype=np.int8)
    return Bonds(table[:, :2].copy(), table[:, 2].astype(np.int8), charges, matches_smiles)


def _skeletons(numbers: NDArray[Any], positions: NDArray[np.float64]) -> Iterator[Mol]:
    """Yield molecules with single bonds only, one for each rule that gives a new connectivity."""
    from rdkit import Chem
    from rdkit.Chem import rdDetermineBonds
    from rdkit.Geometry import Point3D

    bare = Chem.RWMol()
    conformer = Chem.Conformer(len(numbers))
    for i, (z, x) in enumerate(zip(numbers.tolist(), positions.tolist(), strict=True)):
        atom = Chem.Atom(int(z))
        atom.SetNoImplicit(True)
        bare.AddAtom(atom)
        conformer.SetAtomPosition(i, Point3D(*x))
    bare.AddConformer(conformer)
    seen: set[frozenset[tuple[int, int]]] = set()
    for use_vdw, factor in CONNECTIVITY_RULES:
        mol = Chem.Mol(bare)
        with _quiet():
            try:
                rdDetermineBonds.DetermineConnectivity(mol, useVdw=use_vdw, covFactor=factor)
            except (RuntimeError, ValueError):
                continue
        edges = frozenset((min(p), max(p)) for p in ((b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()))
        if edges not in seen:
            seen.add(edges)
            yield mol


def _each(made: list[Mol], fresh: Iterator[Mol]) -> Iterator[Mol]:
    """Yield the skeletons that were made before, then make more: nearly always the first one does."""
    yield from made
    for skeleton in fresh:
        made.append(skeleton)
        yield skeleton


def _assign_orders(skeleton: Mol, charge: int, max_iterations: int) -> tuple[Bonds | None, str]:
    from rdkit import Chem
    from rdkit.Chem import rdDetermineBonds

    mol = Chem.Mol(skeleton)
    with _quiet():
        try:
            rdDetermineBonds.DetermineBondOrders(mol, charge=charge, embedChiral=False, maxIterations=max_iterations)
            Chem.SanitizeMol(mol)
        except Chem.MolSanitizeException:
            return None, "perceived bonds do not sanitise"
        except (RuntimeError, ValueError) as error:
            # RDKit wraps its C++ exceptions; MaxFindBondOrdersItersExceeded names itself in the text only.
            text = f"{type(error).__name__} {error}"
            return None, "bond order search too long" if "Iter" in text else "no valid bond orders"
    if any(a.GetNumRadicalElectrons() for a in mol.GetAtoms()):
        return None, "radical"
    if sum(a.GetFormalCharge() for a in mol.GetAtoms()) != charge:
        return None, "no valid bond orders"
    return bonds_of(mol), ""


def _hydrogenated(smiles: str) -> Mol | None:
    """Parse a SMILES, add hydrogens and kekulise; None when it does not parse or is empty."""
    from rdkit import Chem

    with _quiet():
        mol = Chem.MolFromSmiles(smiles)
    if mol is None or mol.GetNumAtoms() == 0:
        return None
    mol = Chem.AddHs(mol)
    Chem.Kekulize(mol, clearAromaticFlags=True)
    return mol


def _orders_of(reference: Mol, skeleton: Mol) -> Bonds | None:
    """Carry orders and charges of ``reference`` over to the skeleton's atoms, or None when the graphs differ."""
    from rdkit import Chem

    if reference.GetNumAtoms() != skeleton.GetNumAtoms() or reference.GetNumBonds() != skeleton.GetNumBonds():
        return None
    query = Chem.RWMol()
    for atom in reference.GetAtoms():
        query.AddAtom(Chem.Atom(atom.GetAtomicNum()))
    for bond in reference.GetBonds():
        query.AddBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), Chem.BondType.SINGLE)
    # With equal numbers of atoms and bonds, a substructure match is an isomorphism.
    match: Sequence[int] = skeleton.GetSubstructMatch(query)
    if not match:
        return None
    table = sorted(
        (*sorted((match[b.GetBeginAtomIdx()], match[b.GetEndAtomIdx()])), round(b.GetBondTypeAsDouble()))
        for b in reference.GetBonds()
    )
    array = np.array(table, dtype=np.int16).reshape(-1, 3)
    charges = np.zeros(len(match), dtype=np.int8)
    charges[list(match)] = [a.GetFormalCharge() for a in reference.GetAtoms()]
    return Bonds(array[:, :2].copy(), array[:, 2].astype(np.int8), charges, matches_smiles=True)


def _quiet() -> Any:
    """Hold back RDKit's messages on stderr: a failure is reported as a reason instead."""
    from rdkit import rdBase

    return rdBase.BlockLogs()
