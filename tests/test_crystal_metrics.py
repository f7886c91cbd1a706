"""Metrics of crystals on hand-made ones: one structure in two cells, a supercell, a mirror image, swapped species, clashes."""

from __future__ import annotations

import gzip
import math
import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator

from moldiff.chem.crystals import Crystal, from_ase, from_structure, niggli, to_structure
from moldiff.data.crystal_entry import CrystalEntry, to_crystal_system
from moldiff.data.store import Store, pack, write_store
from moldiff.errors import BadRequest, MoldiffError
from moldiff.evaluation.cache import ResultCache
from moldiff.evaluation.crystals import composition, csp
from moldiff.evaluation.crystals.baseline import SubstitutionBaseline
from moldiff.evaluation.crystals.basic import entries_of, judge_crystal, judge_crystals
from moldiff.evaluation.crystals.csp import compare_predictions
from moldiff.evaluation.crystals.elements import oxidation_states
from moldiff.evaluation.crystals.energies import ElementEnergies, fit_element_energies, load_element_energies
from moldiff.evaluation.crystals.hull import load_hull, parse_formula
from moldiff.evaluation.crystals.matching import STRICT, Pair, TooLate, compare, compare_all, within
from moldiff.evaluation.crystals.novelty import Training, cluster, is_known, mark_repeats
from moldiff.evaluation.crystals.reference import build_crystal_reference
from moldiff.evaluation.crystals.relax import RelaxTask, compute, displacement, find_calculator, relax, screen
from moldiff.evaluation.crystals.sets import CrystalSettings, evaluate_crystals
from moldiff.evaluation.definitions import definition
from moldiff.evaluation.reference import load_reference

NACL = from_ase(bulk("NaCl", "rocksalt", a=5.64))
NACL_CUBIC = from_ase(bulk("NaCl", "rocksalt", a=5.7, cubic=True))
NACL_CSCL = from_ase(bulk("NaCl", "cesiumchloride", a=3.4))
KCL = from_ase(bulk("KCl", "rocksalt", a=6.3))
ZNS = from_ase(bulk("ZnS", "zincblende", a=5.41))
SZN = Crystal(ZNS.numbers[::-1].copy(), ZNS.frac_coords, ZNS.lattice)
WURTZITE = from_ase(bulk("ZnS", "wurtzite", a=3.82, c=6.26))
CLASH = Crystal.of([11, 17], [[0, 0, 0], [0.05, 0, 0]], 4 * np.eye(3))


def supercell(crystal: Crystal) -> Crystal:
    structure = to_structure(crystal)
    structure.make_supercell([[1, 1, 0], [0, 2, 0], [0, 0, 1]])
    return from_structure(structure)


def chiral(sign: int) -> Crystal:
    """A structure without mirror planes, and its mirror image."""
    frac = np.array([[0.1, 0.2, 0.3], [0.45, 0.1, 0.62], [0.7, 0.55, 0.15], [0.3, 0.75, 0.8]])
    lattice = np.array([[4.1, 0, 0], [0.6, 4.9, 0], [0.9, 1.1, 5.6]])
    return Crystal.of([3, 9, 16, 13], frac, lattice * [1, 1, sign])


def noisy(crystal: Crystal, size: float, seed: int = 0) -> Crystal:
    shift = np.random.default_rng(seed).normal(size=crystal.frac_coords.shape) * size
    return Crystal(crystal.numbers, crystal.frac_coords + shift @ np.linalg.inv(crystal.lattice), crystal.lattice)


