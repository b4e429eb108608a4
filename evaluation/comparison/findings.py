"""What a comparison finds: one row for each schedule, with where and how it was measured."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]


@dataclass(frozen=True)
class Figure:
    """A measured number, with the central 95 % where they are known."""

    value: float
    interval: Interval | None = None

    @classmethod
    def bounded(cls, value: float, interval: Interval | None) -> "Figure":
        """Make a figure whose interval is left out where it has no end, as of too few samples."""
        return cls(value, interval if interval is not None and all(map(math.isfinite, interval)) else None)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> "Figure":
        """Make a figure of what `describe` returned."""
        return cls(data["value"], None if data["interval"] is None else tuple(data["interval"]))

    def describe(self) -> dict[str, Any]:
        return {"value": self.value, "interval": None if self.interval is None else list(self.interval)}


@dataclass(frozen=True)
class Row:
    """A schedule's figures by the key of their column (table.columns); what is not known is left out."""

    schedule: str
    evaluations: Mapping[str, int]
    figures: Mapping[str, Figure]
    notes: tuple[str, ...] = ()

    @property
    def is_refined(self) -> bool:
        return self.evaluations.get("refiner", 0) > 0


@dataclass(frozen=True)
class Setting:
    """Everything that decides the figures, but for the schedule and the machine.

    `precision` is that of the predictor's engines; `endpoint_count` noises were followed along
    `truth` for the endpoint error; latency is that of batches of `latency_batch` images.
    """

    bundle: str
    bundle_sha256: str
    backend: str
    device: str
    provider: str | None
    threads: int
    precision: str
    guidance: float
    count: int
    labels: str
    seed: int
    extractor: str
    extractor_sha256: str
    reference: str
    reference_sha256: str
    reference_count: int | None
    metrics: tuple[str, ...]
    baseline: str
    truth: str
    endpoint_count: int
    latency_batch: int


@dataclass(frozen=True)
class Shown:
    """The first noises of a run: labels (n), seeds (n), and images (n,H,W,3) uint8 by schedule.

    `truth` are the images where the fine reference trajectory ends.
    """

    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    images: Mapping[str, NDArray[np.uint8]]
    truth: NDArray[np.uint8]


@dataclass(frozen=True)
class Comparison:
    """Rows in the order that was asked for, and what makes them comparable.

    `decoder_gflop` is the decoder's part of every row's operations; `notes` concern all rows.
    """

    setting: Setting
    rows: tuple[Row, ...]
    shown: Shown
    decoder_gflop: float | None
    notes: tuple[str, ...]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    measured_at: str

    def document(self) -> dict[str, Any]:
        """Return what report.json holds, images left out."""
        return {
            "setting": asdict(self.setting),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "measured_at": self.measured_at,
            "decoder_gflop": self.decoder_gflop,
            "notes": list(self.notes),
            "shown": {"labels": list(self.shown.labels), "seeds": list(self.shown.seeds)},
            "rows": [
                {
                    "schedule": row.schedule,
                    "evaluations": dict(row.evaluations),
                    "figures": {key: figure.describe() for key, figure in row.figures.items()},
                    "notes": list(row.notes),
                }
                for row in self.rows
            ],
        }
