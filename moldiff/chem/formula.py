"""Chemical formulas, read into counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

#: A formula of more text than this is none that anybody writes.
MAX_CHARACTERS = 300
#: Brackets within brackets, at most.
MAX_DEPTH = 10
_PART = re.compile(r"([A-Z][a-z]?)(\d+(?:\.\d+)?)?\s*")
_PLAIN = re.compile(rf"(?:{_PART.pattern})+")
_NUMBER = r"(\d+(?:\.\d+)?)?"
_TOKEN = re.compile(rf"\s*(?:(?P<open>[(\[{{])|(?P<close>[)\]}}]){_NUMBER}|(?P<symbol>[A-Z][a-z]?){_NUMBER})")
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")


def parse_formula(text: Any) -> dict[int, float]:
    """Read a formula such as ``LiFePO4``, ``Ca(OH)2``, ``K4[Fe(CN)6]``, ``O6 Na3`` or ``CuSO4·5H2O``: counts by atomic number.

    Elements keep the order in which they first occur. Raises ValueError, in a few words, for what is no formula.
    """
    word = str(text).strip().translate(_SUBSCRIPTS)
    counts: dict[int, float] = {}
    if len(word) > MAX_CHARACTERS:
        raise ValueError(f"a formula of {len(word):,} characters")
    if _PLAIN.fullmatch(word):
        for symbol, number in _PART.findall(word):
            _add(counts, word, symbol, float(number or 1))
    else:
        for part in word.split("·"):
            times, rest = _coefficient(part) if "·" in word else (1.0, part)
            for z, n in _nested(word, rest).items():
                counts[z] = counts.get(z, 0.0) + times * n
    if not counts or min(counts.values()) <= 0:
        raise _not_one(word)
    return counts


def whole_counts(text: Any) -> dict[int, int]:
    """Read a formula whose counts are whole numbers; raises ValueError otherwise."""
    counts = parse_formula(text)
    if any(n != int(n) for n in counts.values()):
        raise ValueError(f"{_short(str(text).strip())} has counts that are no whole numbers of atoms")
    return {z: int(n) for z, n in counts.items()}


def parse_elements(text: Any) -> tuple[int, ...]:
    """Read elements such as ``"Li,Fe,O"`` or ``["Li", "Fe"]`` as atomic numbers in their order, each once.

    Raises ValueError for an unknown symbol and for nothing at all.
    """
    from ase.data import atomic_numbers

    words = re.split(r"[,\s]+", text.strip()) if isinstance(text, str) else [str(one).strip() for one in text]
    words = [word for word in words if word]
    if not words:
        raise ValueError("no element is named")
    for word in words:
        if word not in atomic_numbers or word == "X":
            near = next((symbol for symbol in atomic_numbers if symbol.lower() == word.lower() and symbol != "X"), None)
            raise ValueError(f"there is no element {_short(word)}" + (f"; did you mean {near}?" if near else ""))
    return tuple(dict.fromkeys(int(atomic_numbers[word]) for word in words))


def named_elements(numbers: Sequence[int], most: int = 12, between: str = ", ") -> str:
    """The symbols of atomic numbers, or where they are more than ``most`` their number, first, last and what is left out."""
    from ase.data import chemical_symbols

    z = sorted(numbers)
    if len(z) <= most:
        return between.join(chemical_symbols[k] for k in z)
    gaps = [k for k in range(z[0], z[-1]) if k not in z]
    text = f"{len(z)} elements, {chemical_symbols[z[0]]} to {chemical_symbols[z[-1]]}"
    return text + (f" without {' '.join(chemical_symbols[k] for k in gaps)}" if 0 < len(gaps) <= most else "")


def _coefficient(part: str) -> tuple[float, str]:
    found = re.match(r"\s*(\d+(?:\.\d+)?)?\s*(.*)", part, re.DOTALL)
    assert found is not None
    return float(found.group(1) or 1), found.group(2)


def _nested(word: str, text: str) -> dict[int, float]:
    """Read a formula with brackets; each closing one multiplies what it holds."""
    levels: list[tuple[str, dict[int, float]]] = [("", {})]
    place = 0
    while text[place:].strip():
        token = _TOKEN.match(text, place)
        if token is None or len(levels) > MAX_DEPTH:
            raise _not_one(word)
        place = token.end()
        if token["open"]:
            levels.append((_PAIRS[token["open"]], {}))
        elif token["close"]:
            closing, inner = levels.pop()
            if token["close"] != closing or not inner:
                raise _not_one(word)
            for z, n in inner.items():
                levels[-1][1][z] = levels[-1][1].get(z, 0.0) + n * float(token[3] or 1)
        else:
            _add(levels[-1][1], word, token["symbol"], float(token[5] or 1))
    if len(levels) != 1:
        raise _not_one(word)
    return levels[0][1]


def _add(counts: dict[int, float], word: str, symbol: str, n: float) -> None:
    from ase.data import atomic_numbers

    if symbol not in atomic_numbers or symbol == "X":
        raise ValueError(f"{_short(word)} is not a formula: there is no element {symbol}")
    counts[atomic_numbers[symbol]] = counts.get(atomic_numbers[symbol], 0.0) + n


def _not_one(word: str) -> ValueError:
    return ValueError(f"{_short(word)} is not a formula")


def _short(word: str) -> str:
    return repr(word[:60])