def store_of(crystals: list[Crystal], folder: Path, name: str = "set", **properties: list[float]) -> Store:
    systems = []
    for k, crystal in enumerate(crystals):
        given = {key: values[k] for key, values in properties.items()}
        system = to_crystal_system(CrystalEntry(k + 1, f"c{k}", k, crystal, given)).system
        assert system is not None
        systems.append(system)
    write_store(folder / name, {"train": pack(systems), "val": pack(systems[:2])}, {"name": name, "kind": "crystal"})
    return Store(folder / name)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (NACL, NACL_CUBIC, True),
        (NACL, supercell(NACL_CUBIC), True),
        (NACL, NACL_CSCL, False),
        (NACL, KCL, False),
        (chiral(1), chiral(-1), True),
        (chiral(1), niggli(chiral(1)), True),
        (ZNS, WURTZITE, False),
        (ZNS, SZN, True),
        (WURTZITE, noisy(WURTZITE, 0.05), True),
    ],
    ids=["cell", "supercell", "prototype", "species", "mirror", "niggli", "polytype", "sublattice", "noise"],
)
def test_same_structures(first: Crystal, second: Crystal, same: bool) -> None:
    assert compare(Pair(first, second, STRICT, rms=False)).same is same
    found = compare(Pair(first, second))
    if same:
        assert found.rms is not None and found.rms < 0.05
    elif first is not ZNS:  # the wide tolerance of structure prediction may not see a polytype
        assert found.rms is None and not found.same


def test_rms_agrees_with_pymatgen() -> None:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(stol=0.5, ltol=0.3, angle_tol=10)
    for k, crystal in enumerate((WURTZITE, chiral(1), NACL_CUBIC, supercell(WURTZITE))):
        for size in (0.05, 0.3, 0.9):
            other = noisy(crystal, size, k)
            expected = matcher.get_rms_dist(to_structure(other), to_structure(crystal))
            found = compare(Pair(other, crystal)).rms
            assert (found is None) is (expected is None)
            if expected is not None:
                assert found == pytest.approx(expected[0], abs=1e-4)


def test_pairs_have_a_time_limit_and_are_cached(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(TooLate):
        within(0.2, sum, iter(lambda: 1, 0))
    assert time.monotonic() - began < 5
    assert compare(Pair(WURTZITE, noisy(WURTZITE, 0.3), limit=1e-4)).given_up
    with ResultCache(tmp_path / "cache.sqlite", every=0) as cache:
        pairs = [Pair(NACL, NACL_CUBIC), Pair(NACL, NACL_CSCL)]
        first = compare_all(pairs, cache=cache)
        cache.put(pairs[1].key(), {"same": True, "rms": 0.25})
        again = compare_all(pairs, cache=cache)
    assert [m.same for m in first] == [True, False] and again[0] == first[0] and again[1].rms == 0.25


def test_verdicts() -> None:
    good = judge_crystal(entries_of([NACL])[0]).verdict
    assert good.structure_valid and good.formula == "NaCl" and good.space_group == 225 and good.symbol == "Fm-3m"
    assert good.density == pytest.approx(2.16, abs=0.02) and good.min_distance == pytest.approx(2.82)
    bad = {
        "atoms closer than 0.5 Å": CLASH,
        "non-finite numbers": Crystal.of([11], [[np.nan, 0, 0]], np.eye(3)),
        "zero cell": Crystal.of([11], [[0, 0, 0]], np.diag([4, 4, 0.0])),
        "unknown element": Crystal.of([130], [[0, 0, 0]], 4 * np.eye(3)),
        "no structure": None,
    }
    for reason, crystal in bad.items():
        verdict = judge_crystal(entries_of([crystal])[0]).verdict
        assert not verdict.structure_valid and not verdict.valid and verdict.reason == reason


def test_composition_needs_smact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "has_smact", lambda: False)
    with pytest.raises(MoldiffError, match="pip install smact"):
        judge_crystals(entries_of([NACL]))
    assert judge_crystals(entries_of([NACL]), composition=False)[0].verdict.composition_valid is None


def test_smact_validity() -> None:
    pytest.importorskip("smact")
    assert composition.smact_valid(["NaCl", "NaCl2", "LiFePO4", "CuAu", "Fe"]) == [True, False, True, True, True]


