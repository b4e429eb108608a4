"""The manifest: what a bundle holds, as frozen dataclasses (FORMAT.md)."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.program import Program
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.table import SolverTable

FORMAT = "flowturbo_trt bundle"
FORMAT_VERSION = 2
BATCH = "batch"


class BundleError(FlowTurboError):
    """A bundle that is missing, damaged, unsafe, of another format, or lacks what is asked of it."""


class OlderBundleError(BundleError):
    """A bundle that lacks what builders write since: nothing is wrong with it."""


@dataclass(frozen=True)
class Tensor:
    """An engine's input or output; axis 0 is `"batch"`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


_CONDITIONER = "_conditioner"


def conditioner_of(network: str) -> str:
    """Return the name of the network that computes a hoisted network's modulation."""
    return network + _CONDITIONER


class _Files:
    """What graphs and engines have in common."""

    network: str
    variant: str | None
    file: str
    data: tuple[str, ...]
    inputs: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        """What people call it, e.g. `predictor guided`."""
        return f"{self.network} {self.variant or ''}".strip()

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file, *self.data)

    @property
    def is_conditioner(self) -> bool:
        return self.network.endswith(_CONDITIONER)

    @property
    def is_hoisted(self) -> bool:
        """Whether it takes `modulation`, which its conditioner computes, in place of time and conditions."""
        return any(tensor.name == "modulation" for tensor in self.inputs)


@dataclass(frozen=True)
class Graph(_Files):
    """A network variant as float32 ONNX, the reference of verification; decoders have no variant."""

    network: str
    variant: str | None
    file: str
    data: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    key: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Engine(_Files):
    """A network variant compiled for one backend at the given batch sizes.

    `file` is what the backend loads, `data` the files it needs beside it. `targets` are the compute
    capabilities a GPU engine was compiled for, empty when portable or on the CPU. `key` is what the
    file depends on, part by part; empty where the file is a graph's.
    """

    network: str
    variant: str | None
    backend: str
    precision: str
    batches: tuple[int, ...]
    file: str
    data: tuple[str, ...]
    targets: tuple[str, ...]
    builder: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    key: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Condition:
    """A condition tensor, one value per row, in minimum … maximum; `null` stands for no condition."""

    name: str
    dtype: Literal["int64"]
    minimum: int
    maximum: int
    null: int | None = None


@dataclass(frozen=True)
class Guidance:
    """`channels` of the latent are guided; guided velocities carry `halves` (G) halves."""

    channels: int
    halves: int
    default: float


@dataclass(frozen=True)
class Model:
    """The model's family and shape; `latent` is (C,H,W), `image` (H,W) of the decoder or null."""

    family: str
    latent: tuple[int, int, int]
    image: tuple[int, int] | None
    conditions: tuple[Condition, ...]
    guidance: Guidance
    config: dict[str, Any]
    refiner_config: dict[str, Any] | None
    decoder_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if min(*self.latent, *(self.image or ())) < 1:
            raise BundleError(f"manifest: latent {self.latent} or image {self.image} has a size below 1")
        if self.guidance.halves not in (1, 2) or not 1 <= self.guidance.channels <= self.latent[0]:
            raise BundleError(f"manifest: {self.guidance} does not fit latents of {self.latent[0]} channels")


@dataclass(frozen=True)
class FileRecord:
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if self.bytes < 0:
            raise BundleError(f"manifest: a file has {self.bytes} bytes, expected at least 0")


@dataclass(frozen=True)
class Manifest:
    """Everything a bundle says about itself; `programs` are by schedule, then variant.

    `tables` are what schedules may name as `table:NAME`.
    """

    format: str
    version: int
    model: Model
    batches: tuple[int, ...]
    default_schedule: str
    programs: dict[str, dict[str, Program]]
    graphs: tuple[Graph, ...]
    engines: tuple[Engine, ...]
    files: dict[str, FileRecord]
    sources: dict[str, dict[str, str]]
    options: dict[str, Any]
    environment: dict[str, str]
    licence: str
    tables: tuple[SolverTable, ...] = ()

    def __post_init__(self) -> None:
        if len({table.name for table in self.tables}) < len(self.tables):
            raise BundleError(f"manifest: tables {[table.name for table in self.tables]} share a name")
        if not self.batches or any(batch < 1 for batch in self.batches):
            raise BundleError(f"manifest: batches are {list(self.batches)}, expected sizes of at least 1")
        items: tuple[Graph | Engine, ...] = (*self.graphs, *self.engines)
        for item in items:
            for file in item.files:
                if file not in self.files:
                    raise BundleError(f"manifest: {item.network} needs {file}, which is not among the files")
        if self.default_schedule not in self.programs:
            raise BundleError(f"manifest: no program for the default schedule {self.default_schedule!r}")
        variants = self.programs[self.default_schedule].keys()
        for schedule, programs in self.programs.items():
            found = {v for program in programs.values() for _, v in program.evaluations()}
            if not programs or not programs.keys() == variants or not found <= variants:
                raise BundleError(
                    f"manifest: {schedule} has programs for {sorted(programs)}, evaluating {sorted(found)}; "
                    f"expected one for each variant of the default schedule's, {sorted(variants)}"
                )

    def schedule(self, text: str | None = None) -> Schedule:
        """Read a schedule, the default one unless told, that may name the bundle's tables.

        Raises ScheduleError.
        """
        return Schedule.parse(text or self.default_schedule, self.tables)

    def engine(self, network: str, variant: str | None, backend: str, batch: int | None = None) -> Engine:
        """Return the engine of a network variant for a backend, the one built for `batch` if given."""
        for engine in self.engines:
            if (engine.network, engine.variant, engine.backend) == (network, variant, backend) and (
                batch is None or batch in engine.batches
            ):
                return engine
        held = sorted({e.name for e in self.engines if e.backend == backend})
        wanted = f"{variant or ''} {network}".strip()
        raise BundleError(
            f"the bundle has no {wanted} engine for {backend} (it has: {', '.join(held) or 'none'}); "
            f"rebuild it with --backend {backend}{' and --refiner' if network == 'refiner' else ''}"
        )
