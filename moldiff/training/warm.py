"""Warm start: the weights of a trained model as the first weights of another, and settings made from a model's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moldiff.assemble import build_denoiser, build_regressor
from moldiff.config import Config
from moldiff.errors import BadRequest

#: Weights of one condition, as ``denoisers.layers.embeddings.ConditionEmbedding`` calls them.
_CONDITION = re.compile(r"(?P<before>.*\bcondition\.each\.)(?P<index>\d+)(?P<after>\..*)")
#: Weights of what a network is told of known entries, zero at first.
_GIVEN = re.compile(r".*\bgiven_(atoms|pairs)")
#: What a regressor says, a row of weights for each target.
_TARGETS = re.compile(r"readout\.out\.(weight|bias)")
#: Options of a network that may differ from the base's.
_FREE = ("precision", "given")
_SIZES = "time.size.weight"
#: How a model of thousands of steps is trained further on a small data set, in minutes: the weights that were there move slowly
#: and are pulled back to where they began, those of new conditions faster. What the model can do is kept that way.
FINE_TUNING: dict[str, Any] = {
    "batch_size": 32,
    "lr": 2e-4,
    "warmup": 50,
    "decay_from": 0.3,
    "ema": 0.995,
    "condition_dropout": 0.15,
    "condition_lr": 10.0,
    "pull": 0.5,
    "max_steps": None,
    "max_minutes": 5.0,
    "save_minutes": 2.0,
    "sample_minutes": None,
    "log_every": 50,
}


def fine_tuning_config(base: Config, start_from: str, data: str, conditions: Sequence[str], name: str | None = None) -> Config:
    """Settings that train a model further on a data set: its own, with further ``conditions`` and ``FINE_TUNING``.

    A regressor learns the ``conditions`` as targets, in place of its own; without any it learns its own anew.
    Systems that the model can't represent are left out (``data.skip_unknown``).
    """
    new = [c for c in dict.fromkeys(conditions) if c not in base.conditions]
    section = base.data.model_copy(
        update={"name": data, "root": None, "split": "train", "held_out": "val", "part": None, "skip_unknown": True, "also": []}
    )
    training = base.training.model_copy(update={**FINE_TUNING, "start_from": start_from})
    label = name or "-".join([base.name, *([data] if data != base.data.name else []), *new])
    changes: dict[str, Any] = {"name": label, "data": section, "training": training, "conditions": [*base.conditions, *new]}
    if base.targets:
        changes |= {"conditions": [], "targets": list(dict.fromkeys(conditions)) or base.targets}
    return base.model_copy(update=changes)


def inherit_conditions(config: Config, base: Config) -> Config:
    """The settings with the base's statistics of what both know: its weights were trained on values so scaled."""
    known = (*config.conditions, *config.targets)
    kept = {name: found for name, found in base.condition_stats.items() if name in known}
    return config.model_copy(update={"condition_stats": {**config.condition_stats, **kept}})