def test_clusters_novelty_and_the_coarse_look_up(tmp_path: Path) -> None:
    samples = [NACL, None, NACL_CSCL, supercell(NACL_CUBIC), KCL, noisy(NACL_CUBIC, 0.05), WURTZITE, CLASH, chiral(1), chiral(-1)]
    assert cluster(samples) == [0, None, 1, 0, 2, 0, 3, 4, 5, 5]
    train = store_of([NACL_CUBIC, ZNS, chiral(-1)], tmp_path)
    assert is_known(samples[:3] + samples[6:7], Training(train)) == [True, None, False, False]
    reference = build_crystal_reference(train, tmp_path / "ref.safetensors")
    assert load_reference(tmp_path / "ref.safetensors").hashes.tolist() == reference.hashes.tolist()
    judged = mark_repeats(judge_crystals(entries_of(samples), composition=False), reference, Training(train))
    found = [one.verdict for one in judged]
    assert [v.unique for v in found] == [True, False, True, False, True, False, True, False, True, False]
    assert [v.novel for v in found] == [False, None, True, False, True, False, True, None, False, False]
    assert [v.known_label for v in found] == [True, None, False, True, False, True, False, None, True, True]
    result = evaluate_crystals("a", entries_of(samples), reference, CrystalSettings(composition=False), training=Training(train))
    values = {name: estimate.value for name, estimate in result.metrics.items()}
    assert values["structure_validity"] == 0.8 and values["crystal_uniqueness"] == 5 / 8
    assert values["crystal_novelty"] == 3 / 5 and values["unique_novel"] == 0.3 == values["unique_novel_coarse"]
    # Samples have 2 elements six times and 4 twice, training structures 2, 2 and 4.
    assert values["n_elements_wasserstein"] == pytest.approx(2 * (1 / 3 - 1 / 4))
    assert all(definition(name).text for name in values)
    assert dict(result.failures()) == {"no structure": 1, "atoms closer than 0.5 Å": 1}
    rows = result.rows()
    assert len(rows) == 10 and rows[0]["cluster"] == 0 and rows[7]["reason"] == "atoms closer than 0.5 Å"


def test_distances_between_distributions(tmp_path: Path) -> None:
    reference = build_crystal_reference(store_of([NACL, KCL, ZNS], tmp_path))
    same = evaluate_crystals("same", entries_of([NACL, KCL, ZNS]), reference, CrystalSettings(composition=False)).metrics
    for name in (
        "density_wasserstein",
        "n_elements_wasserstein",
        "space_group_tv",
        "volume_wasserstein",
        "element_tv",
        "size_tv",
    ):
        assert same[name].value == 0
    other = evaluate_crystals("other", entries_of([from_ase(bulk("Cu"))]), reference, CrystalSettings(composition=False)).metrics
    assert other["n_elements_wasserstein"].value == 1
    densities = [c.density for c in (NACL, KCL, ZNS)]
    copper = from_ase(bulk("Cu")).density
    assert other["density_wasserstein"].value == pytest.approx(np.mean([abs(copper - d) for d in densities]), abs=0.011)
    assert other["space_group_tv"].value == pytest.approx(1 / 3) and other["element_tv"].value == 1


