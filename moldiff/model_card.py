"""The cards of models: what they make, from what they learned, how they were trained and what to beware of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moldiff.config import Config

if TYPE_CHECKING:
    from moldiff.evaluation.reference import Reference

#: How bonds come about, in words.
BONDS = {"generated": "generated with the atoms"}


def condition_rows(config: Config) -> dict[str, str]:
    """Rows of the card that name the conditions, their units and where they were trained."""
    rows = {}
    for name in [*config.conditions, *config.targets]:
        stats = config.condition_stats.get(name)
        if stats is None:
            continue
        if config.condition_classes.get(name):
            where = f"one of {config.condition_classes[name]} classes, seen {stats.least:g} to {stats.greatest:g}"
        else:
            where = f"{stats.low:.4g} to {stats.high:.4g} {stats.unit}".rstrip() + " (1st to 99th percentile of training; "
            where += f"seen {stats.least:.4g} to {stats.greatest:.4g}, mean {stats.mean:.4g})"
        rows[f"{'target' if config.targets else 'condition'} `{name}`"] = f"{where}, known of {stats.known:,} training systems"
    return rows


def regressor_card(config: Config, elements: str, n_parameters: int, sizes: Mapping[int, int], facts: Mapping[str, str]) -> str:
    """The card of a regressor: what it predicts, from what it learned and how well."""
    part = "" if config.data.part is None else f", {config.data.part[0]:.0%} to {config.data.part[1]:.0%} of it in a fixed order"
    rows: dict[str, Any] = {
        "predicts": f"{', '.join(config.targets)} of {config.kind}s of {elements} with {min(sizes)} to {max(sizes)} atoms",
        "sees": f"{', '.join(config.fields)}; clean systems ({config.training.clean_share:.0%} in training) and noised ones",
        "network": f"{config.network.name}, pooled, {n_parameters:,} parameters",
        "training data": f"{config.data.name}{part}, {sum(sizes.values()):,} {config.kind}s",
        **condition_rows(config),
        **facts,
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return (
        f"# {config.name}\n\nA regressor of properties, trained on {config.data.name}, with gradients for guidance.\n\n"
        f"| | |\n| --- | --- |\n{table}\n\n"
        f'Use: `PropertyRegressor.from_pretrained("{config.name}").predict(molecules)` from `moldiff.regressor`.\n\n'
        "It knows what its training data resembles and nothing else; outside it the numbers mean nothing.\n"
    )


def card_text(
    config: Config, n_parameters: int, sizes: Mapping[int, int], reference: Reference | None, facts: Mapping[str, str]
) -> str:
    """The model card: what the model makes, from what it learned, how it was trained and what to beware of."""
    from moldiff.chem.formula import named_elements

    elements = named_elements(config.vocabulary["atom_types"])
    told = "atom_types" in config.given
    option, argument = (" --formula TiO2 --z 2", ', formula="TiO2", z=2') if told else ("", "")
    if config.needs_graph:
        option, argument = " --smiles CCO", ', smiles="CCO"'
    if config.targets:
        return regressor_card(config, elements, n_parameters, sizes, facts)
    things = f"{config.kind}s"
    generated = things == "molecules" and not config.needs_graph
    bonds = {"bonds": BONDS.get(config.bonds, f"inferred from distances ({config.bonds})")} if generated else {}
    makes = f"{'conformers of ' if config.needs_graph else ''}{things} of {elements}"
    rows: dict[str, Any] = {
        "makes": f"{makes} with {min(sizes)} to {max(sizes)} atoms",
        **bonds,
        **({"is told": "the composition: a formula and the number of its units in the cell"} if told else {}),
        **({"is told": "the graph of a molecule: a SMILES; it makes its positions"} if config.needs_graph else {}),
        "network": f"{config.network.name}, {n_parameters:,} parameters",
        "fields": ", ".join(f"{name} ({f.process})" for name, f in config.fields.items()),
        "training data": f"{config.data.name}, {sum(sizes.values()):,} {things}",
        **condition_rows(config),
        "samples by default with": f"{config.sampling.sampler}, {config.sampling.steps} network calls, "
        f"grid {config.sampling.grid}",
        "novelty": "known offline" if reference is not None else "unknown: no reference in this folder",
        **facts,
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return (
        f"# {config.name}\n\n"
        f"A diffusion model that makes {makes}, trained on {config.data.name}.\n\n"
        f"| | |\n| --- | --- |\n{table}\n\n"
        f"Use: `moldiff generate --model {config.name}{option} -n 100 --out candidates` or, in Python, "
        f'`Generator.from_pretrained("{config.name}").sample(100{argument}, seed=0)`.\n\n'
        "Samples resemble the training data and nothing else: elements, sizes and chemistry outside it are out of reach, and "
        "no sample was checked for stability in the laboratory, synthesis or safety.\n"
    )