def warm_weights(config: Config, base: Config, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a denoiser for ``config`` that is the model ``base`` with these ``weights`` where no new condition is known.

    Conditions are found by their names; new ones begin at zero. Raises ``BadRequest``, in one sentence, for another kind,
    vocabulary, process or network.
    """
    _check_same(config, base)
    torch.manual_seed(config.training.seed)
    fresh = build_denoiser(config).state_dict()
    unused = dict(weights)
    for key, value in fresh.items():
        old_key = _old_key(key, config, base)
        if old_key is None:
            continue  # a new condition, or the first word on what is known
        old = unused.pop(old_key, None)
        if old is None:
            raise BadRequest(f"{base.name} has no weights {old_key!r}, which {config.name} needs: their networks differ")
        if key.endswith(_SIZES) and old.shape[1:] == value.shape[1:]:
            # sizes beyond the largest are told as the largest: the same rows again, or those that are still asked for
            rows = torch.arange(value.shape[0]).clamp_max(old.shape[0] - 1)
            fresh[key] = old[rows].clone()
        elif old.shape == value.shape:
            fresh[key] = old.clone()
        else:
            raise BadRequest(f"weights {old_key!r} are {_shape(old)} in {base.name} and {_shape(value)} in {config.name}")
    return fresh


def warm_regressor(config: Config, base: Config, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a regressor for ``config`` that is the regressor ``base`` with these ``weights``, where both have a target.

    Further targets begin with fresh weights of their own on what the base knows of molecules. Raises ``BadRequest``, in one
    sentence, as ``warm_weights``.
    """
    _check_same(config, base)
    torch.manual_seed(config.training.seed)
    fresh = build_regressor(config).state_dict()
    for key, value in fresh.items():
        old = weights[key]
        if _TARGETS.fullmatch(key):
            for k, name in enumerate(config.targets):
                if name in base.targets:
                    value[k] = old[base.targets.index(name)]
        elif old.shape == value.shape:
            fresh[key] = old.clone()
        else:
            raise BadRequest(f"weights {key!r} are {_shape(old)} in {base.name} and {_shape(value)} in {config.name}")
    return fresh


def new_weights(config: Config, base: Config, keys: Sequence[str]) -> list[str]:
    """Which parameters of a denoiser for ``config`` the base has no weights for: those of new conditions and known entries."""
    return [key for key in keys if _old_key(key, config, base) is None]


def _old_key(key: str, config: Config, base: Config) -> str | None:
    """The name that a weight of ``config`` has in the base; None for one of what the base is not told."""
    if _GIVEN.fullmatch(key):
        return key if getattr(base.network, "given", False) else None
    found = _CONDITION.fullmatch(key)
    if found is None:
        return key
    name = config.conditions[int(found["index"])]
    if name not in base.conditions:
        return None
    return f"{found['before']}{base.conditions.index(name)}{found['after']}"


def _check_same(config: Config, base: Config) -> None:
    if config.kind != base.kind:
        raise BadRequest(f"{config.name} makes {config.kind}s and can't begin as {base.name}, which makes {base.kind}s")
    for name in dict.fromkeys([*config.vocabulary, *base.vocabulary]):
        new, old = config.vocabulary.get(name), base.vocabulary.get(name)
        if new != old:
            raise BadRequest(f"vocabulary.{name} is {new} in {config.name} and {old} in {base.name}, whose weights don't fit")
    if [*config.fields, *config.given] != [*base.fields, *base.given]:
        own, other = ", ".join([*config.fields, *config.given]), ", ".join([*base.fields, *base.given])
        raise BadRequest(f"{config.name} has the fields {own}; {base.name} has {other}: its weights don't fit")
    for name, options in config.fields.items():
        ours, theirs = options.model_dump(exclude={"weight"}), base.fields[name].model_dump(exclude={"weight"})
        differ = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        if differ:
            raise BadRequest(f"fields.{name}.{differ[0]} differs between {config.name} and {base.name}, whose weights don't fit")
    _check_network(config, base)
    for name in config.conditions:
        new_k, old_k = config.condition_classes.get(name, 0), base.condition_classes.get(name, 0)
        if name in base.conditions and new_k != old_k:
            raise BadRequest(
                f"the condition {name!r} has {new_k or 'no'} classes in {config.name} and {old_k or 'none'} in {base.name}"
            )


def _check_network(config: Config, base: Config) -> None:
    from moldiff.denoisers.registry import network_options

    if config.network.name != base.network.name:
        raise BadRequest(f"{config.name} has the network {config.network.name}, {base.name} has {base.network.name}")
    default = network_options(config.network.name)
    ours, theirs = {**default, **config.network.model_dump()}, {**default, **base.network.model_dump()}
    differ = [f"{k} ({ours.get(k)} instead of {theirs.get(k)})" for k in ours if k not in _FREE and ours[k] != theirs.get(k)]
    if differ:
        raise BadRequest(
            f"the network of {config.name} differs from that of {base.name}, whose weights don't fit: {', '.join(differ)}"
        )


def _shape(value: Tensor) -> str:
    return "x".join(str(k) for k in value.shape) or "one number"
