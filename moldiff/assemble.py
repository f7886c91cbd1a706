"""From settings to parts: the vocabulary, the diffusion, the denoiser."""

from __future__ import annotations

from torch import nn

from moldiff.config import Config
from moldiff.core.fields import field
from moldiff.core.vocabulary import Vocabulary
from moldiff.denoisers.base import NetworkDenoiser, Signature
from moldiff.denoisers.registry import build_network, network_options
from moldiff.denoisers.regressor import Regressor
from moldiff.diffusion.categorical import Categorical
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.registry import build_diffusion
from moldiff.errors import BadRequest


def build_vocabulary(config: Config) -> Vocabulary:
    """The model's classes of each categorical field."""
    return Vocabulary(config.vocabulary)


def signature_of(config: Config, diffusion: Diffusion, vocabulary: Vocabulary) -> Signature:
    """What a network for these settings must take in and give out; given fields are taken in only."""
    categorical = {}
    for name in (*config.fields, *config.given):
        if field(name).categorical:
            process = diffusion.processes.get(name)
            states = process.n_states if isinstance(process, Categorical) else vocabulary.size(name)
            categorical[name] = (states, vocabulary.size(name))
    continuous = tuple(name for name in (*config.fields, *config.given) if not field(name).categorical)
    classes = tuple(config.condition_classes.get(name, 0) for name in config.conditions)
    return Signature(categorical, continuous, len(config.conditions), config.max_atoms, classes)


def build_denoiser(config: Config) -> NetworkDenoiser:
    """A denoiser with fresh weights for these settings; raises ``BadRequest`` for those of a regressor."""
    if config.targets:
        raise BadRequest(f"{config.name} predicts {', '.join(config.targets)} and makes no samples")
    network, _, diffusion = _build(config)
    return NetworkDenoiser(network, diffusion)


def build_regressor(config: Config) -> Regressor:
    """A regressor with fresh weights for these settings; raises ``BadRequest`` for those of a model that makes samples."""
    if not config.targets:
        raise BadRequest(f"{config.name} makes {config.kind}s and is no regressor: its settings list no targets")
    if config.conditions:
        raise BadRequest("a regressor has targets and no conditions")
    network, signature, diffusion = _build(config)
    width = {**network_options(config.network.name), **config.network.model_dump()}["width"]
    return Regressor(network, signature, diffusion, int(width), len(config.targets))


def _build(config: Config) -> tuple[nn.Module, Signature, Diffusion]:
    vocabulary = build_vocabulary(config)
    fields = {name: options.model_dump() for name, options in config.fields.items()}
    diffusion = build_diffusion(fields, vocabulary)
    options = config.network.model_dump()
    signature = signature_of(config, diffusion, vocabulary)
    return build_network(options.pop("name"), signature, **options), signature, diffusion
