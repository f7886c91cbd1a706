"""The commands about folders: ``moldiff data ...`` and ``moldiff models ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moldiff.errors import BadRequest

#: How all commands present themselves.
PLAIN: dict[str, Any] = {"add_completion": False, "no_args_is_help": True, "pretty_exceptions_enable": False}
data = typer.Typer(help="Prepare data sets and look at them.", **PLAIN)
models = typer.Typer(help="The models of the package, and model folders.", **PLAIN)


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
        str, typer.Option("--with", help="gfn2-xtb, counts, chgnet, rdkit:NAME[,NAME], module:Calculator or :function of atoms.")
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