def test_match_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    truths = [NACL, WURTZITE, NACL_CSCL, chiral(1)]
    blurred = noisy(WURTZITE, 0.1)
    overlap = Crystal(NACL.numbers, NACL.frac_coords * [[1, 1, 1], [0.16, 0.16, 0.16]], NACL.lattice)
    predictions: list[list[Crystal | None]] = [
        [NACL_CSCL, NACL_CUBIC],  # wrong, then right in another cell
        [blurred, WURTZITE],
        [NACL, None],  # its sister's structure
        [None, Crystal.of([3, 9, 16, 13], np.full((4, 3), np.nan), np.eye(3))],
    ]
    found = compare_predictions(truths, predictions, composition=False)
    values = {name: e.value for name, e in found.metrics((1, 2), n_resamples=10).items()}
    near = compare(Pair(blurred, WURTZITE)).rms
    assert near is not None and near > 0.005
    assert values["match_rate"] == 1 / 4 and values["match_rmse"] == pytest.approx(near)
    assert values["match_rate/at_2"] == 2 / 4 and values["match_rmse/at_2"] < near / 2
    # The two polymorphs of NaCl were predicted for each other.
    assert values["metre"] == 3 / 4 and values["crmse"] == pytest.approx((near + 0.5) / 4, abs=1e-3)
    assert found.reasons == {"no structure": 2, "non-finite numbers": 1} and found.given_up == 0
    monkeypatch.setattr(csp, "MOST_ACROSS", 1)
    crowded = compare_predictions(truths, predictions, composition=False)
    assert crowded.n_across == 2 and "metre" not in crowded.metrics(n_resamples=10)
    assert crowded.best(1).tolist() == pytest.approx(found.best(1).tolist(), nan_ok=True)
    clashing = compare_predictions([NACL], [[overlap]], composition=False)
    assert not clashing.counted.any() and clashing.metrics(n_resamples=10)["match_rate_valid"].value == 0
    with pytest.raises(ValueError, match="2 true structures"):
        compare_predictions(truths[:2], predictions[:1])


def test_valid_matches_need_a_balanced_composition() -> None:
    pytest.importorskip("smact")
    odd = Crystal.of([11, 17, 17], [[0, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]], 5 * np.eye(3))
    values = compare_predictions([NACL, odd], [[NACL], [odd]]).metrics(n_resamples=10)
    assert values["match_rate"].value == 1 and values["match_rate_valid"].value == 1 / 2


def hull_file(folder: Path) -> Path:
    path = folder / "hull.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("material_id,cell_formula,formation_energy_per_atom\n")
        file.write("a,Na2Cl2,-2.0\nb,NaCl3,-0.2\nc,Na3Cl,-0.5\nd,NaCl,-1.9\ne,Li4O2,-2.0\nf,Na,0.1\n")
    return path


def test_hull(tmp_path: Path) -> None:
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition

    hull = load_hull(hull_file(tmp_path))
    assert hull.above([11, 17], -2.0) == pytest.approx(0) and hull.above([11, 17], -1.9) == pytest.approx(0.1)
    # Between NaCl and Cl2 at 3/4 chlorine the tie line lies at -1: NaCl3 is 0.8 above it, and a better one below it.
    assert hull.above([11, 17, 17, 17], -0.2) == pytest.approx(0.8) and hull.above([11, 17, 17, 17], -1.5) == pytest.approx(-0.5)
    assert hull.at([11, 11, 11, 17]).decomposition == pytest.approx({"a": 0.5, "Na": 0.5})
    assert hull.above([11], 0.0) == pytest.approx(0) and hull.above([92, 92], 0.3) == pytest.approx(0.3)
    entries = [("NaCl", -2.0), ("NaCl3", -0.2), ("Na3Cl", -0.5), ("Na", 0.0), ("Cl", 0.0)]
    diagram = PhaseDiagram([PDEntry(Composition(f), e * Composition(f).num_atoms) for f, e in entries])
    for formula, numbers in (("NaCl2", [11, 17, 17]), ("Na5Cl", [11] * 5 + [17])):
        expected = float(diagram.get_hull_energy_per_atom(Composition(formula)))
        assert hull.at(numbers).energy == pytest.approx(expected, abs=1e-9)
    assert parse_formula("Li4(PO4)2") == {3: 4, 15: 2, 8: 8} and parse_formula("O6 Na3") == {8: 6, 11: 3}
    for text in ("", "Xx2", "Na0", "na cl", "NaCl; rm"):
        with pytest.raises(ValueError, match="not a formula"):
            parse_formula(text)
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BadRequest, match="cell_formula"):
        load_hull(tmp_path / "bad.csv")
    (tmp_path / "worse.csv").write_text("formula,formation_energy\nNaCl,-2\nNaCl,lots\n")
    with pytest.raises(BadRequest, match="row 3"):
        load_hull(tmp_path / "worse.csv")


