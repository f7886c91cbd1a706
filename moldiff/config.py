"""Every setting as a pydantic model; YAML in, YAML out. Names of parts are looked up in registries, never imported."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moldiff.errors import BadRequest


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class _Open(BaseModel):
    """Options of a swappable part: checked by the part's own constructor, which names the wrong one."""

    model_config = ConfigDict(extra="allow")


class ScheduleConfig(_Open):
    """A noise schedule by name, with its own options."""

    name: str


class FieldConfig(_Open):
    """The process of one diffused field, with its own options."""

    process: str
    schedule: ScheduleConfig = ScheduleConfig(name="variance_exploding")


class NetworkConfig(_Open):
    """A denoiser network by name, with its own options."""

    name: str = "thin_pair"


class DataConfig(_Strict):
    """Which prepared data set to train on.

    ``part`` takes a share of the training split, from and to fractions of one fixed random order ([0, 0.5] and [0.5, 1] are
    halves that share nothing); ``skip_unknown`` leaves out systems that the model can't represent instead of refusing the data.
    ``also`` names further data sets whose training splits a regressor learns from beside it (all of them, whatever ``part``).
    """

    name: str
    root: str | None = None
    split: str = "train"
    held_out: str = "val"
    part: tuple[float, float] | None = None
    skip_unknown: bool = False
    also: list[str] = Field(default_factory=list)


