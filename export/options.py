"""What `build` can be told."""

from dataclasses import dataclass
from pathlib import Path

from flowturbo_trt.export.compile import (
    COMPILERS,
    GPU_BACKENDS,
    PRECISIONS,
    QUANTIZED,
    CompileError,
)
from flowturbo_trt.export.precision import PrecisionError
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.program import VARIANTS
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.table import SolverTable

CONDITIONING = ("hoisted", "fused")
KNOWN = (*PRECISIONS, *QUANTIZED)
# The compute capability without its point.
FIRST_WITH_FP8 = 89


class BuildError(FlowTurboError):
    """Build options that contradict each other or the checkpoints."""


@dataclass(frozen=True)
class BuildOptions:
    """Everything `build` can be told; the CLI reads its defaults here.

    `precisions` are `PRECISION` for all backends or `BACKEND=PRECISION`; `schedules` default to the
    configuration's, else H1P5R3 with a refiner and H8 without, the first being the bundle's default, and
    `tables` come with schedules of their own;
    `targets` are GPU compute capabilities (`8.9`), none for portable engines. `recipes` say what int8 and
    fp8 engines have in 8 bits, one for each of the two; `force` takes one whose gate did not hold, and 8
    bits that a backend only emulates.
    `separate_plans` makes a TensorRT plan for each batch size instead of one for all; `strip` leaves out
    the float32 graphs that no engine needs; `preflight` refuses what the machine has too little memory or
    disk for. `conditioning` is hoisted (what depends on time and label alone is a network of its own,
    evaluated once per request for all steps) or fused (part of every evaluation).
    """

    predictor: Path
    refiner: Path | None = None
    decoder: Path | None = None
    config: Path | None = None
    model: str | None = None
    batches: tuple[int, ...] = (1,)
    backends: tuple[str, ...] = ("onnxruntime",)
    precisions: tuple[str, ...] = ()
    variants: tuple[str, ...] = ("guided",)
    schedules: tuple[str, ...] = ()
    tables: tuple[SolverTable, ...] = ()
    targets: tuple[str, ...] = ()
    recipes: tuple[Path, ...] = ()
    force: bool = False
    conditioning: str = "hoisted"
    separate_plans: bool = False
    strip: bool = False
    preflight: bool = True

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise BuildError(f"batch sizes are {list(self.batches)}, expected different ones of at least 1")
        for name in ("backends", "variants"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise BuildError(f"{name} are {list(given)}, expected at least one, each once")
        for backend in self.backends:
            if backend not in COMPILERS:
                raise CompileError(f"unknown backend {backend!r}; known are {', '.join(COMPILERS)}")
            self.precision_of(backend)
        for variant in self.variants:
            if variant not in VARIANTS:
                raise BuildError(f"unknown variant {variant!r}; known are {', '.join(VARIANTS)}")
        if self.conditioning not in CONDITIONING:
            raise BuildError(f"conditioning {self.conditioning!r}, expected {' or '.join(CONDITIONING)}")
        if len({table.name for table in self.tables}) < len(self.tables):
            raise BuildError("two tables have one name; give each its own when calibrating")
        for text in self.schedules:
            self.check_guidance(Schedule.parse(text, self.tables))
        if self.targets and "tensorrt-rtx" not in self.backends:
            raise BuildError(
                f"target {self.targets[0]} is for GPU engines; add --backend tensorrt-rtx or leave it out"
            )
        self._check_fp8_targets()
        if self.force and not self.recipes:
            raise BuildError("--force is for recipes whose gate did not hold; add --recipe or leave it out")
        if self.separate_plans and not set(GPU_BACKENDS) & set(self.backends):
            raise BuildError("--separate-plans is for TensorRT; add --backend tensorrt-rtx or leave it out")

    def check_guidance(self, schedule: Schedule) -> None:
        """Raise BuildError where a schedule needs both variants and not both are built."""
        if schedule.guided and set(self.variants) != set(VARIANTS):
            raise BuildError(
                f"schedule {schedule} is guided some of the time; add --variant guided --variant unguided"
            )

    def _check_fp8_targets(self) -> None:
        if not self.targets or self.precision_of("tensorrt-rtx") != "fp8":
            return
        for target in self.targets:
            digits = target.lower().removeprefix("sm").replace(".", "")
            if digits.isdigit() and int(digits) < FIRST_WITH_FP8:
                raise PrecisionError(
                    f"target {target} has no fp8 arithmetic, which begins with 8.9; leave it out, or use "
                    "--precision tensorrt-rtx=int8"
                )

    def precision_of(self, backend: str) -> str:
        """Return a backend's precision: its own, else the one given for all, else its default."""
        chosen = COMPILERS[backend].precision
        for text in sorted(self.precisions, key=lambda text: "=" in text):
            owner, _, precision = text.rpartition("=")
            if precision not in KNOWN:
                raise PrecisionError(f"unknown precision {precision!r}; known are {', '.join(KNOWN)}")
            if owner and owner not in self.backends:
                raise PrecisionError(
                    f"--precision {text}: backend {owner!r} is not built; add --backend {owner}"
                )
            if owner in ("", backend):
                chosen = precision
        able = COMPILERS[backend].precisions
        if chosen not in able:
            raise PrecisionError(
                f"backend {backend} has no {chosen} arithmetic; add --precision {backend}={' or '.join(able)}"
            )
        return chosen
