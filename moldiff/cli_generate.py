"""The command ``moldiff generate``: every option of it is an argument of ``Generator.sample``, and may stand in a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from moldiff.errors import BadRequest, unknown

#: Arguments of ``Generator.sample`` whose option of the command has another name.
_ALSO_CALLED = {"conditions": "condition", "options": "option", "n_atoms": "size"}


def _from_file(context: typer.Context, path: Path | None) -> Path | None:
    """Take the values of a YAML file for the options that the command line does not name."""
    if path is not None:
        options = {p.name: p.multiple for p in context.command.params if hasattr(p, "multiple") and p.name != "help"}
        context.default_map = {**(context.default_map or {}), **read_asked(path, options)}
    return path


def generate(
    config: Annotated[
        Path | None,
        typer.Argument(help="YAML of any of these options; what the command line names goes before.", is_eager=True,
                       callback=_from_file, show_default="none"),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder for samples (.sdf, .extxyz, CIFs), samples.csv and metrics.json.")],
    n: Annotated[int, typer.Option("-n", "--n", help="Number of samples.")] = 100,
    model: Annotated[str, typer.Option(help="Name of a shipped model, or a model folder.")] = "qm9",
    seed: Annotated[int, typer.Option(help="Sample i of a seed is always the same.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Network calls a sample.", show_default="the model's own")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim, euler, heun, dpm_solver.", show_default="the model's")] = None,
    option: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for the sampler; may be repeated.")] = None,
    grid: Annotated[str | None, typer.Option(help="Time grid: uniform, karras, rhoX, log, tan.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Divides the logits of types, charges and bonds.")] = None,
    settle: Annotated[int | None, typer.Option(help="Calls, of all, that settle positions.", show_default="the model's")] = None,
    size: Annotated[
        str | None, typer.Option("--size", "--n-atoms", help="Number of atoms: N or MIN-MAX.", show_default="as trained")
    ] = None,
    formula: Annotated[str | None, typer.Option(help="Every sample has this composition: LiFePO4.")] = None,
    z: Annotated[int | None, typer.Option(help="Formula units in a cell.", show_default="1")] = None,
    compositions: Annotated[Path | None, typer.Option(help="CSV of formula and z: n samples of each row.")] = None,
    elements: Annotated[str | None, typer.Option(help="Only these: Li,Fe,O.")] = None,
    exclude: Annotated[str | None, typer.Option(help="None of these elements.")] = None,
    require: Annotated[str | None, typer.Option(help="At least one atom of each of these elements.")] = None,
    charge: Annotated[int | None, typer.Option(help="Molecules: the total of the formal charges.")] = None,
    valences: Annotated[
        str | None, typer.Option(help="Molecules: held (closed shells, right valences) or free.", show_default="the model's")
    ] = None,
    redraws: Annotated[
        int | None, typer.Option(help="Crystals: draws anew of one whose atoms meet, at most.", show_default="the model's")
    ] = None,
    n_elements: Annotated[
        str | None, typer.Option(help="Crystals: so many different ones, N or MIN-MAX; or any.", show_default="as trained")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="SDF or XYZ (crystals: CIF): it comes back in every sample.")] = None,
    keep_atoms: Annotated[str | None, typer.Option(help="Keep these of its atoms, from 0: 0,1,2.")] = None,
    keep_elements: Annotated[str | None, typer.Option(help="Crystals: keep its sites of these elements: Li,O.")] = None,
    keep_cell: Annotated[Path | None, typer.Option(help="Crystals: keep the cell of this CIF.")] = None,
    keep_smarts: Annotated[str | None, typer.Option(help="Keep the atoms that match.")] = None,
    grow: Annotated[str | None, typer.Option(help="Atoms more than the structure has: N or MIN-MAX.")] = None,
    resamplings: Annotated[int | None, typer.Option(help="Make every step so often (RePaint), at equal calls.")] = None,
    relax: Annotated[str, typer.Option(help="Crystals: relax each cluster by chgnet, mace, emt or an import name.")] = "",
    time_limit: Annotated[float, typer.Option(help="Seconds that one relaxation may take.")] = 120.0,
    clusters: Annotated[bool, typer.Option(help="Crystals: find samples that are the same.")] = True,
    like: Annotated[Path | None, typer.Option(help="Vary these molecules: SDF, XYZ ...")] = None,
    between: Annotated[list[Path] | None, typer.Option(help="From one molecule to another of its size: name both.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="How far to noise these, prototypes, geometries.", show_default="0.6 with --like")
    ] = None,
    prototypes: Annotated[
        str | None, typer.Option(help="Crystals: begin at those of a prepared data set, or aflow.", show_default="the model's")
    ] = None,
    symmetry: Annotated[
        str | None, typer.Option(help="Crystals: learned, none, or space groups (225, Fm-3m).", show_default="learned")
    ] = None,
    smiles: Annotated[str | None, typer.Option(help="Conformers of this molecule.")] = None,
    positions: Annotated[Path | None, typer.Option(help="Types and bonds for the positions in this file.")] = None,
    condition: Annotated[list[str] | None, typer.Option(help="NAME=VALUE or NAME=8..10; may be repeated. Or a CSV.")] = None,
    companions: Annotated[
        str | None, typer.Option(help="Conditions that go with these, of training data: drawn or none.", show_default="drawn")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Above 1: follow conditions more closely, at twice the calls.")] = None,
    guidance_function: Annotated[str | None, typer.Option(help="MODULE:FUNCTION of clean atoms: go up its gradient.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Multiplies it.", show_default="1")] = None,
    reward: Annotated[list[str] | None, typer.Option(help="qed, logp, ring_count, xtb:gap, MODULE:FUNCTION ...; summed.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="NAME=VALUE or NAME=VALUE:DEVIATION, such as dipole=3.")] = None,
    candidates: Annotated[
        int | None, typer.Option(help="Drawn for each sample, of which the best is it.", show_default="the model's")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="Regressor that chooses among them.", show_default="the model's")] = None,
    particles: Annotated[int | None, typer.Option(help="Systems drawn for each sample with a reward.", show_default="8")] = None,
    reward_strength: Annotated[float | None, typer.Option(help="Of p(x) exp(strength reward).", show_default="chosen")] = None,
    batch_size: Annotated[str, typer.Option(help="Samples in hand at once; the samples do not depend on it.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
) -> None:
    """Generate samples with a trained model."""
    from moldiff.model_store import model_info
    from moldiff.request import make_request
    from moldiff.verbs import specs_from

    info = model_info(model)
    options = key_values(option or [], "--option")
    controls = specs_from(
        info, formula=formula, z=z, compositions=compositions, elements=elements, exclude=exclude, require=require,
        n_elements=n_elements, charge=charge, valences=valences, redraws=redraws,
        keep=keep, keep_atoms=keep_atoms, keep_elements=keep_elements, keep_cell=keep_cell, keep_smarts=keep_smarts, grow=grow,
        resamplings=resamplings, like=like, between=between, strength=strength,
        smiles=smiles, positions=positions, conditions=condition, companions=companions,
        guidance=guidance, guidance_function=guidance_function, guidance_scale=guidance_scale, reward=reward, target=target,
        particles=particles, reward_strength=reward_strength, candidates=candidates,
        judge=judge, prototypes=prototypes, symmetry=symmetry,
    )  # fmt: skip
    request = make_request(
        info, n, seed=seed, steps=steps, sampler=sampler, options=options, grid=grid, temperature=temperature, size=size,
        settle=settle, controls=controls,
    )  # fmt: skip
    from moldiff.device import check_batch_size, resolve_device

    place = resolve_device(device)
    check_batch_size(batch_size, place)
    from moldiff import generate as runs

    extras = runs.Extras(relax, time_limit, clusters)
    extras.check(info.config.kind)
    folder = runs.open_run(out, request, place.type, resume, model, extras)
    from rich.console import Console

    from moldiff.terminal import progress_bars, run_table

    console = Console(stderr=True)
    for sentence in request.cautions(info):
        console.print(f"note: {sentence}", style="yellow", highlight=False, soft_wrap=True)
    if runs.finished(folder):
        result = runs.read_result(folder)
    else:
        from moldiff.generator import Generator

        with console.status(f"loading {info.name}"):
            generator = Generator(info, info.denoiser(), place)
        with progress_bars(console, f"{info.name}, {request.calls_each} calls", request.n) as (tell, stage):
            result = runs.run(generator, request, folder, batch_size, tell, console.print, stage, extras)
    Console().print(run_table(result, info.name))


def read_asked(path: Path, options: Mapping[str, bool]) -> dict[str, Any]:
    """The values of a settings file by option, as the command line would have them.

    ``options`` says of each option whether it may be repeated. Keys are the options without dashes, or the arguments of
    ``Generator.sample``. Raises ``BadRequest`` for a file that can't be read and a key that is no option.
    """
    import yaml

    try:
        asked = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise BadRequest(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(asked, Mapping):
        raise BadRequest(f"{path} must hold options and their values (n: 100)")
    found: dict[str, Any] = {}
    for key, value in asked.items():
        name = str(key).replace("-", "_")
        name = _ALSO_CALLED.get(name, name)
        if name not in options:
            raise unknown(f"option in {path}", str(key), sorted(options))
        if value is None:
            continue
        repeated = options[name]
        if isinstance(value, Mapping):
            value = [f"{k}={_text(v, '..')}" for k, v in value.items()]
        elif repeated:
            value = [str(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
        elif isinstance(value, (list, tuple)):
            value = _text(value, "-" if name in ("size", "n_elements", "grow") else ",")
        if isinstance(value, list) and not repeated:
            raise BadRequest(f"{path}: {key} takes one value")
        found[name] = value
    return found


def _text(value: Any, joined: str) -> str:
    """A value as it is written on the command line; of several, the text between them."""
    return joined.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def key_values(items: list[str], flag: str) -> dict[str, float]:
    """Read ``KEY=NUMBER`` items; raises ``BadRequest`` for anything else."""
    values = {}
    for item in items:
        key, equals, text = item.partition("=")
        try:
            values[key] = float(text)
        except ValueError:
            equals = ""
        if not equals or not key:
            raise BadRequest(f"{flag} takes KEY=NUMBER, found {item!r}")
    return values
