"""The command line: thin commands, each of which calls one function of the library."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from moldiff.cli_folders import PLAIN, data, models
from moldiff.cli_generate import generate
from moldiff.errors import MoldiffError

#: Set to 1 to see the traceback behind an error.
DEBUG = "MOLDIFF_DEBUG"

app = typer.Typer(help="3D molecules and crystals by E(3)-equivariant diffusion.", **PLAIN)
app.command()(generate)
app.add_typer(data, name="data")
app.add_typer(models, name="models")


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from moldiff import __version__

        typer.echo(__version__)
        raise typer.Exit


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