class TrainingConfig(_Strict):
    """How to train. Either limit ends the run and drives the fall of the learning rate.

    ``start_from`` names a model whose weights are the first ones. Then ``condition_lr`` multiplies the learning rate of the
    weights that it lacks and of those of all conditions, and ``pull`` draws its own weights back to where they began: each step
    moves them by rate * pull of the way, as weight decay moves weights to zero.
    """

    batch_size: int = Field(128, ge=1)
    bucket_width: int = Field(1, ge=1)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    warmup: int = Field(500, ge=0)
    decay_from: float = Field(0.4, ge=0, lt=1)
    clip: float = Field(1.0, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    self_conditioning: float = Field(0.5, ge=0, le=1)
    condition_dropout: float = Field(0.12, ge=0, le=1)  # of all conditions together: the null condition of guidance
    condition_dropout_each: float = Field(0.3, ge=0, le=1)  # of each on its own, in models of several
    condition_alone: float = Field(0.0, ge=0, le=1)  # share of the systems that are told one condition only, as people often ask
    companion_share: float = Field(0.6, ge=0, le=1)  # share of the systems that are told all companions, whatever else
    clean_share: float = Field(0.5, ge=0, le=1)  # of a regressor's training systems without noise
    given_graph: float = Field(0.0, ge=0, le=1)  # shares of the systems whose graph, whose places and of which a part is known,
    given_places: float = Field(0.0, ge=0, le=1)  # for networks with the option ``given``
    given_parts: float = Field(0.0, ge=0, le=1)
    given_symmetry: float = Field(0.0, ge=0, le=1)  # share of the crystals whose noise keeps their own space group
    time_power: float = Field(1.0, gt=0)  # above 1: more training at low noise, where geometry is decided
    start_from: str | None = None
    condition_lr: float = Field(1.0, gt=0)
    pull: float = Field(0.0, ge=0)
    max_steps: int | None = Field(None, ge=1)
    max_minutes: float | None = Field(None, gt=0)
    seed: int = 0
    save_minutes: float = Field(5.0, gt=0)
    sample_minutes: float | None = Field(10.0, gt=0)
    n_monitor: int = Field(200, ge=1)
    monitor_calls: int = Field(50, ge=2)
    log_every: int = Field(50, ge=1)


class SamplingConfig(_Strict):
    """How to sample by default: ``steps`` network calls (for one-call samplers), on a named time grid."""

    sampler: str = "ddpm"
    options: dict[str, Any] = {}
    steps: int = Field(100, ge=2)
    grid: str = "uniform"
    self_conditioning: bool = True
    temperature: float = Field(1.0, gt=0)
    temperature_few: float | None = Field(None, gt=0)  # the same below 50 calls; None for no other
    candidates: int = Field(1, ge=1, le=64)  # crystals of a composition drawn for every sample; the best ranked is it
    prototypes: str | None = None  # where predictions of a composition begin: aflow, or a prepared data set
    judge: str | None = None  # the regressor, by name or folder, that chooses among candidates of molecules
    valences: str = Field("free", pattern="^(held|free)$")  # of molecules: whether sums of bond orders are kept right
    settle: float = Field(0.0, ge=0, le=0.5)  # share of the calls that settle positions at the end, from 50 calls on
    conformers: str = Field("embedding", pattern="^(embedding|noise)$")  # where the way to conformers of a SMILES begins
    redraws: int = Field(0, ge=0, le=20)  # times, at most, that a crystal whose atoms meet is drawn anew
    n_elements: str = Field("trained", pattern="^(trained|any)$")  # of de novo crystals, where the model has a table of them
    settle_with: str | None = None  # the model, by name or folder, whose network settles them; None for its own


class ConditionStats(_Strict):
    """What training found of a condition: by what it is standardised, and where it was seen.

    ``low`` and ``high`` are the 1st and 99th percentile, ``least`` and ``greatest`` the ends, of ``known`` training systems, all
    in ``unit``. A class has mean 0 and std 1: its standardised value is its number.
    """

    unit: str = ""
    mean: float
    std: float = Field(gt=0)
    low: float
    high: float
    least: float
    greatest: float
    known: int = Field(ge=0)

    def standardise(self, value: Any) -> Any:
        """A value (or array, or tensor) in ``unit`` as the network sees it."""
        return (value - self.mean) / self.std

    def physical(self, value: Any) -> Any:
        """The inverse of ``standardise``."""
        return value * self.std + self.mean


class Config(_Strict):
    """One model: data, vocabulary, fields, network, training, sampling."""

    name: str
    kind: str = Field("molecule", pattern="^(molecule|crystal)$")
    bonds: str = Field("generated", pattern="^(generated|edm|rdkit)$")
    data: DataConfig
    vocabulary: dict[str, list[int]]
    fields: dict[str, FieldConfig]
    given: list[str] = []
    conditions: list[str] = []
    companions: list[str] = []  # those of them that are drawn from training systems near to what is asked, where nobody asks
    condition_classes: dict[str, int] = {}  # conditions that are classes 0 .. K - 1 rather than numbers: {name: K}
    targets: list[str] = []  # a regressor: the columns that it predicts; it makes no samples
    condition_stats: dict[str, ConditionStats] = {}  # of conditions and targets, filled by training from its data
    network: NetworkConfig = NetworkConfig()
    max_atoms: int = Field(64, ge=1)
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _companions_are_conditions(self) -> Config:
        wrong = [name for name in self.companions if name not in self.conditions]
        if wrong:
            raise ValueError(f"companions are conditions that are drawn, and {wrong[0]!r} is not among the conditions")
        return self

    @property
    def needs_graph(self) -> bool:
        """Whether all of its training was with known graphs, so that it makes positions and nothing else."""
        return self.training.given_graph == 1

    def to_yaml(self) -> str:
        """The settings as YAML, in the order of the models."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _keys_at(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """The allowed keys of the settings model that a path inside it leads to."""
    for key in path:
        found = model.model_fields.get(str(key))
        inner = found.annotation if found is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def explain(error: ValidationError, source: str) -> BadRequest:
    """One sentence a fault: where it is, what is wrong, and the nearest right key."""
    parts = []
    for item in error.errors():
        path = ".".join(str(k) for k in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _keys_at(Config, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            parts.append(f"unknown key {path!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        else:
            parts.append(f"{path}: {item['msg'].lower()} (found {item.get('input')!r})")
    return BadRequest(f"{source}: " + "; ".join(parts))


def parse_config(values: dict[str, Any], source: str = "config") -> Config:
    """Validate a nested mapping; a fault raises ``BadRequest`` naming the source, the key and the allowed values."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise explain(error, source) from None


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set ``a.b.c=value`` (value read as YAML) in a nested mapping."""
    for item in overrides:
        path, equals, text = item.partition("=")
        if not equals or not path:
            raise BadRequest(f"--set takes KEY=VALUE, found {item!r}")
        *parents, last = path.split(".")
        place = values
        for key in parents:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise BadRequest(f"--set {item}: {key!r} is a value, not a section")
        place[last] = yaml.safe_load(text)
    return values


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply ``KEY=VALUE`` overrides and validate."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadRequest(f"no such settings file: {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise BadRequest(f"{path} is not readable YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise BadRequest(f"{path} holds no settings (expected a mapping)")
    return parse_config(apply_overrides(values, overrides), str(path))
