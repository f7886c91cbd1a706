"""Metrics of crystals: validity, matching, novelty, distributions, energies, and the substitution baseline."""
