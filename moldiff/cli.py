"""The command line: thin commands, each of which calls one function of the library."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from moldiff.errors import BadRequest, MoldiffError

#: Set to 1 to see the traceback behind an error.
DEBUG = "MOLDIFF_DEBUG"

_PLAIN: dict[str, Any] = {"add_completion": False, "no_args_is_help": True, "pretty_exceptions_enable": False}
app = typer.Typer(help="3D molecules and crystals by E(3)-equivariant diffusion.", **_PLAIN)
data = typer.Typer(help="Prepare data sets and look at them.", **_PLAIN)
models = typer.Typer(help="The models of the package, and model folders.", **_PLAIN)
app.add_typer(data, name="data")
app.add_typer(models, name="models")


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from moldiff import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def generate(
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
    strength: Annotated[
        float | None, typer.Option(help="How far to noise these, or prototypes: 0 to 1.", show_default="0.6 with --like")
    ] = None,
    prototypes: Annotated[
        str | None, typer.Option(help="Crystals: begin at those of a prepared data set, or aflow.", show_default="the model's")
    ] = None,
    symmetry: Annotated[
        str | None, typer.Option(help="Crystals of a formula: learned, none, or space groups.", show_default="learned")
    ] = None,
    smiles: Annotated[str | None, typer.Option(help="Conformers of this molecule.")] = None,
    positions: Annotated[Path | None, typer.Option(help="Types and bonds for the positions in this file.")] = None,
    condition: Annotated[list[str] | None, typer.Option(help="NAME=VALUE or NAME=8..10; may be repeated. Or a CSV.")] = None,
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
        n_elements=n_elements, valences=valences, redraws=redraws,
        keep=keep, keep_atoms=keep_atoms, keep_elements=keep_elements, keep_cell=keep_cell, keep_smarts=keep_smarts, grow=grow,
        resamplings=resamplings, like=like, strength=strength, smiles=smiles, positions=positions, conditions=condition,
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


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="Settings, YAML.", show_default="those of --from")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY.KEY=VALUE; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on exactly where the run stopped.")] = False,
    data: Annotated[str | None, typer.Option(help="Data set by name or folder.", show_default="as in the settings")] = None,
    from_: Annotated[str | None, typer.Option("--from", help="Model to begin with: a name or folder.")] = None,
    condition: Annotated[list[str] | None, typer.Option(help="Property column to learn; may be repeated.")] = None,
    devices: Annotated[str, typer.Option(help="Lightning's devices: auto, a number, or a list such as 0,1.")] = "auto",
    num_nodes: Annotated[int, typer.Option(help="Lightning's num_nodes.")] = 1,
    strategy: Annotated[str, typer.Option(help="Lightning's strategy: auto, ddp ...")] = "auto",
    accelerator: Annotated[str, typer.Option(help="Lightning's accelerator: auto, cpu, gpu ...")] = "auto",
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU.", show_default="all cores")] = None,
) -> None:
    """Train a model from settings and export it, or train one further: --from qm9 --data mine --condition pIC50."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads would starve other processes
    from moldiff.train import train as run

    run(
        config, set_ or [], out, resume=resume, data=data, start_from=from_, conditions=condition or [], threads=threads,
        devices=devices, num_nodes=num_nodes, strategy=strategy, accelerator=accelerator,
    )  # fmt: skip


