"""The shipped regressor judges what was asked of samples, in `evaluate` and in `moldiff evaluate`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase.build import molecule
from rdkit import Chem
from rdkit.Chem import AllChem
from typer.testing import CliRunner

from moldiff import evaluate
from moldiff.cli import app


@pytest.fixture(scope="module")
def mols() -> list[Chem.Mol]:
    found = []
    for k, smiles in enumerate(["CCO", "c1ccccc1", "CC(=O)N", "C1CC1O"]):
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        AllChem.EmbedMolecule(mol, randomSeed=k)
        AllChem.MMFFOptimizeMolecule(mol)
        mol.SetDoubleProp("asked_gap", 6.0)
        found.append(mol)
    return found


def test_regressor_and_calculation_agree_on_what_came(mols: list[Chem.Mol]) -> None:
    result = json.loads(evaluate(mols, reference="qm9").to_json())
    (found,) = [one["metrics"] for one in result["sets"].values() if "property_mae/gap" in one["metrics"]][:1]
    calculated, learnt = found["property_mae/gap"]["value"], found["property_mae_regressor/gap"]["value"]
    assert abs(calculated - learnt) < 0.7  # eV; the gaps themselves spread over 5
    assert any("qm9-regressor" in note for one in result["sets"].values() for note in one.get("notes", []))


def test_a_broken_molecule_is_not_judged(mols: list[Chem.Mol]) -> None:
    from moldiff.evaluation.conditional import regressors

    carbene = molecule("CH4")[:3]
    carbene.info["asked_gap"] = 6.0
    sets = {"broken": [carbene], "sound": mols}
    result = json.loads(evaluate(sets, reference=None).to_json())["sets"]
    assert result["sound"]["metrics"]["property_mae_regressor/gap"]["n"] == 4
    value = result["broken"]["metrics"].get("property_mae_regressor/gap", {"value": None})["value"]
    assert value is None or not np.isfinite(value)
    assert [r.name for r in regressors("molecule")].count("qm9-regressor") == 1


def test_the_command_line_has_it_too(mols: list[Chem.Mol], tmp_path) -> None:
    with Chem.SDWriter(str(tmp_path / "some.sdf")) as writer:
        for mol in mols:
            writer.write(mol)
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "some.sdf"), "--reference", "qm9", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["sets"]["some"]["metrics"]
    assert "property_mae_regressor/gap" in metrics
