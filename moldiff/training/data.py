"""Which data set a training run reads: by path, by name under the data root, or beside the settings file."""

from __future__ import annotations

from pathlib import Path

from moldiff.config import Config
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.errors import BadRequest


def locate_data(config: Config, settings: str | Path | None = None) -> Config:
    """The settings with ``data.root`` and ``data.name`` leading to the data set's folder, absolute.

    Tried in this order: under ``data.root``; ``data.name`` as a path, from here or from the folder of the ``settings`` file;
    by name under ``MOLDIFF_DATA``; in ``../data`` beside the folder of the settings file (the sets that come with the
    repository). Raises ``BadRequest`` where none is there.
    """
    name, root = config.data.name, config.data.root
    here = None if settings is None else Path(settings).resolve().parent
    if root is None and here is not None:
        beside = [here / name, here.parent / "data" / name]
        try:
            folder = find_data(name)
        except BadRequest:
            found = [p for p in beside if (p / "meta.json").is_file()]
            if not found:
                raise
            folder = found[0]
    elif root is not None and (Path(root) / name / "meta.json").is_file():
        folder = Path(root) / name
    else:
        folder = find_data(name, root)
    folder = folder.resolve()
    data = config.data.model_copy(update={"name": folder.name, "root": str(folder.parent)})
    return config.model_copy(update={"data": data})


def training_store(config: Config, data: str | Path | None = None) -> Store:
    """The training split that the settings name, or that of another data set given by name or path."""
    located = config
    if data is None:
        located = locate_data(config)
        data = Path(str(located.data.root)) / located.data.name
    return Store(find_data(data), config.data.split)
