"""`moldiff bench`: speeds as ratios against things timed in the same run.

Every section is a function that returns rows of plain numbers; nothing here is a pass/fail test.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moldiff.config import Config
from moldiff.core.batch import AtomBatch
from moldiff.core.fields import field
from moldiff.core.precision import product_dtype
from moldiff.core.rng import Streams
from moldiff.denoisers.base import NetworkDenoiser, Signature, n_parameters

Row = dict[str, Any]
#: Batch sizes and numbers of atoms at which the network is timed.
MOLECULE_SHAPES = [(1, 18), (16, 18), (32, 18), (64, 19), (128, 12), (128, 18), (128, 24)]
CRYSTAL_SHAPES = [(1, 10), (6, 10), (16, 10), (32, 10), (64, 6), (64, 10), (64, 20)]


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median seconds of a call after one warm-up call."""
    device_sync()
    work()
    times = []
    for _ in range(repeats):
        device_sync()
        start = time.perf_counter()
        work()
        device_sync()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def device_sync() -> None:
    """Wait for the accelerator where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_rate(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """GFLOP/s of a large square matrix product: the machine's peak as torch reaches it."""
    a = torch.randn(size, size, dtype=dtype, device=device)
    b = torch.randn(size, size, dtype=dtype, device=device)
    return 2 * size**3 / seconds(lambda: a @ b) / 1e9


def random_batch(config: Config, n_systems: int, n_atoms: int, device: torch.device) -> AtomBatch:
    """A random encoded batch of one size, of the fields that a model diffuses or is told."""
    rng = Streams.single(0)
    batch = AtomBatch(torch.ones(n_systems, n_atoms, dtype=torch.bool))
    data = {}
    for name in (*config.fields, *config.given):
        if field(name).categorical:
            classes = len(config.vocabulary[name])
            data[name] = (rng.uniform(batch, name) * classes).long().clamp_max(classes - 1)
        elif name == "lattice":
            data[name] = 5 * torch.eye(3) + 0.3 * rng.normal(batch, name)
        else:
            data[name] = rng.normal(batch, name)
    if "positions" in data:
        data["positions"] = data["positions"] - data["positions"].mean(1, keepdim=True)
    return batch.replace(**data).to(device)


def call_rows(denoiser: NetworkDenoiser, config: Config, shapes: Sequence[tuple[int, int]]) -> list[Row]:
    """ms and GFLOP/s of one denoiser call (self-conditioning given) for each (batch size, atoms)."""
    device = next(denoiser.parameters()).device
    rows = []
    for s, n in shapes:
        t = torch.full((s,), 0.5, device=device)
        batch = denoiser.diffusion.noise(random_batch(config, s, n, device), t, Streams.single(1))
        with torch.no_grad():
            previous = denoiser(batch, t)
            with FlopCounterMode(display=False) as counter:
                denoiser(batch, t, previous)
            duration = seconds(lambda b=batch, u=t, p=previous: denoiser(b, u, p))  # type: ignore[misc]
        flop = counter.get_total_flops()
        rows.append(
            {
                "batch": s,
                "atoms": n,
                "ms_per_call": round(1e3 * duration, 2),
                f"mflop_per_{config.kind}": round(flop / s / 1e6, 1),
                "gflop_per_s": round(flop / duration / 1e9, 1),
            }
        )
    return rows


def training_row(denoiser: NetworkDenoiser, config: Config, n_atoms: int) -> Row:
    """Systems a second of forward, backward and optimiser step, half of them with self-conditioning."""
    device, s = next(denoiser.parameters()).device, config.training.batch_size
    clean, t = random_batch(config, s, n_atoms, device), torch.full((s,), 0.5, device=device)
    batch = denoiser.diffusion.noise(clean, t, Streams.single(1))
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=0.0)

    def step(with_memory: bool) -> None:
        previous = None
        if with_memory:
            with torch.no_grad():
                previous = denoiser(batch, t)
        optimizer.zero_grad()
        losses = denoiser.diffusion.loss(denoiser(batch, t, previous), clean, batch, t)
        denoiser.diffusion.total(losses).mean().backward()
        optimizer.step()

    duration = (seconds(lambda: step(False), 3) + seconds(lambda: step(True), 3)) / 2
    return {"batch": s, "atoms": n_atoms, "s_per_step": round(duration, 4), f"{config.kind}s_per_s": round(s / duration, 1)}


def edm_row(device: torch.device, batch: int = 64, atoms: int = 19) -> Row:
    """One call of EDM's own network (Hoogeboom et al. 2022: EGNN, 9 layers, 256 wide) at 64 x 19 atoms, 1000 calls a molecule."""
    from moldiff.denoisers.registry import build_network

    network: nn.Module = build_network("egnn", Signature({"atom_types": (4, 4), "charges": (3, 3)}, ("positions",)))
    network = network.to(device).eval()
    config = Config.model_validate(
        {
            "name": "edm",
            "data": {"name": "none"},
            "vocabulary": {"atom_types": [1, 6, 7, 8], "charges": [-1, 0, 1]},
            "fields": {k: {"process": "none"} for k in ("positions", "atom_types", "charges")},
        }
    )
    seen, t = random_batch(config, batch, atoms, device), torch.full((batch,), 0.5, device=device)
    with torch.no_grad():
        duration = seconds(lambda: network(seen, t, None), 3)
    return {
        "parameters": n_parameters(network),
        "batch": batch,
        "atoms": atoms,
        "s_per_call": round(duration, 3),
        "s_per_molecule_1000_calls": round(duration * 1000 / batch, 2),
    }