def test_energies_of_the_elements_are_found_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = {11: -1.3, 17: -1.8, 8: -4.9, 3: -1.9}
    numbers = [rng.choice(list(truth), size=rng.integers(2, 8)).tolist() for _ in range(60)]
    formed = rng.normal(-1, 0.5, 60)
    energies = np.array([np.mean([truth[z] for z in one]) for one in numbers]) + formed
    energies[3] += 5  # one wrong calculation
    energies[4] = np.nan
    found = fit_element_energies("mine 1", numbers, energies, formed)
    assert found.n == 59 and max(abs(found.energies[z] - e) for z, e in truth.items()) < 0.02
    again = load_element_energies(found.save(tmp_path / "mine.json"))
    assert again.judge == "mine 1" and again.formation_energy([11, 17], -3.55) == pytest.approx(-2.0, abs=0.02)
    assert math.isnan(again.formation_energy([92], -1.0))
    with pytest.raises(BadRequest, match="no energies of the elements"):
        load_element_energies("nothing")


SLOW = """
import time
from ase.calculators.emt import EMT

class Slow(EMT):
    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        if 79 in atoms.numbers:
            time.sleep(600)
        if 47 in atoms.numbers:
            raise RuntimeError("no silver\\nat all")
        EMT.calculate(self, atoms, properties, system_changes)
"""


def test_relaxation_by_any_calculator(tmp_path: Path) -> None:
    assert issubclass(find_calculator("ase.calculators.emt:EMT"), Calculator)
    copper = from_ase(bulk("Cu", a=3.9))
    found = compute(RelaxTask(copper, "emt"))
    assert found.converged and found.relaxed_energy < found.energy - 0.01 and found.crystal is not None
    assert found.crystal.volume == pytest.approx((3.59**3) / 4, rel=0.02) and found.rmsd < 1e-3
    assert found.volume_change == pytest.approx(found.crystal.volume / copper.volume - 1)
    assert "failed" in compute(RelaxTask(NACL, "emt")).reason  # EMT knows no salts
    for crystal, reason in (
        (CLASH, "overlapping"),
        (from_ase(bulk("Cu", a=40)), "an atom"),
        (Crystal.of([118], [[0, 0, 0]], 5 * np.eye(3)), "beyond"),
    ):
        assert reason in screen(crystal)
    with pytest.raises(MoldiffError, match="needs the package nowhere"):
        find_calculator("nowhere.at.all:Thing")
    with pytest.raises(BadRequest, match="unknown calculator"):
        find_calculator("nonsense")
    with pytest.raises(BadRequest, match="has no 'Nothing'"):
        find_calculator("ase.calculators.emt:Nothing")
    moved = Crystal(WURTZITE.numbers, WURTZITE.frac_coords + 0.7, WURTZITE.lattice)
    assert displacement(WURTZITE, moved) == pytest.approx(0, abs=1e-9)


def test_a_calculator_that_hangs_or_fails_costs_one_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_calculator.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    crystals = [from_ase(bulk(metal)) for metal in ("Cu", "Au", "Ag", "Al")]
    tasks = [RelaxTask(crystal, "slow_calculator:Slow", relax=False) for crystal in crystals]
    with ResultCache(tmp_path / "cache.sqlite") as cache:
        found = relax(tasks, n_processes=1, time_limit=3.0, cache=cache)
        assert [math.isfinite(r.energy) for r in found] == [True, False, False, True]
        assert found[1].reason == "longer than 3 s" and found[2].reason == "the calculator failed: no silver"
        assert cache.get(tasks[0].key()) is not None and cache.get(tasks[1].key()) is None


