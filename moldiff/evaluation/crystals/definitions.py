"""The definition of every metric of crystals; see ``evaluation.definitions``."""

from __future__ import annotations

from moldiff.evaluation.definition import Definition

_CDVAE = "Xie et al., CDVAE, ICLR 2022"
_DIFFCSP = "Jiao et al., DiffCSP, NeurIPS 2023"
_MATCHER = "Ong et al., Comput. Mater. Sci. 68, 314 (2013), pymatgen"
_SMACT = "Davies et al., J. Open Source Softw. 4, 1361 (2019)"
_GLITTER = "Martirossyan et al., All that structure matches does not glitter, arXiv:2509.12178"
_HULL = "Ong et al., Chem. Mater. 20, 1798 (2008)"
_MATTERGEN = "Zeni et al., MatterGen, Nature 639, 624 (2025)"
_SUBSET = "of a random subset of the structurally valid samples"
_JUDGE = "by the named calculator, with the hull file given"

CRYSTALS: tuple[Definition, ...] = (
    Definition(
        "structure_validity", "structurally valid", "%", "higher",
        "Share of all n samples that have finite numbers, no two atoms closer than 0.5 Å (images of the same atom included) and "
        "a cell of at least 0.1 Å^3; a sample that can't be read is invalid.",
        _CDVAE,
    ),
    Definition(
        "composition_validity", "compositionally valid", "%", "",
        "Share of all n samples whose reduced composition SMACT accepts: oxidation states of its set smact14 balance and pass "
        "the Pauling test; alloys and single elements pass. Of real crystals about 90 % do, so more is not better.",
        _SMACT + "; " + _CDVAE,
    ),
    Definition(
        "crystal_validity", "valid (both)", "%", "",
        "Share of all n samples that are structurally and compositionally valid.", _CDVAE,
    ),
    Definition(
        "crystal_uniqueness", "unique of valid", "%", "higher",
        "Number of different structures over that of structurally valid samples; the same where StructureMatcher with pymatgen's "
        "own tolerances (ltol 0.2, stol 0.3, angle_tol 5) matches a sample with the first one of a cluster. It falls with n.",
        _MATCHER,
    ),
    Definition(
        "crystal_novelty", "novel of unique", "%", "",
        "Share of the different structures that match none of the reference's training structures of the same reduced "
        "composition, by StructureMatcher with the same tolerances.",
        _MATCHER,
    ),
    Definition(
        "unique_novel", "valid, unique and novel", "%", "higher",
        "Number of different structurally valid and novel structures, over all n.",
        _MATCHER,
    ),
    Definition(
        "crystal_novelty_coarse", "novel of unique, coarse", "%", "",
        "Share of the different structures for which the reference has no hash of the same reduced composition and prototype "
        "label (space group and sizes of the orbits of each element, at 0.3, 0.1 and 0.01 Å). Noise hides symmetry, so it is "
        "an upper bound of the novelty by StructureMatcher for samples that are not relaxed.",
    ),
    Definition(
        "unique_novel_coarse", "valid, unique and novel, coarse", "%", "higher",
        "Number of different structurally valid structures that are new by the coarse look-up, over all n.",
    ),
    Definition(
        "density_wasserstein", "density, W1", "g/cm³", "lower",
        "Wasserstein-1 distance of the densities of the structurally valid samples from the reference's; bins of 0.01 g/cm³.",
        _CDVAE,
    ),
    Definition(
        "n_elements_wasserstein", "number of elements, W1", "", "lower",
        "Wasserstein-1 distance of the number of different elements in the structurally valid samples from the reference's.",
        _CDVAE,
    ),
    Definition(
        "volume_wasserstein", "volume per atom, W1", "Å³", "lower",
        "Wasserstein-1 distance of the volumes per atom of the structurally valid samples; bins of 0.05 Å³.",
    ),
    Definition(
        "space_group_tv", "space groups, TV", "", "lower",
        "Total variation distance between the frequencies of space groups (spglib, 0.1 Å) in the structurally valid samples "
        "and in the reference.",
        "Togo, Shinohara and Tanaka, Sci. Technol. Adv. Mater. Meth. 4, 2384822 (2024)",
    ),
    Definition(
        "match_rate", "match rate", "%", "higher",
        "Share of the true structures that the first prediction for their composition matches (StructureMatcher, stol 0.5, ltol "
        "0.3, angle_tol 10), valid or not; match_rate/at_K counts those that any of the first K predictions matches.",
        _DIFFCSP,
    ),
    Definition(
        "match_rmse", "RMSE of matches", "", "lower",
        "Mean over the matched structures of the RMS distance of the atoms, in units of the cube root of the volume per atom; at "
        "K of the closest prediction.",
        _DIFFCSP,
    ),
    Definition(
        "match_rate_valid", "match rate, valid only", "%", "higher",
        "The same share of all true structures, where a match counts only when prediction and truth are structurally and (with "
        "SMACT) compositionally valid.",
        _CDVAE,
    ),
    Definition(
        "match_rmse_valid", "RMSE of valid matches", "", "lower",
        "As match_rmse, over the matches of match_rate_valid.", _CDVAE,
    ),
    Definition(
        "metre", "METRe", "%", "higher",
        "Share of the true structures that the first prediction for any of the requests with the same reduced composition "
        "matches: a polymorph that was predicted for its sister counts.",
        _GLITTER,
    ),
    Definition(
        "crmse", "cRMSE", "", "lower",
        "Mean over all true structures of the RMS distance of the closest of those predictions, 0.5 (the tolerance) where none "
        "matches.",
        _GLITTER,
    ),
    Definition(
        "e_above_hull", "above hull, median (relaxed)", "eV/atom", "lower",
        f"Median energy above the convex hull {_SUBSET}, relaxed {_JUDGE}; one that can't be computed counts as infinitely high.",
        _HULL,
    ),
    Definition(
        "e_above_hull_raw", "above hull, median (as generated)", "eV/atom", "lower",
        "The same without relaxing.", _HULL,
    ),
    Definition(
        "stable", "stable (relaxed)", "%", "higher",
        f"Share {_SUBSET} whose relaxed energy lies on or below the hull {_JUDGE}.", _HULL,
    ),
    Definition(
        "metastable", "within 0.1 eV/atom of the hull (relaxed)", "%", "higher",
        "Share of the same subset whose relaxed energy lies at most 0.1 eV/atom above the hull.", _HULL,
    ),
    Definition(
        "stable_unique_novel", "stable, unique, novel (relaxed)", "%", "higher",
        "Share of all n samples, estimated from the subset, that are structurally valid, on or below the hull when relaxed, "
        "unique and novel (both judged as generated; the notes say whether novelty is exact or coarse).",
        _MATTERGEN,
    ),
    Definition(
        "metastable_unique_novel", "within 0.1 eV, unique, novel (relaxed)", "%", "higher",
        "The same with at most 0.1 eV/atom above the hull.", _MATTERGEN,
    ),
    Definition(
        "stable_unique_novel_raw", "stable, unique, novel (as generated)", "%", "higher",
        "As stable_unique_novel, with the energy of the structure as generated.", _MATTERGEN,
    ),
    Definition(
        "metastable_unique_novel_raw", "within 0.1 eV, unique, novel (as generated)", "%", "higher",
        "The same with the energy of the structure as generated.", _MATTERGEN,
    ),
    Definition(
        "rmsd_to_relaxed", "RMSD to relaxed, median", "Å", "lower",
        f"Median root mean square displacement of the atoms {_SUBSET} in the relaxation, by minimum images in the mean of the "
        "two cells and without their common drift.",
        _MATTERGEN,
    ),
    Definition(
        "volume_change", "change of volume, mean", "%", "",
        "Mean relative change of the volume in that relaxation; positive where the samples are too dense.",
    ),
    Definition(
        "relaxation_energy", "energy of relaxation, median", "eV/atom", "lower",
        "Median energy that relaxing takes out of the same subset; one that can't be computed counts as infinitely strained.",
    ),
    Definition(
        "relaxation_failed", "relaxation failed", "%", "lower",
        "Share of that subset that was screened out, did not converge, made the calculator fail or took longer than its limit.",
    ),
)  # fmt: skip
