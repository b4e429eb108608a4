"""What a deployer may choose for a served model, and the settings that follow for a bundle."""

from dataclasses import dataclass

from flowturbo_trt.bundle.environment import cores
from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.runtime.backend import BACKENDS, DEFAULT_BACKEND, default_backend, default_device
from flowturbo_trt.runtime.conditioning import needed_engines
from flowturbo_trt.runtime.programs import find_program
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.serving.triton.settings import ModelSettings

DEVICES = ("cpu", "cuda")
# Of the numbers in a server's config.
_MAX_MILLISECONDS, _MAX_MICROSECONDS, _MAX_QUEUE = (2**63 - 1) // 1000, 2**63 - 1, 2**32 - 1


class ServingOptionsError(FlowTurboError):
    """Options of a served model that make no sense, or do not fit each other or the bundle."""


@dataclass(frozen=True)
class ModelOptions:
    """How the bundle is run; None is what follows from the rest.

    `schedules` are those that requests may ask for, the default first, by default the bundle's alone;
    `backend` and `device` as for Pipeline.load, but which GPU is the server's to say; `threads` are by
    default an instance's share of this machine's cores. `cancellation` is on by default on the CPU, off
    on a GPU: to be given up between steps a run is watched, and cannot be one captured graph.
    """

    schedules: tuple[str, ...] = ()
    backend: str | None = None
    device: str | None = None
    provider: str | None = None
    threads: int | None = None
    cancellation: bool | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 0:
            raise ServingOptionsError(f"threads are {self.threads}, expected at least 0 (all cores)")


@dataclass(frozen=True)
class ServerOptions:
    """How the server feeds a model.

    `instances` run side by side, on each of the `gpus` (by default all) or on the CPU. A request waits
    at most `max_queue_delay_us` microseconds for company when an instance is free, and `timeout_ms`
    milliseconds (0: for ever) in all; with `queue_size` requests waiting (0: no limit) the next is
    rejected. `response_cache` lets the server answer what it was asked before: images follow from their
    inputs.
    """

    instances: int = 1
    gpus: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    queue_size: int = 256
    timeout_ms: int = 30_000
    response_cache: bool = False

    def __post_init__(self) -> None:
        ranges = {
            "instances": (1, 1024),
            "max_queue_delay_us": (0, _MAX_MICROSECONDS),
            "queue_size": (0, _MAX_QUEUE),
            "timeout_ms": (0, _MAX_MILLISECONDS),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ServingOptionsError(f"{name} is {getattr(self, name)}, expected {low} to {high}")
        if min(self.gpus, default=0) < 0 or len(set(self.gpus)) < len(self.gpus):
            raise ServingOptionsError(f"gpus are {list(self.gpus)}, expected different numbers from 0 on")


def make_settings(manifest: Manifest, options: ModelOptions, server: ServerOptions) -> ModelSettings:
    """Return the settings of a model for a bundle, without its `bundles`.

    Raises ServingOptionsError, BundleError for engines that the bundle lacks, and ScheduleError.
    """
    backend = options.backend or default_backend(manifest)
    _check_backend(backend, options.provider)
    device = options.device or default_device(backend, options.provider)
    _check_device(device, backend, options.provider)
    if server.gpus and device == "cpu":
        raise ServingOptionsError(
            f"gpus {list(server.gpus)}: the model runs on the CPU; leave them out, or give --device cuda"
        )
    texts = options.schedules or (manifest.default_schedule,)
    settings = ModelSettings(
        backend=backend,
        device=device,
        schedules=tuple(dict.fromkeys(str(manifest.schedule(text)) for text in texts)),
        provider=options.provider,
        threads=_share(server.instances, device) if options.threads is None else options.threads,
        cancellation=device == "cpu" if options.cancellation is None else options.cancellation,
    )
    check_runs(manifest, settings)
    return settings


def check_runs(manifest: Manifest, settings: ModelSettings) -> None:
    """Raise BundleError or ScheduleError unless a bundle has what a model with these settings runs."""
    for text in settings.schedules:
        for variant in manifest.programs[manifest.default_schedule]:
            program = find_program(manifest, manifest.schedule(text), variant)
            for network, needed in needed_engines(manifest, program, settings.backend):
                if manifest.engine(network, needed, settings.backend).is_conditioner:
                    # Its rows are times and labels, not images.
                    continue
                for batch in manifest.batches:
                    manifest.engine(network, needed, settings.backend, batch)


def _share(instances: int, device: str) -> int:
    """Return the threads of an instance: 0, all, where it is alone or computes on a GPU."""
    return 0 if instances == 1 or device != "cpu" else max(1, cores() // instances)


def _check_backend(backend: str, provider: str | None) -> None:
    if backend not in BACKENDS:
        raise ServingOptionsError(f"backend {backend!r} is not known; use {', '.join(BACKENDS)}")
    if provider is not None and backend != DEFAULT_BACKEND:
        raise ServingOptionsError(
            f"provider {provider}: only {DEFAULT_BACKEND} has providers, not {backend}; leave it out"
        )


def _check_device(device: str, backend: str, provider: str | None) -> None:
    if device not in DEVICES:
        raise ServingOptionsError(
            f"device {device!r}: expected {' or '.join(DEVICES)}; which GPU is said by --gpu"
        )
    made_for = default_device(backend, provider)
    # ONNX Runtime without a provider takes the one of the device.
    either = backend == DEFAULT_BACKEND and provider is None
    if device != made_for and not either:
        runner = backend if provider is None else f"provider {provider}"
        raise ServingOptionsError(f"{runner} does not run on device {device}; leave one of them out")
