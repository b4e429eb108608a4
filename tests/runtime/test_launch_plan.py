"""Launch plans: over buffers, whole or fused, they compute what the program says, bit for bit."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.runtime.launch_plan import Call, Fusion, LaunchPlan, Sum, fuse, plan_launches
from flowturbo_trt.sampling.program import Combine, Evaluate, Program
from flowturbo_trt.sampling.reference import run
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.steps import REFINER_READINGS, STEPS, Field
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.tests.bundles import SCHEDULES
from flowturbo_trt.tests.sampling.fields import HALVES, DampedField

Array = NDArray[np.float32]
States = list[tuple[Array, Array]]
FIELDS: Mapping[str, Field] = {variant: DampedField(variant) for variant in HALVES}


def random_schedules(count: int) -> Iterator[Schedule]:
    """Yield random lists of steps over random grids, two in three guided some of the time."""
    random = np.random.default_rng(23)
    for n in range(count):
        kinds = [str(random.choice(list(STEPS)))]
        kinds += [str(kind) for kind in random.choice([*STEPS, "P", "R", "R"], size=random.integers(0, 9))]
        times = tuple(sorted(random.random(len(kinds) + 1).tolist()))
        low, high = sorted(random.random(2).tolist())
        reading = str(random.choice(list(REFINER_READINGS)))
        yield Schedule(tuple((kind, 1) for kind in kinds), times, reading, (low, high) if n % 3 else None)


def programs() -> Iterator[Program]:
    texts = [*SCHEDULES, "E1", "E4", "H3", "P6", "AB4x7", "AB2x3R2P2", "H1P3R3:consistent", "P2R4:single"]
    texts += ["H4P4R1:guided=0.2..0.6", "P8:guided=0..0.5", "AB3x6:guided=0.3..0.7"]
    for text in texts:
        yield from (trace(Schedule.parse(text), variant) for variant in HALVES)
    yield from (trace(schedule, "guided") for schedule in random_schedules(40))


class Machine:
    """Memory as a plan lays it out: full of NaN, apart from the noise."""

    def __init__(self, program: Program, plan: LaunchPlan, noise: Array) -> None:
        self.plan = plan
        self.times = program.times()
        self.coefficients = program.coefficients()
        B, *latent = noise.shape
        shapes = [(B, HALVES[s.variant], *latent) if s.variant else noise.shape for s in plan.slots]
        self.buffers = [np.full(shape, np.nan, dtype=np.float32) for shape in shapes]
        self.buffers[plan.noise][...] = noise

    def run_call(self, call: Call) -> None:
        assert call.out not in (call.state, call.velocity)
        x, field, t = self.buffers[call.state], FIELDS[call.variant], self.times[call.index]
        if call.velocity is None:
            result = field.predict(x, t)
        else:
            result = field.refine(x, self.buffers[call.velocity], t)
        self.buffers[call.out][...] = result

    def run_fusion(self, fusion: Fusion) -> None:
        """Hold results in registers; memory gets those that are stored, and of the others a poison."""
        held: dict[int, Array] = {}
        for n, launch in enumerate(fusion.sums):
            held[launch.out] = self.add(launch, held)
            stored = n not in fusion.dropped
            self.buffers[launch.out][...] = held[launch.out] if stored else np.float32(np.nan)

    def add(self, launch: Sum, held: Mapping[int, Array]) -> Array:
        is_state = self.plan.slots[launch.out].kind == "state"
        total = None
        for row, slot in launch.terms:
            value = held.get(slot, self.buffers[slot])
            value = value[:, 0] if is_state and value.ndim == 5 else value
            scaled = np.float32(self.coefficients[row]) * value
            total = scaled if total is None else total + scaled
        assert total is not None
        return total

    def passed_on(self, step: int) -> tuple[Array, Array]:
        state, velocity = self.plan.marks[step]
        return self.buffers[state].copy(), self.buffers[velocity].copy()


def run_whole(program: Program, plan: LaunchPlan, noise: Array) -> tuple[States, Array]:
    """Run every launch by itself; return what the steps pass on, and the result."""
    machine = Machine(program, plan, noise)
    states = []
    for index, step in enumerate(plan.steps):
        for launch in step:
            if isinstance(launch, Call):
                machine.run_call(launch)
            else:
                machine.run_fusion(Fusion((launch,)))
        states.append(machine.passed_on(index))
    return states, machine.buffers[plan.output]


def run_fused(program: Program, plan: LaunchPlan, noise: Array, parts: list[range]) -> tuple[States, Array]:
    """Run fused launches of some steps at a time; return what each last step passes on, and the result."""
    machine = Machine(program, plan, noise)
    states = []
    for steps in parts:
        for launch in fuse(program, plan, steps):
            if isinstance(launch, Call):
                machine.run_call(launch)
            else:
                machine.run_fusion(launch)
        states.append(machine.passed_on(steps[-1]))
    return states, machine.buffers[plan.output]


@pytest.fixture
def noise() -> Array:
    return np.random.default_rng(5).standard_normal((2, 3, 2, 4)).astype(np.float32)


def assert_equal(found: States, expected: States, program: Program) -> None:
    for (x, v), (x_expected, v_expected) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, x_expected, err_msg=str(program))
        np.testing.assert_array_equal(v, v_expected, err_msg=str(program))


def test_launches_compute_the_program(noise: Array) -> None:
    for program in programs():
        expected = list(run(program, FIELDS, noise))
        found, result = run_whole(program, plan_launches(program), noise)
        assert_equal(found, expected, program)
        np.testing.assert_array_equal(result, expected[-1][0])


def per_step(program: Program) -> list[range]:
    return [range(index, index + 1) for index in range(len(program.steps))]


def in_pairs(program: Program) -> list[range]:
    count = len(program.steps)
    return [range(start, min(start + 2, count)) for start in range(0, count, 2)]


def whole(program: Program) -> list[range]:
    return [range(len(program.steps))]


@pytest.mark.parametrize("split", [per_step, in_pairs, whole])
def test_fused_launches_compute_the_program(noise: Array, split: Callable[[Program], list[range]]) -> None:
    """What a kernel does not store is never read again, nor passed on."""
    for program in programs():
        parts = split(program)
        expected = list(run(program, FIELDS, noise))
        found, result = run_fused(program, plan_launches(program), noise, parts)
        assert_equal(found, [expected[steps[-1]] for steps in parts], program)
        np.testing.assert_array_equal(result, expected[-1][0])


def gaps(program: Program, ends: set[int]) -> int:
    """Count the runs of combinations that no evaluation interrupts, nor the end of a part."""
    count, adding = 0, False
    for index, instruction in enumerate(program.instructions):
        adding = adding and index not in ends
        count += isinstance(instruction, Combine) and not adding
        adding = isinstance(instruction, Combine)
    return count


@pytest.mark.parametrize("split", [per_step, in_pairs, whole])
def test_one_kernel_between_two_calls(split: Callable[[Program], list[range]]) -> None:
    for program in programs():
        plan, parts = plan_launches(program), split(program)
        fused = [launch for steps in parts for launch in fuse(program, plan, steps)]
        kernels = [launch for launch in fused if isinstance(launch, Fusion)]
        assert len(kernels) == gaps(program, {program.steps[steps[-1]].end for steps in parts})
        launched = [launch for step in plan.steps for launch in step]
        assert [launch for launch in fused if isinstance(launch, Call)] == list(plan.calls)
        sums = [launch for launch in launched if isinstance(launch, Sum)]
        assert [launch for kernel in kernels for launch in kernel.sums] == sums


def test_pseudo_correctors_share_their_kernels() -> None:
    """The end of a step and the beginning of the next, which reuses its velocity, are one kernel."""
    program = trace(Schedule.parse("H1P5"), "guided")
    plan = plan_launches(program)
    alone = [launch for steps in per_step(program) for launch in fuse(program, plan, steps)]
    together = fuse(program, plan, range(6))
    assert (len(plan.calls), len(alone), len(together)) == (7, 19, 14)
    sums = [len(launch.sums) for launch in together if isinstance(launch, Fusion)]
    # Heun's predicted state, five times a corrected and a predicted one, and the result.
    assert sums == [1, 2, 2, 2, 2, 2, 1]


def test_dropped_results() -> None:
    """Only the last sum of a kernel reaches memory, where the others are read in it alone."""
    program = trace(Schedule.parse("H1R2:single"), "guided")
    plan = plan_launches(program)
    step = fuse(program, plan, range(1, 2))
    # d0 = r + v is passed on: to the callback, and to the next step.
    assert [launch.dropped for launch in step if isinstance(launch, Fusion)] == [frozenset()]
    last = fuse(program, plan, range(3))[-1]
    assert isinstance(last, Fusion)
    assert (len(last.sums), last.dropped) == (2, frozenset())
    consistent = trace(Schedule.parse("H1R1:consistent"), "guided")
    *_, second = fuse(consistent, plan_launches(consistent), range(2))
    # d1 = r + d0 goes into the new state, and nowhere else.
    assert isinstance(second, Fusion)
    assert (len(second.sums), second.dropped) == (2, frozenset({0}))


def test_calls_and_their_times() -> None:
    program = trace(Schedule.parse("H2P1R1:guided=0.1..0.5"), "guided")
    plan = plan_launches(program)
    evaluations = [i for i in program.instructions if isinstance(i, Evaluate)]
    assert [call.index for call in plan.calls] == list(range(len(evaluations)))
    assert [(c.network, c.variant) for c in plan.calls] == [(i.network, i.variant) for i in evaluations]
    for network in ("predictor", "refiner"):
        slots = tuple(call.time_slot for call in plan.calls if call.network == network)
        assert slots == program.time_slots(network)
    assert plan.variants("predictor") == ("unguided", "guided")
    assert plan.variants("refiner") == ("unguided",)
    assert plan_launches(trace(Schedule.parse("E2"), "guided")).variants("refiner") == ()
    assert plan.coefficients == len(program.coefficients())
    rows = [
        row for step in plan.steps for launch in step if isinstance(launch, Sum) for row, _ in launch.terms
    ]
    assert rows == list(range(plan.coefficients))


def test_programs_of_one_shape_have_one_plan() -> None:
    texts = ("H1P2R1", "H1P2R1@0,0.1,0.3,0.75,1")
    one, other = (plan_launches(trace(Schedule.parse(text), "guided")) for text in texts)
    assert one == other
