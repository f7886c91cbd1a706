"""What a check returns: every measured number beside its limit."""

from __future__ import annotations

from dataclasses import dataclass, field


class CheckFailed(AssertionError):
    """A part does not do what it promises; the message names the measurements that are out of bounds."""


@dataclass(frozen=True)
class Measurement:
    """One number and the limit that it must not exceed."""

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """False above the limit and for NaN."""
        return self.value <= self.limit

    def __str__(self) -> str:
        return f"{self.name} = {self.value:.4g} (limit {self.limit:.4g})"


@dataclass
class Report:
    """The measurements of one check, in the order they were made."""

    subject: str
    measurements: list[Measurement] = field(default_factory=list)

    def add(self, name: str, value: float, limit: float) -> None:
        """Record a number that must not exceed its limit."""
        self.measurements.append(Measurement(name, float(value), float(limit)))

    def require(self, name: str, condition: bool) -> None:
        """Record a fact that must hold."""
        self.add(name, 0.0 if condition else 1.0, 0.0)

    @property
    def failures(self) -> list[Measurement]:
        """The measurements above their limits."""
        return [m for m in self.measurements if not m.passed]

    def raise_if_failed(self) -> Report:
        """Return the report, or raise ``CheckFailed`` that names every failure."""
        if self.failures:
            raise CheckFailed(f"{self.subject}: " + "; ".join(str(m) for m in self.failures))
        return self

    def __str__(self) -> str:
        return "\n".join([self.subject, *(f"  {'ok  ' if m.passed else 'FAIL'} {m}" for m in self.measurements)])
