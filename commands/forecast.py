"""What `inspect` tells of a bundle without loading it: the memory it will hold, and what an image costs."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flowturbo_trt.bundle.manifest import BundleError, Manifest
from flowturbo_trt.runtime.backend import BACKENDS, BackendError, default_backend, default_device
from flowturbo_trt.runtime.memory_plan import MemoryPlan, plan_memory
from flowturbo_trt.runtime.programs import find_program
from flowturbo_trt.sampling.program import Program

if TYPE_CHECKING:
    from flowturbo_trt.evaluation.schedule_cost import ScheduleCost

INSTALL = "pip install 'flowturbo_trt[export]'"


class Forecast:
    """A bundle, and what of it is asked for; None and () are the default: everything, where it is cheap.

    `schedule` is the one whose memory is told, `cost_backend` the one whose engines are counted.
    """

    def __init__(
        self,
        manifest: Manifest,
        schedule: str | None,
        batches: Sequence[int],
        backend: str | None,
        provider: str | None,
    ) -> None:
        self._manifest = manifest
        self._variants = tuple(manifest.programs[manifest.default_schedule])
        self._schedules = tuple(manifest.programs) if schedule is None else (schedule,)
        self._batches = tuple(dict.fromkeys(batches)) or manifest.batches
        self._chosen = backend
        self._provider = provider
        self.schedule = schedule or manifest.default_schedule
        self.cost_backend = backend or default_backend(manifest)
        if provider is not None and self.cost_backend != "onnxruntime":
            raise BackendError(f"provider {provider}: only onnxruntime has providers; leave it out")

    def memory(self) -> tuple[list[MemoryPlan], list[str]]:
        """Plan on each backend the variant that is loaded first; beside plans, why there are not more."""
        program = find_program(self._manifest, self.schedule, self._variants[0])
        plans, reasons = [], []
        for backend in self._backends():
            on_gpu = default_device(backend, self._provider) != "cpu"
            try:
                plans.append(plan_memory(self._manifest, program, self._batches, backend, on_gpu=on_gpu))
            except BundleError as error:
                if self._chosen is not None or self._batches != self._manifest.batches:
                    raise
                reasons.append(str(error))
        return plans, reasons

    def costs(self, say: Callable[[str], None]) -> tuple[tuple["ScheduleCost", ...], str]:
        """Count all schedules and variants; or tell why that is not possible."""
        try:
            # Counting takes torch, which the base install leaves out.
            from flowturbo_trt.evaluation.schedule_cost import schedule_costs
        except ModuleNotFoundError as error:
            return (), f"it takes {error.name}; {INSTALL}"
        say("counting what an image costs …")
        programs = {text: self._programs(text) for text in self._schedules}
        try:
            return schedule_costs(self._manifest, programs, self._batches, self.cost_backend), ""
        except BundleError as error:
            return (), str(error)

    def _programs(self, schedule: str) -> dict[str, Program]:
        return {variant: find_program(self._manifest, schedule, variant) for variant in self._variants}

    def _backends(self) -> list[str]:
        if self._chosen is not None or self._provider is not None:
            return [self.cost_backend]
        # A bundle may hold engines for backends that this version does not know.
        built = dict.fromkeys(engine.backend for engine in self._manifest.engines)
        return [backend for backend in built if backend in BACKENDS]


def memory_lines(plan: MemoryPlan, schedule: str) -> list[str]:
    """Lay a plan out batch by batch, in MB."""
    names = ("registers", "modulations", "tables", "images", *(("staging",) if plan.on_gpu else ()))
    rows = [("batch", *names, "weights", "total", *(("pinned on the host",) if plan.on_gpu else ()))]
    for found in plan.trajectories:
        sizes = [*(getattr(found, name) for name in names), plan.weights, plan.weights + found.total]
        rows.append((str(found.batch), *map(_mb, [*sizes, found.pinned] if plan.on_gpu else sizes)))
    place = "a GPU" if plan.on_gpu else "the host"
    lines = [f"memory of {place} for {schedule} on {plan.backend}, in MB", *columns(rows)]
    if len(plan.trajectories) > 1:
        lines.append(f"all together, the weights once: {_mb(plan.total)}")
    return [*lines, f"not in it, known only when it is loaded: {plan.unknown}"]


def cost_lines(costs: Sequence["ScheduleCost"], backend: str) -> list[str]:
    """Lay costs out; what is saved would come on top of what is left."""
    saved = (
        "hoisting saves" if costs[0].conditioning == "hoisted" else "hoisting would save",
        "unguided saves",
    )
    rows: list[tuple[str, ...]] = [("schedule", "variant", "batch", "GFLOP", *saved, "weights MB", *saved)]
    for cost in costs:
        measures = (cost.by_hoisting, cost.by_unguided)
        operations = (f"{cost.image.flop / 1e9:.2f}", *(_saved(m.flop, 1e9) for m in measures))
        weights = (_mb(cost.image.weight_bytes), *(_saved(m.weight_bytes, 1e6) for m in measures))
        rows.append((cost.schedule, cost.variant, str(cost.batch), *operations, *weights))
    return [f"cost of an image on {backend}: operations, and weights read from memory", *columns(rows)]


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Write rows below each other, each column as wide as its longest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _mb(size: float) -> str:
    return f"{size / 1e6:.2f}"


def _saved(amount: float, unit: float) -> str:
    return f"{amount / unit:.2f}" if amount else "–"
