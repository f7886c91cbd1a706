"""Model folders: weights, settings, card, sizes and reference, each named with its SHA-256 in a manifest.

A folder carries what its use needs offline. Nothing in it can run code: settings are YAML that is validated, weights are
safetensors, and pickles are refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from moldiff.config import Config, load_config
from moldiff.errors import BadRequest, DamagedFile, unknown

if TYPE_CHECKING:
    from torch import nn

    from moldiff.data.companions import CompanionTable
    from moldiff.denoisers.base import NetworkDenoiser
    from moldiff.denoisers.regressor import Regressor
    from moldiff.evaluation.crystals.templates import Templates
    from moldiff.evaluation.reference import Reference

SHIPPED = Path(__file__).parent / "models"
MANIFEST, WEIGHTS, SETTINGS, SIZES, CARD = "manifest.json", "weights.safetensors", "config.yaml", "sizes.json", "README.md"
REFERENCE, ELEMENT_COUNTS = "reference.safetensors", "element_counts.json"
#: Files of a model folder that must be there; the reference may be missing (novelty is then unknown), and so may the table of
#: numbers of elements (then they are not held).
NEEDED = (WEIGHTS, SETTINGS, SIZES, CARD)
#: Endings of files that are pickles, or may be: loading one can run any code.
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".joblib")


@dataclass(frozen=True)
class ModelInfo:
    """A model folder that was checked, its weights still on disk.

    ``sizes`` counts the training systems by number of atoms, ``element_counts`` (maybe None) by number of atoms and by how
    many of them are of each element, the commonest first ((3, 1, 1) for ABO3); ``files`` maps each file to its SHA-256.
    """

    name: str
    folder: Path
    config: Config
    sizes: dict[int, int]
    files: dict[str, str]
    element_counts: dict[int, dict[tuple[int, ...], int]] | None = None

    #: The file of learnt symmetries, in models that have them.
    TEMPLATES: ClassVar[str] = "templates.safetensors"
    #: That of training systems' values of conditions, in models with companions.
    COMPANIONS: ClassVar[str] = "companions.safetensors"

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights."""
        return self.files[WEIGHTS]

    @property
    def card(self) -> str:
        """The model card, Markdown."""
        return (self.folder / CARD).read_text(encoding="utf-8")

    @cached_property
    def n_parameters(self) -> int:
        """Number of stored weights, read from the header of their file."""
        from math import prod

        from safetensors import safe_open

        with safe_open(self.folder / WEIGHTS, framework="pt") as file:
            return sum(prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 (not a mapping)

    @property
    def has_templates(self) -> bool:
        """Whether it has learnt symmetries of compositions."""
        return self.TEMPLATES in self.files

    def templates(self) -> Templates:
        """The symmetries that it has learnt for compositions."""
        from moldiff.evaluation.crystals.templates import Templates

        return Templates.load(self.folder / self.TEMPLATES)

    @cached_property
    def companions(self) -> CompanionTable | None:
        """The training systems of which companions of what is asked are drawn, or None where the folder has none."""
        from moldiff.data.companions import CompanionTable

        return CompanionTable.load(self.folder / self.COMPANIONS) if self.COMPANIONS in self.files else None

    def reference(self) -> Reference | None:
        """The hashes and statistics of the training data, or None where the folder has none."""
        if REFERENCE not in self.files:
            return None
        from moldiff.evaluation.reference import load_reference

        return load_reference(self.folder / REFERENCE)

    def denoiser(self) -> NetworkDenoiser:
        """The network with its weights, on the CPU, in evaluation mode.

        Raises ``DamagedFile`` where they don't fit, ``BadRequest`` for a regressor.
        """
        from moldiff.assemble import build_denoiser

        denoiser = build_denoiser(self.config)
        self._load_into(denoiser)
        return denoiser.eval()

    def regressor(self) -> Regressor:
        """The regressor with its weights, as ``denoiser``; raises ``BadRequest`` for a model that makes samples."""
        from moldiff.assemble import build_regressor

        regressor = build_regressor(self.config)
        self._load_into(regressor)
        return regressor.eval()

    def _load_into(self, module: nn.Module) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.folder / WEIGHTS
        try:
            module.load_state_dict({key: value.float() for key, value in load_file(path).items()})
        except (OSError, SafetensorError, RuntimeError) as error:
            raise DamagedFile(f"{path} does not fit its {SETTINGS}: {str(error).splitlines()[0]}") from None


def shipped_models() -> dict[str, Path]:
    """The folders of the models in the package, by name."""
    return {p.parent.name: p.parent for p in sorted(SHIPPED.glob(f"*/{MANIFEST}"))}


def list_models() -> list[ModelInfo]:
    """Every model of the package, checked."""
    return [model_info(folder) for folder in shipped_models().values()]


def find_model(name_or_folder: str | Path) -> Path:
    """The folder of a model given by its name or path; raises ``BadRequest`` for a name or path that is none.

    A pickle is refused here, by its name alone.
    """
    path, known = Path(name_or_folder).expanduser(), shipped_models()
    if str(name_or_folder) in known and not (path / MANIFEST).is_file():
        return known[str(name_or_folder)]
    if path.is_file():
        if path.suffix.lower() in PICKLES:
            raise DamagedFile(f"{path} is a pickle, which could run code: moldiff loads model folders with {WEIGHTS} only")
        raise BadRequest(f"{path} is a file; a model is a folder with {MANIFEST} (or one of: {', '.join(known) or 'none'})")
    if path.is_dir():
        return path
    if len(path.parts) > 1:
        raise BadRequest(f"no such model folder: {path}")
    raise unknown("model", str(name_or_folder), known)


def model_info(name_or_folder: str | Path) -> ModelInfo:
    """Check a model's files against its manifest and read its settings; the weights are hashed, not loaded.

    Raises ``BadRequest`` for an unknown model, ``DamagedFile`` for a pickle and for a missing, truncated or altered file.
    """
    folder = find_model(name_or_folder)
    refused = next((p.name for p in sorted(folder.iterdir()) if p.suffix.lower() in PICKLES), None)
    if refused is not None:
        raise DamagedFile(f"{folder / refused} is a pickle, which could run code: moldiff loads {WEIGHTS} only")
    files = _check(folder)
    try:
        sizes = {int(k): int(v) for k, v in json.loads((folder / SIZES).read_text(encoding="utf-8"))["n_atoms"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"{folder / SIZES} holds no size histogram: {error}") from None
    config = load_config(folder / SETTINGS)
    return ModelInfo(config.name, folder, config, sizes, files, _element_counts(folder) if ELEMENT_COUNTS in files else None)


def _element_counts(folder: Path) -> dict[int, dict[tuple[int, ...], int]]:
    try:
        rows = json.loads((folder / ELEMENT_COUNTS).read_text(encoding="utf-8"))["by_n_atoms"]
        table = {int(n): {tuple(map(int, k.split("-"))): int(v) for k, v in row.items()} for n, row in rows.items()}
        if any(sum(shares) != n or min(shares) < 1 or v < 0 for n, row in table.items() for shares, v in row.items()):
            raise ValueError("numbers of atoms of the elements that don't sum to that of all")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"{folder / ELEMENT_COUNTS} holds no table of numbers of elements: {error}") from None
    return table


@dataclass(frozen=True)
class Model:
    """A model with its weights in memory."""

    info: ModelInfo
    denoiser: NetworkDenoiser

    @property
    def config(self) -> Config:
        """The model's settings."""
        return self.info.config


def load_model(name_or_folder: str | Path) -> Model:
    """A model by name or folder, checked first and then loaded; raises as ``model_info`` does."""
    info = model_info(name_or_folder)
    return Model(info, info.denoiser())


def write_manifest(folder: Path, name: str) -> None:
    """Write the manifest of all files that lie in a model folder."""
    from moldiff.data.store import write_atomically

    files = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != MANIFEST and not path.name.startswith("."):
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    text = json.dumps({"format": 1, "name": name, "files": files}, indent=1) + "\n"
    write_atomically(folder / MANIFEST, text.encode())


def _check(folder: Path) -> dict[str, str]:
    manifest = folder / MANIFEST
    try:
        listed: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        wanted = {name: (int(row["bytes"]), str(row["sha256"])) for name, row in listed.items()}
    except FileNotFoundError:
        raise BadRequest(f"{folder} is not a model folder: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"{manifest} is not a readable manifest: {error}") from None
    for name in NEEDED:
        if name not in wanted:
            raise DamagedFile(f"{manifest} lists no {name}")
    for name, (size, digest) in wanted.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise DamagedFile(f"{path} is listed in {MANIFEST} and missing")
        if path.stat().st_size != size:
            raise DamagedFile(f"{path} is truncated or altered: {path.stat().st_size:,} bytes instead of {size:,}")
        if _sha256(path) != digest:
            raise DamagedFile(f"{path} was altered: its SHA-256 is not the one in {MANIFEST}")
    return {name: digest for name, (_, digest) in wanted.items()}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
