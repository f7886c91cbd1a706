"""The definition of every metric: what the table, ``metrics.json``, the report and docs/evaluation.md say of it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from moldiff.evaluation.conditional import UNITS
from moldiff.evaluation.crystals.definitions import CRYSTALS
from moldiff.evaluation.definition import Definition

_RDKIT = "RDKit (rdkit.org)"
_EDM = "Hoogeboom et al., Equivariant Diffusion for Molecule Generation in 3D, ICML 2022"
_MIDI = "Vignac et al., MiDi, ECML 2023"
_GFN2 = "Bannwarth, Ehlert and Grimme, J. Chem. Theory Comput. 15, 1652 (2019); tblite"

MOLECULES: tuple[Definition, ...] = (
    Definition(
        "validity", "valid", "%", "higher",
        "Share of all n samples that RDKit sanitises; a sample that can't be read, has no atoms or non-finite coordinates, "
        "or whose bonds can't be perceived for its total charge (0 where the file gives none) is invalid.",
        _RDKIT,
    ),
    Definition(
        "valid_connected", "valid and connected", "%", "higher",
        "Share of all n samples that are valid and whose bond graph is one piece.",
    ),
    Definition(
        "molecule_stability", "molecule stability", "%", "higher",
        "Share of all n samples in which every atom has a valence (sum of kekulised bond orders) that fits its element and "
        "formal charge: neutral C 4, N 3, O 2, H 1; N+ 4, O- 1 and so on; radicals are unstable.",
        "the table of moldiff.chem.valence; stability as a rate follows " + _EDM,
    ),
    Definition(
        "atom_stability", "atom stability", "%", "higher",
        "Share of the atoms of all samples whose valence fits; the atoms of a sample without finite coordinates, or whose "
        "bonds can't be perceived, count as unstable.",
        "as molecule_stability",
    ),
    Definition(
        "edm_molecule_stability", "molecule stability, EDM look-up", "%", "higher",
        "Share of all n samples in which every atom has an allowed number of bonds when bonds and orders are looked up from "
        "the distances alone, by EDM's tables and margins (10, 5 and 3 pm); given bonds and charges play no part.",
        _EDM,
    ),
    Definition(
        "edm_atom_stability", "atom stability, EDM look-up", "%", "higher",
        "Share of the atoms of all samples that are stable by the same look-up.",
        _EDM,
    ),
    Definition(
        "edm_validity", "valid, EDM look-up", "%", "higher",
        "Share of all n samples whose looked-up bond graph RDKit sanitises; missing hydrogens are implied, as EDM does.",
        _EDM,
    ),
    Definition(
        "no_radicals", "valid, no radical", "%", "higher",
        "Share of all n samples that are valid and have no unpaired electron; hydrogens are never implied.",
        _RDKIT,
    ),
    Definition(
        "uniqueness", "unique of valid", "%", "higher",
        "Number of different canonical SMILES (no stereo marks, hydrogens implied) over that of valid samples; it falls with n.",
        _EDM,
    ),
    Definition(
        "novelty", "novel of unique", "%", "",
        "Share of the different valid SMILES that the reference's training molecules don't have, looked up by 64-bit hashes "
        "of canonical SMILES made from their own bonds and from bonds perceived in their coordinates.",
        _EDM,
    ),
    Definition(
        "vun", "valid, unique and novel", "%", "higher",
        "Number of different valid SMILES that are novel, over all n: validity x uniqueness x novelty.",
    ),
    Definition(
        "bond_length_wasserstein", "bond lengths, W1", "Å", "lower",
        "Wasserstein-1 distance of the bond lengths from the reference's, for each pair of elements and bond order "
        "(kekulised), averaged with the reference's frequencies over the types that the valid samples have; bins of 0.001 "
        "Å.",
        _MIDI,
    ),
    Definition(
        "angle_wasserstein", "angles, W1", "°", "lower",
        "The same for bond angles by the elements of their three atoms; bins of 0.1 degrees.",
        _MIDI,
    ),
    Definition(
        "torsion_wasserstein", "torsions, circular W1", "°", "lower",
        "The same for signed torsions of four heavy atoms by their central bond, with distances taken on the circle; bins "
        "of 1 degree; triple bonds and angles beyond 170 degrees are left out.",
        "Delon, Salomon and Sobolevski, SIAM J. Appl. Math. 70, 2239 (2010)",
    ),
    Definition(
        "bond_type_tv", "bond types, TV", "", "lower",
        "Total variation distance between the frequencies of bond types (elements, order) in valid samples and in the reference.",
        _MIDI,
    ),
    Definition(
        "element_tv", "elements, TV", "", "lower",
        "Total variation distance between the frequencies of elements in all samples with readable atoms and in the reference.",
        _MIDI,
    ),
    Definition(
        "size_tv", "sizes, TV", "", "lower",
        "Total variation distance between the distributions of the number of atoms, over all samples that have readable atoms.",
    ),
    Definition(
        "ring_size_tv", "ring sizes, TV", "", "lower",
        "Total variation distance between the frequencies of ring sizes (smallest set of smallest rings; a molecule without "
        "rings counts once as 0) in valid samples and in the reference.",
        _RDKIT,
    ),
    Definition(
        "functional_group_tv", "functional groups, TV", "", "lower",
        "Total variation distance between the frequencies of functional groups (the SMARTS of "
        "moldiff.evaluation.molecules.groups, each counted once a molecule) in valid samples and in the reference.",
    ),
    Definition(
        "diversity", "diversity", "", "",
        "Mean Tanimoto distance over all pairs of valid samples (Morgan fingerprints, radius 2, 2,048 bits; 1,000 random "
        "ones where there are more).",
        "Benhenda, arXiv:1708.08227 (2017); Polykovskiy et al., Front. Pharmacol. 11, 565644 (2020)",
    ),
    Definition(
        "mmff_strain", "MMFF strain, median", "kcal/mol", "lower",
        "Median energy that a local minimisation in MMFF94 takes out of a random subset of the valid and connected samples; "
        "those that MMFF has no parameters for are left out.",
        "Halgren, J. Comput. Chem. 17, 490 (1996); RDKit",
    ),
    Definition(
        "posebusters", "PoseBusters, all tests", "%", "higher",
        "Share of a random subset of the valid and connected samples that pass every test of PoseBusters for single "
        "molecules (its version and whether its energy check is on are named beside the table); a test that could not be "
        "run is failed. Rates of the single tests are named posebusters/TEST.",
        "Buttenschoen, Morris and Deane, Chem. Sci. 15, 3130 (2024)",
    ),
    Definition(
        "xtb_relaxation_energy", "GFN2 relaxation, median", "kcal/mol", "lower",
        "Median energy that relaxing with GFN2-xTB (forces below 0.01 eV/Å) takes out of a random subset of the valid and "
        "connected samples; one that can't be computed counts as infinitely strained.",
        _GFN2,
    ),
    Definition(
        "xtb_relaxation_energy_mean", "GFN2 relaxation, mean", "kcal/mol", "lower",
        "Mean of the same over the samples that could be computed.", _GFN2,
    ),
    Definition(
        "xtb_rmsd", "RMSD to relaxed, median", "Å", "lower",
        "Median root mean square displacement of all atoms in that relaxation after superposition (Kabsch); equivalent "
        "atoms are not permuted.",
        "Kabsch, Acta Cryst. A32, 922 (1976)",
    ),
    Definition("xtb_rmsd_mean", "RMSD to relaxed, mean", "Å", "lower", "Mean of the same.", "as xtb_rmsd"),
    Definition(
        "xtb_bond_change", "bonds change by", "Å", "lower",
        "Mean over samples of the mean absolute change of the bond lengths in that relaxation.", _GFN2,
    ),
    Definition(
        "xtb_angle_change", "angles change by", "°", "lower",
        "Mean over samples of the mean absolute change of the bond angles in that relaxation.", _GFN2,
    ),
    Definition(
        "xtb_torsion_change", "torsions change by", "°", "lower",
        "Mean over samples of the mean absolute change, on the circle, of the torsions of heavy atoms in that relaxation.", _GFN2,
    ),
    Definition(
        "xtb_failed", "GFN2 failed", "%", "lower",
        "Share of that subset for which the calculation did not converge, crashed or took longer than its limit.", _GFN2,
    ),
)  # fmt: skip
PROPERTIES: tuple[Definition, ...] = (
    Definition(
        "property_mae", "asked property, MAE", "", "lower",
        "Mean absolute difference between what was asked of a sample and what a calculation gives: for molecules GFN2-xTB's "
        "HOMO, LUMO, gap and dipole of the valid and connected samples as they came; for crystals the density, and the energy "
        "above the hull of the relaxed subset. property_mae/NAME is that of one property; the data column is that of real "
        "held-out systems against their own known values.",
        "as a task: " + _EDM,
    ),
    Definition(
        "property_mae_regressor", "asked property, MAE by a regressor", "", "lower",
        "The same with the prediction of a trained network in the place of the calculation, named in the notes.", _EDM,
    ),
    Definition(
        "property_mae_random", "asked property, random real system", "", "",
        "Mean absolute difference between what was asked of the samples and the values of random real systems: what a model "
        "reaches that does not listen (for the data column: two random real systems).", _EDM,
    ),
    Definition(
        "property_mae_size", "asked property, real system of its size", "", "",
        "The same with random real systems that have the sample's number of atoms: what a model reaches that gets only the size "
        "right.", _EDM,
    ),
    Definition(
        "property_failed", "asked property not computed", "%", "lower",
        "Share of the samples of which a property was asked for which the calculation gives no value.",
    ),
)  # fmt: skip
DEFINITIONS: dict[str, Definition] = {d.name: d for d in (*MOLECULES, *CRYSTALS, *PROPERTIES)}


def definition(name: str) -> Definition:
    """Return the definition of a metric; a part (``posebusters/TEST``, ``match_rate/at_20``) inherits that of the whole."""
    if name in DEFINITIONS:
        return DEFINITIONS[name]
    whole, part = name.split("/", 1)
    base = DEFINITIONS[whole]
    if base in PROPERTIES:
        unit = base.unit or UNITS.get(part, "")
        return Definition(name, base.title.replace("property", part), unit, base.better, base.text, base.source)
    if part.startswith("at_"):
        n = part.removeprefix("at_")
        text = f"As {whole}, with the best of the first {n} predictions."
        return Definition(name, f"{base.title} at {n}", base.unit, base.better, text, base.source)
    return Definition(name, part.replace("_", " "), base.unit, base.better, f"One test of {base.name}.", base.source)


def order(names: Iterable[str]) -> list[str]:
    """Sort names of metrics as the table shows them: by their definitions, parts behind the whole, numbers as numbers."""
    found = list(names)
    places = {name: i for i, name in enumerate(DEFINITIONS)}
    if any(name == d.name for name in found for d in CRYSTALS):
        # Distances that both kinds have stand with the other distances of crystals.
        places |= dict.fromkeys(("element_tv", "size_tv"), places["space_group_tv"])

    def place(name: str) -> tuple[int, list[tuple[int, str]]]:
        words = re.split(r"(\d+)", name)
        return places.get(name.split("/", 1)[0], len(places)), [(int(w) if w.isdecimal() else -1, w) for w in words]

    return sorted(found, key=place)
