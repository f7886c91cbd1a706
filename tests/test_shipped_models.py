"""The models of the package: whole, small, with a card, and making what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from moldiff.chem.counts import NAMES as NAMES_OF_COUNTS
from moldiff.generator import Generator
from moldiff.model_store import list_models, shipped_models
from moldiff.regressor import PropertyRegressor

NAMES = sorted(shipped_models())
MAKERS = [info.name for info in list_models() if not info.config.targets]


def test_qm9_is_shipped():
    assert "qm9" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_folders_are_whole_small_and_have_cards(name):
    (info,) = [info for info in list_models() if info.name == name]
    assert sum(p.stat().st_size for p in info.folder.iterdir()) < 20e6
    assert len(info.card) > 500 and "/work" not in info.card and info.config.data.root is None


@pytest.mark.parametrize("name", MAKERS)
def test_what_makes_samples_knows_its_training_data_offline(name):
    (info,) = [info for info in list_models() if info.name == name]
    assert info.reference() is not None and len(info.reference().hashes) > 1000
    assert info.reference().data_row["n"] >= 1000


def test_the_regressor_tells_dipoles_and_gaps_of_known_molecules():
    from ase.build import molecule

    regressor = PropertyRegressor.from_pretrained("qm9-regressor", device="cpu")
    assert regressor.targets == ("homo", "lumo", "gap", "dipole", "dft_alpha", "dft_mu", "dft_cv")
    found = regressor.predict([molecule("CH3OH"), molecule("C6H6")])
    assert found["dipole"][1] < 0.4 < 1 < found["dipole"][0] < 2.8  # D: none for benzene, 1.7 for methanol
    assert abs(found["dft_alpha"][1] - 67) < 15  # bohr^3, benzene's; of molecules as small as methanol it saw none
    assert found["gap"][0] > found["gap"][1]  # an alcohol is harder to excite than benzene


@pytest.mark.parametrize("name", [n for n in NAMES if shipped_models()[n].name == "qm9"])
def test_a_few_molecules_are_good_and_do_not_depend_on_the_batch(name):
    generator = Generator.from_pretrained(name, device="cpu")
    drawn = generator.sample(6, seed=0, steps=40, size="12-16")
    assert sum(v.valid and v.connected for v in drawn.verdicts) >= 4
    alone = generator.sample(1, seed=0, steps=40, size="12-16", start=3)[0]
    assert all(np.array_equal(alone.fields[k], drawn[3].fields[k]) for k in alone.fields)


def test_mp20_cond_holds_the_space_group_that_it_is_asked_for():
    generator = Generator.from_pretrained("mp20-cond", device="cpu")
    made = generator.sample(4, seed=0, steps=8, conditions=[{"space_group": 225}, {"space_group": 139}])
    assert [v.space_group for v in made.verdicts] == [225, 139] * 2


def test_qm9_cond_answers_to_what_it_is_told_and_completes_what_is_kept(tmp_path):
    from test_inpaint import ETHANOL

    generator = Generator.from_pretrained("qm9-cond", device="cpu")
    assert generator.config.conditions[:7] == ["homo", "lumo", "gap", "dipole", "dft_alpha", "dft_mu", "dft_cv"]
    assert set(generator.config.companions) == set(NAMES_OF_COUNTS) and generator.info.companions is not None
    low, high = (generator.sample(12, seed=1, steps=24, size=16, conditions={"gap": gap}) for gap in (2.5, 9.5))

    def unsaturated(samples):
        return np.mean([(s.bond_types > 1).any(1).mean() for s in samples])

    # a small gap is a molecule with multiple bonds, a large one a saturated molecule
    assert unsaturated(low) > unsaturated(high) + 0.1
    assert sum(v.valid and v.connected for v in [*low.verdicts, *high.verdicts]) >= 16
    path = tmp_path / "ethanol.sdf"
    path.write_text(ETHANOL)
    kept = generator.sample(8, seed=0, steps=30, size=14, keep=path)
    assert sum(v.valid and v.connected for v in kept.verdicts) >= 4
