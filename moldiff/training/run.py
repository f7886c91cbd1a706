"""Run a training from settings: build the parts, resume where asked, fit, and leave a state behind."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moldiff.assemble import build_denoiser, build_regressor, build_vocabulary
from moldiff.config import Config
from moldiff.core.batch import AtomBatch
from moldiff.core.memory import keep_freed_memory
from moldiff.core.rng import Streams
from moldiff.data.batches import BucketBatches, size_histogram
from moldiff.data.symmetries import symmetries_of
from moldiff.denoisers.base import NetworkDenoiser, n_parameters
from moldiff.errors import BadRequest
from moldiff.sampling.ddpm import DDPM
from moldiff.sampling.grids import uniform_grid
from moldiff.sampling.loop import sample
from moldiff.training.conditions import standardised, with_condition_stats
from moldiff.training.monitor_crystals import monitor_crystals
from moldiff.training.symmetry import SymmetricNoise


@dataclass(frozen=True)
class FitResult:
    """The denoiser (or regressor) with its averaged weights; whether the run reached its end (rather than being asked to stop);
    optimiser steps, seconds and systems seen over all resumes; and whether this is the process that writes files."""

    denoiser: NetworkDenoiser
    complete: bool
    steps: int
    seconds: float
    seen: int
    main_process: bool


def draw_sizes(histogram: Mapping[int, int], n: int, seed: int) -> list[int]:
    """n sizes drawn from a histogram of numbers of atoms."""
    sizes = torch.tensor(sorted(histogram))
    weights = torch.tensor([histogram[int(k)] for k in sizes], dtype=torch.float64)
    chosen = torch.multinomial(weights, n, replacement=True, generator=torch.Generator().manual_seed(seed))
    return [int(k) for k in sizes[chosen]]


def blank_batch(sizes: list[int]) -> AtomBatch:
    """An AtomBatch of the given sizes that carries no fields yet."""
    n = torch.tensor(sizes)
    return AtomBatch(torch.arange(int(n.max()))[None, :] < n[:, None])


def monitor_molecules(config: Config, histogram: Mapping[int, int]) -> Any:
    """A function of a denoiser: stability and validity of a few samples, the same prior draws at every call."""
    from moldiff.chem.molecules import build_molecule, canonical_smiles, n_fragments
    from moldiff.chem.valence import stable_atoms

    vocabulary, options = build_vocabulary(config), config.training
    sizes = sorted(draw_sizes(histogram, options.n_monitor, seed=1))

    def measure(denoiser: NetworkDenoiser) -> dict[str, float]:
        stable, valid, connected, atoms, seen = 0, 0, 0, 0, set()
        device = next(denoiser.parameters()).device
        was_training = denoiser.training
        denoiser.eval()
        for k in range(0, len(sizes), 100):
            part = sizes[k : k + 100]
            rng = Streams.of(1, range(k, k + len(part)))
            like = blank_batch(part).to(device)
            grid = uniform_grid(options.monitor_calls)
            drawn = sample(denoiser, denoiser.diffusion, like, rng, DDPM(), grid)
            for one in vocabulary.decode(drawn.to("cpu")).to_list():
                z, bonds, q = (one.data[f][0].numpy() for f in ("atom_types", "bond_types", "charges"))
                good = stable_atoms(z, bonds, q)
                atoms += int(good.sum())
                stable += bool(good.all())
                built = build_molecule(z, one.positions[0].numpy(), bonds, q)
                if built.mol is not None:
                    valid += 1
                    connected += n_fragments(built.mol) == 1
                    seen.add(canonical_smiles(built.mol))
        denoiser.train(was_training)
        n = len(sizes)
        return {
            "atom_stability": round(atoms / sum(sizes), 4),
            "molecule_stability": stable / n,
            "validity": valid / n,
            "valid_connected": connected / n,
            "uniqueness": len(seen) / max(valid, 1),
        }

    return measure


def fit(
    config: Config,
    columns: Mapping[str, Tensor],
    out: Path,
    resume: bool = False,
    start_from: Mapping[str, Tensor] | None = None,
    new: Sequence[str] = (),
    held_out: Mapping[str, Tensor] | None = None,
    **trainer_options: Any,
) -> FitResult:
    """Train on a store's columns.

    ``out`` receives ``state.pt``, ``settings.yaml``, ``curve.csv``, ``curve.png`` and ``samples.csv``. ``resume`` continues
    from ``out/state.pt`` exactly; ``start_from`` gives first weights (fine-tuning), of which ``new`` were not trained before.
    A regressor is measured now and then on the columns of ``held_out`` systems. ``trainer_options`` go to Lightning's Trainer
    (devices, num_nodes, strategy, accelerator ...).
    """
    warnings.filterwarnings("ignore", module="lightning")
    import lightning

    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)

    from moldiff.training.callbacks import Clock, Curve, Monitor, SaveState
    from moldiff.training.module import DiffusionModule, TrainOptions
    from moldiff.training.regression import RegressionModule, monitor_regressor
    from moldiff.training.state import read_state, restore

    keep_freed_memory()
    t = config.training
    if t.max_steps is None and t.max_minutes is None:
        raise BadRequest("training needs a limit: set training.max_minutes or training.max_steps")
    config = with_condition_stats(config, columns)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "settings.yaml").write_text(config.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise BadRequest(f"cannot write to {out}: {error.strerror}") from None
    torch.manual_seed(t.seed)
    denoiser: Any = build_regressor(config) if config.targets else build_denoiser(config)
    if start_from is not None:
        denoiser.load_state_dict(dict(start_from))
    origin = None if start_from is None else {k: v for k, v in start_from.items() if k not in set(new)}
    rank, world = int(os.environ.get("LOCAL_RANK", 0)), 1
    options = TrainOptions(**{k: getattr(t, k) for k in TrainOptions.__dataclass_fields__})
    fields = [*config.fields, *config.given]
    batches = BucketBatches(
        columns,
        build_vocabulary(config),
        t.batch_size,
        t.seed,
        rank,
        world,
        standardised(config, columns),
        fields,
        t.bucket_width,
    )
    symmetric = None
    if t.given_symmetry > 0:
        folder = None if config.data.root is None else Path(config.data.root) / config.data.name
        symmetric = SymmetricNoise(symmetries_of(columns, folder), t.given_symmetry)
    companions = torch.tensor([name in config.companions for name in config.conditions], dtype=torch.bool)
    kind = RegressionModule if config.targets else DiffusionModule
    module = kind(denoiser, batches, options, origin, symmetric, companions)
    if isinstance(module, RegressionModule):
        module.targets = tuple(config.targets)
    state = read_state(out / "state.pt") if resume else None
    if state is not None:
        restore(module, state)
        print(f"resumed at step {module.done} after {module.elapsed / 60:.1f} minutes", flush=True)
    callbacks: list[Any] = [
        Clock(),
        Curve(out, t.log_every),
        SaveState(out / "state.pt", t.save_minutes, config.to_yaml(), state["optimizer"] if state else None),
    ]
    if config.targets:
        if t.sample_minutes is not None and held_out is not None:
            callbacks.append(Monitor(out, t.sample_minutes, monitor_regressor(config, held_out)))
    elif t.sample_minutes is not None and config.kind == "molecule":
        callbacks.append(Monitor(out, t.sample_minutes, monitor_molecules(config, size_histogram(columns))))
    elif t.sample_minutes is not None:
        callbacks.append(Monitor(out, t.sample_minutes, monitor_crystals(config, columns)))
    trainer = lightning.Trainer(
        max_epochs=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=out,
        **trainer_options,
    )
    batches.rank, batches.world = trainer.global_rank, trainer.world_size
    print(f"{config.name}: {n_parameters(denoiser):,} parameters, {len(batches):,} systems", flush=True)
    trainer.fit(module)
    module.ema.swap(denoiser)
    return FitResult(denoiser, module.progress >= 1, module.done, module.elapsed, module.seen, trainer.is_global_zero)
