"""What is to be generated: everything that determines the images of a set, down to the bit.

A set of images is a folder:

    plan.json            the plan
    shards/00000.npz     npz: `arr_0` (n,H,W,3) uint8, `label` (n) int64, `seed` (n) uint64
    images/000000.png    png: one file for each image, its label and seed within it as text
    shards/00000.json    png: `first`, `labels` and `seeds` of a shard, written after its images

Image i belongs to shard i // shard_size. Its seed is output 2i, counted from 0, of the generator
SplitMix64 started at the plan's seed: outputs differ from each other for 2^64 of them, so no two images
of a set share a seed. Its label is i modulo the classes where labels are balanced, the top of
output 2i + 1 · classes where they are random, and entry i modulo n of n that are listed. So an
image depends on the plan and its number alone, not on who makes it and when.

The images of a shard are made in batches of `batch`, the last one smaller. Both are part of the plan,
for an image's last bits may depend on the batch it rides in. They do not depend on the number of
threads, but may on the kind of processor: sets are the same to the bit on machines of one kind.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.noise import MAX_SEED
from flowturbo_trt.sampling.schedule import Schedule, named_table

KIND = "flowturbo_trt images"
VERSION = 1
PLAN = "plan.json"
FILE_FORMATS = ("npz", "png")
LABEL_RULES = ("balanced", "random")


class GenerationError(FlowTurboError):
    """A set of images that cannot be begun, continued or read."""


class PlanError(GenerationError):
    """A plan that makes no sense, or cannot be read."""


@dataclass(frozen=True)
class GenerationPlan:
    """What determines the images of a set; `generation.request.make_plan` makes one for a bundle.

    `bundle` is the bundle's generation.identity, which names all its files by theirs; `labels` is
    balanced, random, or a list; `classes` are the lowest and the highest label of the model; `batch` is
    the images of one request, which the bundle's own batch sizes divide further; `image` is (H,W);
    `software` holds the versions of the packages that the bits depend on.
    """

    bundle: str
    num: int
    schedule: str
    guidance: float
    labels: str | tuple[int, ...]
    classes: tuple[int, int]
    seed: int
    format: str
    shard_size: int
    batch: int
    image: tuple[int, int]
    backend: str
    device: str
    provider: str | None
    software: dict[str, str]

    def __post_init__(self) -> None:
        for name in ("num", "shard_size", "batch"):
            if getattr(self, name) < 1:
                raise PlanError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise PlanError(f"seed {self.seed} is not from 0 to 2^64 - 1")
        if self.format not in FILE_FORMATS:
            raise PlanError(f"format {self.format!r} is not known; use {' or '.join(FILE_FORMATS)}")
        if not self.labels or (isinstance(self.labels, str) and self.labels not in LABEL_RULES):
            raise PlanError(f"labels are {self.labels!r}, expected {', '.join(LABEL_RULES)}, or a list")
        # Which tables there are the bundle knows.
        if named_table(self.schedule) is None:
            Schedule.parse(self.schedule)

    @property
    def shards(self) -> int:
        """The number of shards; the last may be smaller."""
        return math.ceil(self.num / self.shard_size)

    def indices(self, shard: int) -> range:
        """Return the images of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num))

    def batches(self, shard: int) -> list[range]:
        """Return the images of a shard, batch by batch."""
        images = self.indices(shard)
        return [images[start : start + self.batch] for start in range(0, len(images), self.batch)]

    def seed_of(self, index: int) -> int:
        """Return the seed of an image's noise."""
        return splitmix64(self.seed, 2 * index)

    def label_of(self, index: int) -> int:
        """Return the label of an image."""
        if not isinstance(self.labels, str):
            return self.labels[index % len(self.labels)]
        low, high = self.classes
        count = high - low + 1
        if self.labels == "balanced":
            return low + index % count
        return low + (splitmix64(self.seed, 2 * index + 1) * count >> 64)


def splitmix64(seed: int, index: int) -> int:
    """Return output `index` of SplitMix64 started at `seed` (Steele, Lea and Flood, 2014, figure 16)."""
    z = seed + (index + 1) * 0x9E3779B97F4A7C15 & MAX_SEED
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MAX_SEED
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MAX_SEED
    return z ^ z >> 31


def plan_json(plan: GenerationPlan) -> str:
    """Return the content of plan.json."""
    document = {"kind": KIND, "version": VERSION, **dataclasses.asdict(plan)}
    # A line for each field: indented, a list of labels would take one for each label.
    lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in document.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_plan(folder: Path) -> GenerationPlan:
    """Read the plan of a folder; raises PlanError where there is none that can be read."""
    path = folder / PLAN
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PlanError(
            f"{folder}: holds no generated images ({PLAN} not found); give a folder that `generate` wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise PlanError(f"{path}: cannot be read ({error})") from error
    if not isinstance(document, dict) or document.pop("kind", None) != KIND:
        raise PlanError(f"{path}: is no plan of generated images; give a folder that `generate` wrote")
    if (version := document.pop("version", None)) != VERSION:
        raise PlanError(
            f"{path}: version {version} is not {VERSION}, which is known here; install a newer one"
        )
    names = {field.name for field in dataclasses.fields(GenerationPlan)}
    if set(document) != names:
        name = min(set(document) ^ names)
        raise PlanError(f"{path}: {'lacks' if name in names else 'has an unknown'} {name!r}")
    try:
        return GenerationPlan(**{name: _frozen(value) for name, value in document.items()})
    except (FlowTurboError, TypeError) as error:
        raise PlanError(f"{path}: {error}") from error


def difference(begun: GenerationPlan, asked: GenerationPlan) -> str:
    """Say in what one plan differs from another, shortly; empty where they are the same."""
    old, new = _by_name(begun), _by_name(asked)
    names = [name for name in old | new if old.get(name) != new.get(name)]
    return "; ".join(f"{name} {_short(old.get(name))} → {_short(new.get(name))}" for name in names)


def _by_name(plan: GenerationPlan) -> dict[str, Any]:
    """Return the fields by the words for them, and the packages as if they were fields."""
    fields = dataclasses.asdict(plan)
    software: dict[str, str] = fields.pop("software")
    return {name.replace("_", " "): value for name, value in fields.items()} | software


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:24]}…{text[-12:]}"


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
