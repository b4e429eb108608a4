"""What verification can be told."""

from dataclasses import dataclass

from flowturbo_trt.sampling.errors import FlowTurboError


class ParityError(FlowTurboError):
    """Nothing can be verified: options that name what the bundle lacks, or no backend that runs here."""


@dataclass(frozen=True)
class ParityOptions:
    """What to verify; empty means everything in the bundle, its default schedule for `schedules`.

    `images` rows are recorded, or as many as the largest batch holds if that is more. `device` is by
    default what each backend is made for; `provider` concerns onnxruntime.
    """

    backends: tuple[str, ...] = ()
    schedules: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    images: int = 4
    seed: int = 0
    device: str | None = None
    threads: int = 0
    provider: str | None = None
