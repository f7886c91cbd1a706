"""Average the weights of two models of one architecture into a model folder (Wortsman et al. 2022, model soups).

    python benchmarks/average_models.py BEFORE AFTER --share 0.5 --out FOLDER

``share`` is that of AFTER. Weights that only AFTER has are taken as they are, those of its conditions are left out. So the
``qm9`` that ships was made of the ``qm9`` before it and the ``qm9-cond`` of commit d1788bc.
"""

from __future__ import annotations

import argparse

from moldiff.model_export import export_model
from moldiff.model_store import load_model


def main() -> None:
    """Read both, average, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    first, second = load_model(args.before), load_model(args.after)
    old, new = first.denoiser.state_dict(), second.denoiser.state_dict()
    mean = {k: v if k not in old else (1 - args.share) * old[k] + args.share * v for k, v in new.items() if "condition" not in k}
    config = second.info.config.model_copy(update={"name": first.info.name, "conditions": [], "condition_stats": {}})
    facts = {"weights": f"{1 - args.share:g} of {args.before} and {args.share:g} of {args.after}"}
    export_model(
        mean, config, None, args.out, facts, sizes=first.info.sizes, element_counts=first.info.element_counts,
        reference=first.info.reference(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