def test_stable_unique_novel(tmp_path: Path) -> None:
    """Copper, its tetragonal distortion, a copy and a clash, with energies whose zero is that of EMT's copper."""
    copper, stretched = from_ase(bulk("Cu")), from_ase(bulk("Cu", a=3.9))
    point = compute(RelaxTask(from_ase(bulk("Cu", a=3.59)), "emt"))
    ElementEnergies("emt", {29: point.relaxed_energy - 0.05}, 1, 0.0).save(tmp_path / "emt.json")
    reference = build_crystal_reference(store_of([NACL, KCL], tmp_path))
    settings = CrystalSettings(
        composition=False, calculator="emt", hull=hull_file(tmp_path), element_energies=tmp_path / "emt.json", n_processes=1
    )
    result = evaluate_crystals("a", entries_of([copper, stretched, None, CLASH]), reference, settings)
    values = {name: e.value for name, e in result.metrics.items()}
    assert values["e_above_hull"] == pytest.approx(0.05, abs=0.01) and values["e_above_hull_raw"] > values["e_above_hull"]
    assert values["stable"] == 0 and values["metastable"] == 1
    # Both are the same fcc structure for the matcher: one of four samples is metastable, unique and novel.
    assert values["metastable_unique_novel"] == 1 / 4 and values["stable_unique_novel"] == 0
    assert result.rows()[0]["e_above_hull"] == pytest.approx(0.05, abs=0.01) and result.rows()[3]["e_above_hull"] is None
    assert any("emt" in note and "hull.csv.gz" in note for note in result.notes)
    with pytest.raises(BadRequest, match="name a calculator"):
        evaluate_crystals("a", entries_of([copper]), settings=CrystalSettings(composition=False, hull="x.csv"))


def test_oxidation_states() -> None:
    assert oxidation_states(((8, 4), (3, 1), (15, 1), (26, 1))) == (-2, 1, 5, 2)
    assert oxidation_states(((11, 1), (17, 1))) == (1, -1)
    assert oxidation_states(((13, 1), (28, 1))) == (0, 0) == oxidation_states(((3, 1), (12, 1)))


def test_substitution_baseline(tmp_path: Path) -> None:
    pairs = ("NaCl", "KBr", "LiF", "MgO", "CaO")
    edges = (5.64, 6.60, 4.03, 4.21, 4.81)
    salts = [from_ase(bulk(pair, "rocksalt", a=a)) for pair, a in zip(pairs, edges, strict=True)]
    alloys = [from_ase(bulk(pair, "cesiumchloride", a=3.0 + 0.05 * k)) for k, pair in enumerate(("NiAl", "CoAl", "AgMg", "CuZn"))]
    baseline = SubstitutionBaseline(store_of([*salts, *alloys, ZNS, NACL_CUBIC], tmp_path))
    rock = baseline.predict([19, 17], 3)
    assert compare(Pair(rock[0], KCL)).same and rock[0].numbers.tolist() == [19, 17]
    metal = baseline.predict([28, 30], 1)[0]
    assert compare(Pair(metal, from_ase(bulk("NiZn", "cesiumchloride", a=2.9)))).same
    # Three templates of three prototypes, none of them twice.
    assert len({tuple(np.round(c.angles)) for c in rock}) > 1
    # The volume follows the elements.
    assert rock[0].volume == pytest.approx(6.29**3 / 4, rel=0.15)
    # Four formula units are found by repeating a cell, three atoms of one kind and one of another nowhere.
    repeated = baseline.predict([3, 35, 3, 35, 3, 35], 1)[0]
    assert (
        repeated.numbers.tolist() == [3, 35, 3, 35, 3, 35]
        and compare(Pair(repeated, from_ase(bulk("LiBr", "rocksalt", a=5.5)))).same
    )
    assert baseline.predict([11, 17, 17, 17]) == []
    assert baseline.templates([11, 17], 1, exclude=0)[0].index != 0 == baseline.templates([11, 17], 1)[0].index