def sampling_row(model: str, n: int, calls: int | None, device: str) -> Row:
    """Seconds of drawing about n systems with the model's default sampler, and of a valid one.

    A model that is told compositions gets those of known compounds.
    """
    from moldiff.bench_crystals import compositions_for
    from moldiff.generator import Generator

    generator = Generator.from_pretrained(model, device=device)
    kind = generator.info.config.kind
    told: dict[str, Any] = {}
    if "atom_types" in generator.info.config.given:
        rows = compositions_for(generator.info)
        n, told = max(1, n // len(rows)), {"compositions": rows}
    generator.rule()  # tried once, whatever the number of samples
    start = time.perf_counter()
    samples = generator.sample(n, seed=0, steps=calls, **told)
    duration = time.perf_counter() - start
    valid = sum(s.valid for s in samples.verdicts)
    return {
        "n": len(samples),
        "calls": calls or generator.info.config.sampling.steps,
        "seconds": round(duration, 2),
        f"{kind}s_per_s": round(len(samples) / duration, 2),
        f"s_per_{kind}": round(duration / len(samples), 4),
        "valid": valid,
        f"s_per_valid_{kind}": round(duration / max(valid, 1), 4),
        "s_to_100_valid": round(100 * duration / max(valid, 1), 2),
    }


def bench(
    model: str = "qm9",
    n: int = 100,
    calls: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    out: Path | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure a model's speed and print it; ``out`` receives the same numbers as JSON.

    ``n`` systems are drawn for the sampling speed; ``threads`` sets torch's intra-op threads.
    """
    from moldiff.bench_crystals import CALLS, diffcsp_row
    from moldiff.model_store import load_model

    if threads:
        torch.set_num_threads(threads)
    loaded = load_model(model)
    config = loaded.info.config
    where = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device)
    denoiser = loaded.denoiser.to(where).eval()
    low = product_dtype(getattr(denoiser.network, "precision", "float32"), where)
    result: dict[str, Any] = {
        "model": model,
        "parameters": n_parameters(denoiser),
        "machine": {
            "device": torch.cuda.get_device_name() if where.type == "cuda" else platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "dtype": str(low).removeprefix("torch."),
    }
    rate = matmul_rate(low, where)
    result["matmul_gflop_per_s"] = round(rate, 1)
    report(f"matmul rate ({result['dtype']}): {rate:.0f} GFLOP/s on {torch.get_num_threads()} threads")
    crystals = config.kind == "crystal"
    shapes = CRYSTAL_SHAPES if crystals else MOLECULE_SHAPES
    result["calls"] = call_rows(denoiser, config, [s for s in shapes if s[1] <= config.max_atoms])
    for row in result["calls"]:
        row["share_of_matmul_rate"] = round(row["gflop_per_s"] / rate, 3)
        report("call  " + "  ".join(f"{k} {v}" for k, v in row.items()))
    result["training"] = training_row(denoiser, config, min(10 if crystals else 18, config.max_atoms))
    report("train  " + "  ".join(f"{k} {v}" for k, v in result["training"].items()))
    denoiser.zero_grad(set_to_none=True)
    if crystals:
        result["diffcsp"] = diffcsp_row(where, seconds)
        report("DiffCSP's network  " + "  ".join(f"{k} {v}" for k, v in result["diffcsp"].items()))
    else:
        result["edm"] = edm_row(where)
        report("EDM's network  " + "  ".join(f"{k} {v}" for k, v in result["edm"].items()))
    result["sampling"] = sampling_row(model, n, calls, device)
    report("sample  " + "  ".join(f"{k} {v}" for k, v in result["sampling"].items()))
    if crystals:
        ratio = result["diffcsp"][f"s_per_crystal_{CALLS}_calls"] / result["sampling"]["s_per_crystal"]
        result["times_faster_than_diffcsp_per_crystal"] = round(ratio, 1)
        said = f"{ratio:.0f} times faster than DiffCSP's network per crystal"
    else:
        ratio = result["edm"]["s_per_molecule_1000_calls"] / result["sampling"]["s_per_valid_molecule"]
        result["times_faster_than_edm_per_valid_molecule"] = round(ratio, 1)
        said = f"{ratio:.0f} times faster than EDM's network per valid molecule"
    result["peak_memory_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if where.type == "cuda":
        result["peak_device_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    report(f"{said}; peak memory {result['peak_memory_mib']} MiB")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result
