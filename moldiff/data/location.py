"""Where data sets lie, and how a name finds its folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from moldiff.errors import BadRequest, unknown

#: Environment variable that names the folder of all data sets.
VARIABLE = "MOLDIFF_DATA"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def data_root(root: str | Path | None = None) -> Path:
    """Return the folder of all data sets: ``root``, else the environment's ``MOLDIFF_DATA``, else ``~/.cache/moldiff/data``."""
    if root is not None:
        return Path(root).expanduser()
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser()
    return Path.home() / ".cache" / "moldiff" / "data"


def known_data(root: str | Path | None = None) -> list[str]:
    """List the names of the data sets under the root."""
    folder = data_root(root)
    return sorted(p.parent.name for p in folder.glob("*/meta.json")) if folder.is_dir() else []


def find_data(name_or_path: str | Path, root: str | Path | None = None) -> Path:
    """Return the folder of a data set given by its name under the root, or by its path.

    Raises BadRequest, with the known names, when there is none.
    """
    path = Path(name_or_path).expanduser()
    if (path / "meta.json").is_file():
        return path
    if _NAME.fullmatch(str(name_or_path)) and (data_root(root) / str(name_or_path) / "meta.json").is_file():
        return data_root(root) / str(name_or_path)
    names = known_data(root)
    if not names or path.exists() or len(path.parts) > 1:
        raise BadRequest(
            f"{name_or_path} is neither a folder of a prepared data set nor a name under {data_root(root)} "
            f"(known: {', '.join(names) or 'none'}); make one with: moldiff data prepare"
        )
    raise unknown("data set", str(name_or_path), names)


def check_name(name: str) -> str:
    """Return a data set's name; raises BadRequest when it could not be the name of a folder."""
    if not _NAME.fullmatch(name):
        raise BadRequest(f"a data set's name may hold letters, digits, '.', '_' and '-', found {name!r}")
    return name
