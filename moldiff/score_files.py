"""What ``moldiff score`` does: files in, a CSV out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moldiff.errors import BadRequest, unknown
from moldiff.score import METHODS, TIMES, Score, csv_text, score


def score_files(
    files: Sequence[Path], model: str, out: Path | None, method: str = "bound", times: int = TIMES, seed: int = 0,
    device: str = "auto",
) -> list[Score]:  # fmt: skip
    """Read, score, and write a CSV to ``out`` or to standard output."""
    from rich.console import Console

    from moldiff.device import resolve_device
    from moldiff.generator import Generator
    from moldiff.model_store import model_info
    from moldiff.structures import read_anything
    from moldiff.terminal import progress_bar

    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise BadRequest(f"can't write {out}: " + ("it is a folder" if out.is_dir() else "its folder does not exist"))
    info, place = model_info(model), resolve_device(device)
    structures = [one for path in files for one in read_anything(path)]
    console = Console(stderr=True)
    with console.status(f"loading {info.name}"):
        generator = Generator(info, info.denoiser(), place)
    with progress_bar(console, f"{info.name}, scores", len(structures)) as tell:
        found = score(generator, structures, method=method, times=times, seed=seed, progress=tell)
    text = csv_text(found)
    if out is None:
        print(text, end="")
    else:
        from moldiff.data.store import write_atomically

        try:
            write_atomically(out, text.encode())
        except OSError as error:
            raise BadRequest(f"can't write {out}: {error.strerror or error}") from None
        console.print(f"wrote {out} ({len(found)} rows)")
    return found
