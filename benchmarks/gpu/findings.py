"""What a check found: a figure and its limit, or why there is none."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flowturbo_trt.sampling.errors import FlowTurboError

Status = Literal["passed", "failed", "not run"]
_SIGNS = {"passed": "✓", "failed": "✗", "not run": "–"}


@dataclass(frozen=True)
class Finding:
    """One check: a `value` and the `limit` it was held against, as text; `why` where there is more to say."""

    name: str
    status: Status
    value: float | None = None
    limit: str | None = None
    why: str | None = None

    def __str__(self) -> str:
        parts = [f"{_SIGNS[self.status]} {self.name}"]
        parts += ["not run"] if self.status == "not run" else []
        parts += [] if self.value is None else [f"{self.value:.4g} ({self.limit})"]
        parts += [] if self.why is None else [self.why]
        return ": ".join(parts)


class Findings:
    """The findings about one target, told to `say` line by line as they come."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.all: list[Finding] = []
        self._say = say

    def add(self, finding: Finding) -> None:
        self.all.append(finding)
        self._say(str(finding))

    def check(self, name: str, value: float, limit: str, *, met: bool, why: str | None = None) -> None:
        """Record a figure and whether it keeps to its limit."""
        self.add(Finding(name, "passed" if met else "failed", float(value), limit, why))

    def skip(self, name: str, why: str) -> None:
        self.add(Finding(name, "not run", why=why))

    def run(self, name: str, check: Callable[[], None]) -> None:
        """Run a check; one that breaks has failed, and the next is run nevertheless."""
        try:
            check()
        except Exception as error:  # whatever goes wrong on an unknown machine is a finding
            self.add(Finding(name, "failed", why=reason_of(error)))

    @property
    def failed(self) -> bool:
        return any(finding.status == "failed" for finding in self.all)

    def as_data(self) -> list[dict[str, Any]]:
        """Return the findings for JSON, which knows no infinity: identical images have that many dB."""
        return [asdict(finding) | {"value": _finite(finding.value)} for finding in self.all]


def reason_of(error: Exception) -> str:
    """Return an error in one line; those of others with their kind, which often says most."""
    kind = "" if isinstance(error, FlowTurboError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:300]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