@app.command()
def evaluate(
    files: Annotated[
        list[Path], typer.Argument(help="SDF, XYZ, extxyz, CSV of SMILES; CIF, POSCAR, CSV of CIFs; a folder or archive of them.")
    ],
    names: Annotated[str | None, typer.Option(help="Names of the sets, comma-separated.")] = None,
    reference: Annotated[
        str, typer.Option(help="A shipped reference, a model folder, a data set, or none.", show_default="qm9 or mp20")
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.json, per_sample.csv and report.html.")] = None,
    relax: Annotated[bool, typer.Option("--relax", help="Relax a random subset: GFN2-xTB or --calculator.")] = False,
    calculator: Annotated[
        str, typer.Option(help="For crystals: chgnet, mace, emt or an import name.", show_default="chgnet with --relax")
    ] = "",
    hull: Annotated[Path | None, typer.Option(help="Crystals: CSV of formulas and formation energies.")] = None,
    element_energies: Annotated[str, typer.Option(help="Crystals: energies of the elements of a calculator (JSON).")] = "",
    truth: Annotated[
        str | None, typer.Option(help="Crystals: the true structures of predictions, files or NAME:SPLIT of a data set.")
    ] = None,
    property_: Annotated[
        list[str] | None, typer.Option("--property", help="NAME=VALUE or NAME=COLUMN that was asked for; may be repeated.")
    ] = None,
    xtb: Annotated[bool, typer.Option("--xtb", help="Molecules: the same as --relax.")] = False,
    n_relax: Annotated[int, typer.Option(help="Samples to relax, and to test with PoseBusters.")] = 200,
    posebusters: Annotated[bool, typer.Option("--posebusters", help="Run PoseBusters on a random subset.")] = False,
    posebusters_energy: Annotated[bool, typer.Option(help="PoseBusters' energy check on or off.")] = True,
    workers: Annotated[int | None, typer.Option(help="Processes.", show_default="one a core")] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds that one relaxation may take.", show_default="60, crystals 120")
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses the random subsets.")] = 0,
    cache: Annotated[bool, typer.Option(help="Remember expensive results.")] = True,
) -> None:
    """Evaluate anyone's samples, side by side with real data."""
    from moldiff.evaluation.api import evaluate_files
    from moldiff.evaluation.conditional import parse_properties
    from moldiff.judges import register_shipped

    register_shipped()
    evaluate_files(
        files, names.split(",") if names else None, None if reference == "none" else reference, out, relax=relax,
        calculator=calculator, hull=hull, element_energies=element_energies, truth=truth,
        properties=parse_properties(property_) if property_ else None, xtb=xtb, n_relax=n_relax, posebusters=posebusters,
        posebusters_energy=posebusters_energy, n_processes=workers, time_limit=time_limit, seed=seed, cache=cache,
    )  # fmt: skip


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Output folder of moldiff generate.")]) -> None:
    """Write report.html into the output folder of a generate run."""
    from moldiff.generate import report_run

    typer.echo(f"wrote {report_run(folder)}")


@app.command()
def bench(
    model: Annotated[str, typer.Option(help="Name of a shipped model, or a model folder.")] = "qm9",
    n: Annotated[int, typer.Option("-n", "--n", help="Number of molecules to draw.")] = 100,
    steps: Annotated[int | None, typer.Option(help="Network calls a molecule.", show_default="the model's own")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU.", show_default="all cores")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the numbers.")] = None,
) -> None:
    """Measure training, sampling and the network on this machine."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from moldiff.bench import bench as measure

    measure(model, n, steps, device, threads, out)


@app.command()
def denoise(
    source: Annotated[Path, typer.Argument(help="Distorted structures: SDF, XYZ, extxyz.")],
    out: Annotated[Path, typer.Option(help="SDF or extxyz to write.")],
    model: Annotated[str, typer.Option(help="Name of a shipped model, or a model folder.")] = "qm9",
    noise: Annotated[float | None, typer.Option(help="Noise in Å a coordinate.", show_default="estimated for each")] = None,
    steps: Annotated[int, typer.Option(help="Network calls a structure.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the classes that have to be made.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
) -> None:
    """Pull distorted molecules back to plausible ones; their bonds stay."""
    from moldiff.denoise import denoise_file

    denoise_file(source, out, model, noise, steps, seed, device)


@app.command()
def score(
    files: Annotated[list[Path], typer.Argument(help="SDF, XYZ, extxyz.")],
    model: Annotated[str, typer.Option(help="Name of a shipped model, or a model folder.")] = "qm9",
    out: Annotated[Path | None, typer.Option(help="CSV to write.", show_default="standard output")] = None,
    method: Annotated[str, typer.Option(help="bound, or flow: the density of positions by the ODE as well.")] = "bound",
    times: Annotated[int, typer.Option(help="Noise levels of the bound.")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
) -> None:
    """Score molecules by how likely they are under a model: a CSV with an anomaly score a row."""
    from moldiff.score_files import score_files

    score_files(files, model, out, method, times, seed, device)


@data.command("prepare")
def data_prepare(
    source: Annotated[str, typer.Argument(help="Files of molecules; or, with --source, the name of the data set.")],
    from_: Annotated[Path | None, typer.Option("--source", help="Where the files are.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of all data sets.", show_default="$MOLDIFF_DATA")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes.", show_default="one a core")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set of this name.")] = False,
) -> None:
    """Turn files of molecules into a data set: moldiff data prepare qm9 --source PATH, or PATH --name mine."""
    from rich.console import Console

    from moldiff.data.prepare import prepare

    if from_ is None and name is None:
        raise BadRequest(f"say how the data set is to be called: moldiff data prepare {source} --name NAME")
    label = name if name is not None else source
    Console().print(prepare(from_ if from_ is not None else source, label, root, workers, overwrite=overwrite))


@data.command("info")
def data_info(
    name: Annotated[str, typer.Argument(help="Name or folder of a data set.")],
    root: Annotated[Path | None, typer.Option(help="Folder of all data sets.", show_default="$MOLDIFF_DATA")] = None,
) -> None:
    """Sizes, elements, bonds, charges and properties of a data set."""
    from rich.console import Console

    from moldiff.data.info import data_info as info

    Console().print(info(name, root))


@data.command("label")
def data_label(
    name: Annotated[str, typer.Argument(help="Name or folder of a data set.")],
    with_: Annotated[
        str, typer.Option("--with", help="gfn2-xtb, chgnet, rdkit:NAME[,NAME], or module:Calculator or :function of ASE atoms.")
    ],
    columns: Annotated[str | None, typer.Option(help="Which columns, comma-separated.", show_default="all it gives")] = None,
    prefix: Annotated[str, typer.Option(help="Goes before the names of the columns.")] = "",
    root: Annotated[Path | None, typer.Option(help="Folder of all data sets.", show_default="$MOLDIFF_DATA")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes.", show_default="one a core")] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds that one system may take.")] = 60.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace columns of these names.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Compute again what failed in an earlier run.")] = False,
) -> None:
    """Add property columns to a data set: moldiff data label mine --with gfn2-xtb. A run that was stopped goes on."""
    from moldiff.label import label

    chosen = [c.strip() for c in columns.split(",") if c.strip()] if columns else []
    report = label(
        name, with_, columns=chosen, prefix=prefix, root=root, n_workers=workers, time_limit=time_limit,
        overwrite=overwrite, retry=retry, progress=True,
    )  # fmt: skip
    typer.echo(str(report))


@models.command("list")
def models_list() -> None:
    """The models of the package."""
    from rich.console import Console

    from moldiff.model_store import list_models
    from moldiff.terminal import models_table

    Console().print(models_table(list_models()))


@models.command("info")
def models_info(model: Annotated[str, typer.Argument(help="Name of a shipped model, or a model folder.")]) -> None:
    """The card of a model, its files checked."""
    from rich.console import Console
    from rich.markdown import Markdown

    from moldiff.model_store import model_info

    info = model_info(model)
    console = Console()
    console.print(Markdown(info.card))
    console.print(f"folder {info.folder}\nSHA-256 of the weights {info.weights_sha256}", soft_wrap=True, highlight=False)


@models.command("export")
def models_export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    data: Annotated[str | None, typer.Option(help="Data set by name or folder.", show_default="as in the settings")] = None,
    storage: Annotated[str, typer.Option(help="How weights are stored: float16, bfloat16, float32.")] = "float16",
) -> None:
    """Make a model folder from a training run."""
    from moldiff.model_export import export_run

    info = export_run(run, out, data, storage=storage)
    typer.echo(f"wrote {info.folder} ({info.n_parameters:,} parameters)")


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


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: an error is one sentence on stderr and exit code 2 (bad request) or 1."""
    from typer.exceptions import Abort, TyperException

    try:
        code = app(arguments, standalone_mode=False, prog_name="moldiff")
        code = code if isinstance(code, int) else 0
    except MoldiffError as error:
        code = _fail(str(error), error.exit_code, error)
    except TyperException as error:
        message = error.format_message()
        code = _fail(message, error.exit_code, error) if message else error.exit_code
    except (KeyboardInterrupt, Abort):
        code = _fail("stopped; what is written is kept, go on with --resume", 130, None)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:  # noqa: BLE001 (nobody should meet a traceback)
        line = (str(error).splitlines() or [""])[0]
        code = _fail(f"{type(error).__name__}: {line} ({DEBUG}=1 shows where)", 1, error)
    sys.exit(code)


def _fail(message: str, code: int, error: BaseException | None) -> int:
    if error is not None and os.environ.get(DEBUG) == "1":
        raise error
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
