"""The schedules of a comparison on one bundle: all of them found and checked before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowturbo_trt.bundle.manifest import Engine, Manifest
from flowturbo_trt.evaluation.comparison.errors import ComparisonError
from flowturbo_trt.evaluation.cost import engine_cost
from flowturbo_trt.evaluation.schedule_cost import schedule_costs
from flowturbo_trt.runtime.conditioning import needed_engines
from flowturbo_trt.runtime.programs import choose_variant, find_program
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.program import Program
from flowturbo_trt.sampling.schedule import Schedule


@dataclass(frozen=True)
class Case:
    """A schedule, what it is lowered to on a bundle, and the engines that it takes."""

    schedule: Schedule
    variant: str
    program: Program
    engines: tuple[Engine, ...]

    @property
    def name(self) -> str:
        return str(self.schedule)

    @property
    def evaluations(self) -> dict[str, int]:
        """Evaluations by network, over its variants."""
        return dict(self.schedule.evaluations())

    @property
    def precision(self) -> str:
        return self.engines[0].precision


def distinct(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the texts of different schedules in order, and those that only repeat one of them."""
    kept: list[str] = []
    repeated: list[str] = []
    seen: set[object] = set()
    for text in texts:
        key = meaning(text)
        (repeated if key in seen else kept).append(text)
        seen.add(key)
    return kept, repeated


def meaning(text: str) -> object:
    """Return what is the same for texts of the same steps; text that is no schedule stands for itself."""
    try:
        schedule = Schedule.parse(text)
    except FlowTurboError:
        return text
    return schedule.steps, schedule.reading, schedule.guided


def find_cases(
    manifest: Manifest, texts: Sequence[str], backend: str, batch: int, *, is_unguided: bool
) -> list[Case]:
    """Lower schedules to what runs on a bundle; raises ComparisonError that names all which cannot."""
    variant = choose_variant(manifest, is_unguided=is_unguided)
    cases: list[Case] = []
    reasons: dict[str, str] = {}
    for text in texts:
        try:
            cases.append(_find(manifest, text, variant, backend, batch))
        except FlowTurboError as error:
            reasons[text] = str(error)
    if reasons:
        told = ". ".join(f"{text}: {_bare(reason, text)}" for text, reason in reasons.items())
        raise ComparisonError(f"{len(reasons)} of {len(texts)} schedules cannot run: {told}")
    return cases


def _bare(reason: str, text: str) -> str:
    return reason.removeprefix(f"{text}: ").removeprefix(f"{text!r} ")


def _find(manifest: Manifest, text: str, variant: str, backend: str, batch: int) -> Case:
    schedule = manifest.schedule(text)
    program = find_program(manifest, schedule, variant)
    engines = tuple(
        manifest.engine(network, evaluated, backend, batch if evaluated else None)
        for network, evaluated in needed_engines(manifest, program, backend)
    )
    return Case(schedule, variant, program, engines)


@dataclass(frozen=True)
class Operations:
    """GFLOP for an image by schedule, and the decoder's part of each; or `notes` why they are not known."""

    gflop: Mapping[str, float]
    decoder_gflop: float | None
    notes: tuple[str, ...] = ()


def count_operations(manifest: Manifest, cases: Sequence[Case], backend: str, batch: int) -> Operations:
    """Count what an image of a batch takes on a backend's engines, in the variants that really run."""
    programs = {case.name: {case.variant: case.program} for case in cases}
    try:
        costs = schedule_costs(manifest, programs, (batch,), backend)
        decoder = engine_cost(manifest.model, "decoder", None, batch)
    except ModuleNotFoundError as error:
        reason = f"it takes {error.name}; pip install 'flowturbo_trt[export]'"
    except FlowTurboError as error:
        reason = str(error)
    else:
        return Operations(
            {cost.schedule: cost.image.flop / 1e9 for cost in costs}, decoder.flop / batch / 1e9
        )
    return Operations({}, None, (f"operations are not counted: {reason}",))
