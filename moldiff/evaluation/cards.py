"""One sample as a report shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Any


@dataclass(frozen=True)
class Card:
    """A sample's picture (``svg``, or empty), three lines of text, whether it is ``good``, and what the 3D view shows of it.

    ``beside`` is the picture of what the sample should be, where that is known. ``model`` holds ``format`` and ``text`` for
    3Dmol, for crystals also ``edges``: pairs of points (Å) of the cell's edges.
    """

    name: str
    text: str
    state: str
    good: bool
    svg: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    beside: str = ""

    def html(self, key: str) -> str:
        """Write the card; ``key`` is the place of its model in the report's data."""
        link = f' data-key="{escape(key, quote=True)}" tabindex="0"' if self.model else ""
        picture = self.svg or '<div class="blank">nothing to draw</div>'
        if self.beside:
            picture = f'<div class="pair"><div>{picture}predicted</div><div>{self.beside}true</div></div>'
        kind = ("good" if self.good else "bad") + (" wide" if self.beside else "")
        name, text, state = escape(self.name), escape(self.text), escape(self.state)
        return (
            f'<figure class="card {kind}"{link}>{picture}<figcaption><b title="{name}">{name}</b><br>'
            f'<span title="{text}">{text}</span><br><i title="{state}">{state}</i></figcaption></figure>'
        )
