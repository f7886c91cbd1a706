"""The models of the package: whole, small, with a card, and making what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from moldiff.generator import Generator
from moldiff.model_store import list_models, shipped_models

NAMES = sorted(shipped_models())


def test_qm9_is_shipped():
    assert "qm9" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_folders_are_whole_small_and_have_what_offline_use_needs(name):
    (info,) = [info for info in list_models() if info.name == name]
    assert sum(p.stat().st_size for p in info.folder.iterdir()) < 20e6
    assert info.reference() is not None and len(info.reference().hashes) > 1000
    assert info.reference().data_row["n"] >= 1000
    assert len(info.card) > 500 and "/work" not in info.card and info.config.data.root is None


@pytest.mark.parametrize("name", [n for n in NAMES if shipped_models()[n].name == "qm9"])
def test_a_few_molecules_are_good_and_do_not_depend_on_the_batch(name):
    generator = Generator.from_pretrained(name, device="cpu")
    drawn = generator.sample(6, seed=0, steps=40, size="12-16")
    assert sum(v.valid and v.connected for v in drawn.verdicts) >= 4
    alone = generator.sample(1, seed=0, steps=40, size="12-16", start=3)[0]
    assert all(np.array_equal(alone.fields[k], drawn[3].fields[k]) for k in alone.fields)
