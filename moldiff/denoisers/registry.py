"""Networks by name, imported only when asked for."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from torch import nn

from moldiff.denoisers.base import Signature
from moldiff.errors import BadRequest, unknown

NETWORKS: dict[str, str | type[nn.Module]] = {
    "thin_pair": "moldiff.denoisers.thin_pair:ThinPair",
    "cspnet": "moldiff.denoisers.cspnet:CSPNet",
    "egnn": "moldiff.denoisers.egnn:EGNN",
    "periodic_tensor_product": "moldiff.denoisers.periodic_tensor_product:PeriodicTensorProduct",
    "tensor_product": "moldiff.denoisers.tensor_product:TensorProductNetwork",
}

# an option's annotation (a string: annotations are not evaluated here) -> the types that YAML may give it, and their name
_PLAIN: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a word"),
}


def register_network(name: str, network: type[nn.Module]) -> None:
    """Make a network of your own known to configurations by ``name``; a name that is taken raises ``BadRequest``.

    Its constructor takes a ``Signature`` and then keyword options with defaults.
    """
    if name in NETWORKS:
        raise BadRequest(f"there is a network {name!r} already")
    NETWORKS[name] = network


def network_class(name: str) -> type[nn.Module]:
    """The class behind a name; an unknown name raises ``BadRequest`` with the nearest right one."""
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    found = NETWORKS[name]
    if isinstance(found, str):
        module, _, attribute = found.partition(":")
        loaded: type[nn.Module] = getattr(import_module(module), attribute)
        return loaded
    return found


def network_options(name: str) -> dict[str, Any]:
    """The options of a network and their defaults."""
    parameters = list(inspect.signature(network_class(name).__init__).parameters.values())[2:]
    return {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _check(name: str, options: dict[str, Any]) -> None:
    cls = network_class(name)
    known = network_options(name)
    parameters = inspect.signature(cls.__init__).parameters
    for key, value in options.items():
        if key not in known:
            raise unknown(f"option of network {name!r}:", key, known)
        kinds, words = _PLAIN.get(str(parameters[key].annotation), ((), ""))
        fits = isinstance(value, kinds) and (isinstance(value, bool) == (kinds == (bool,)))
        if kinds and not fits:
            raise BadRequest(f"option {key!r} of network {name!r} must be {words}, found {value!r}")
        # sizes and counts: one may be nothing only where nothing is what it is by default
        if kinds == (int,) and value < 1 and not (value == 0 and known[key] == 0):
            raise BadRequest(f"option {key!r} of network {name!r} must be at least 1, found {value!r}")


def build_network(name: str, signature: Signature, **options: Any) -> nn.Module:
    """A network with fresh weights for a signature.

    Raises ``BadRequest`` for an unknown name or option (with the nearest right one) and for a value of the wrong kind.
    """
    _check(name, options)
    return network_class(name)(signature, **options)
