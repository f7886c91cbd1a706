"""What a report shows of single molecules."""

from __future__ import annotations

from moldiff.evaluation.cards import Card
from moldiff.evaluation.molecules.drawings import formula_svg, mol_block
from moldiff.evaluation.molecules.sets import SetResult


def card(found: SetResult, index: int) -> Card:
    """Show one sample."""
    sample = found.samples[index]
    verdict = sample.verdict
    if not verdict.valid:
        state = verdict.reason
    elif not verdict.connected:
        state = f"{verdict.n_fragments} fragments"
    else:
        state = "valid" if verdict.molecule_stable else "unstable valence"
    block = mol_block(sample)
    model = {"format": "sdf", "text": block} if block else {}
    return Card(verdict.name, verdict.smiles or verdict.formula or "–", state, state == "valid", formula_svg(sample), model)
