"""The manifest: what a bundle holds, as frozen dataclasses with one validating reader (FORMAT.md)."""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from flowturbo_trt.sampling import program_json
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.program import Program, ProgramError

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


@dataclass(frozen=True)
class Manifest:
    """Everything a bundle says about itself; `programs` are by schedule, then variant."""

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

    def __post_init__(self) -> None:
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


def to_json(manifest: Manifest) -> str:
    """Return the manifest as JSON text; `from_json` gives an equal manifest back."""
    return json.dumps(_plain(manifest), indent=1) + "\n"


def from_json(text: str) -> Manifest:
    """Read and validate a manifest; raises BundleError. Unknown keys are ignored (FORMAT.md, Versions)."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"manifest: not JSON ({error})") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BundleError("manifest: not that of a flowturbo_trt bundle")
    version = data.get("version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise BundleError(
            f"manifest: format version {version}, this reader knows up to {FORMAT_VERSION}; "
            "upgrade flowturbo_trt or rebuild the bundle"
        )
    manifest: Manifest = _read(Manifest, data, "manifest")
    return manifest


def _plain(value: Any) -> Any:
    if isinstance(value, Program):
        return program_json.to_json(value)
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _read(expected: Any, data: Any, where: str) -> Any:
    """Build a value of the expected type from JSON data; `where` names the place in errors."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any:
        return data
    if expected is Program:
        try:
            return program_json.from_json(data)
        except ProgramError as error:
            raise BundleError(f"{where}: {error}") from error
    if dataclasses.is_dataclass(expected):
        return _read_dataclass(expected, _typed(dict, data, where), where)
    if origin in (types.UnionType, typing.Union):
        return _read_union(arguments, data, where)
    if origin is Literal:
        if data not in arguments:
            raise BundleError(f"{where} is {data!r}, expected {' or '.join(map(repr, arguments))}")
        return data
    if origin is tuple:
        items = _typed(list, data, where)
        if arguments[-1] is not Ellipsis and len(items) != len(arguments):
            raise BundleError(f"{where} has {len(items)} items, expected {len(arguments)}")
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        items = _typed(dict, data, where).items()
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in items}
    if expected is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    return _typed(expected, data, where)


def _read_dataclass(expected: Any, data: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(expected)
    required = [f.name for f in dataclasses.fields(expected) if _is_required(f)]
    if missing := [name for name in required if name not in data]:
        raise BundleError(f"{where}: {missing[0]!r} is missing")
    given = {name: hint for name, hint in hints.items() if name in data}
    return expected(**{name: _read(hint, data[name], f"{where}.{name}") for name, hint in given.items()})


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    # What was added to the format later has a default, for bundles written before.
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _read_union(options: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:
        return _read(options[0], data, where)
    match = next((o for o in options if isinstance(data, o) and not isinstance(data, bool)), None)
    if match is None:
        raise BundleError(f"{where} is {data!r}, expected {' or '.join(o.__name__ for o in options)}")
    return data


def _typed(expected: type, data: Any, where: str) -> Any:
    if not isinstance(data, expected) or (expected is int and isinstance(data, bool)):
        raise BundleError(f"{where} is {data!r:.60}, expected {expected.__name__}")
    return data
