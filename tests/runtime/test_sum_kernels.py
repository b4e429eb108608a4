"""Sums as kernels, compiled for the host: equal to NumPy bit for bit, over the fewest stores."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from flowturbo_trt.bundle.manifest import Condition, Guidance, Model
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.buffers import register_shape
from flowturbo_trt.runtime.cuda_kernels import compile_kernels
from flowturbo_trt.runtime.device import DeviceArray
from flowturbo_trt.runtime.launch_plan import Call, Fusion, LaunchPlan, fuse, plan_launches
from flowturbo_trt.runtime.sum_kernels import THREADS, SumKernels
from flowturbo_trt.sampling.program import Combine, Evaluate, Program, Register
from flowturbo_trt.sampling.reference import operand
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.tests.bundles import Array
from flowturbo_trt.tests.emulated_device import EmulatedDevice
from flowturbo_trt.tests.emulated_kernels import needs_compiler
from flowturbo_trt.tests.runtime.emulated_machines import program_of

# More than one block of threads, the last not full.
LATENT = (3, 10, 12)
BATCH = 3
TEXTS = [
    "H1P5R3",
    "E3",
    "AB4x6R1",
    "H2P1R2:consistent",
    "P2R2:single",
    "E2H1AB3x2P1R1",
    "H2P2R2:guided=0.2..0.6",
    "AB3x5R1:guided=0..0.3",
]


def model(halves: int) -> Model:
    condition = Condition("label", "int64", 0, 2, 3)
    return Model("sit", LATENT, None, (condition,), Guidance(3, halves, 1.5), {}, None)


class Machine:
    """A program on a device, and beside it its registers one by one in NumPy.

    Every row of the batch has coefficients of its own. What evaluations give is made up.
    """

    def __init__(self, program: Program, halves: int) -> None:
        self.program, self.plan = program, plan_launches(program)
        self.device = EmulatedDevice("eager")
        self.stream = self.device.create_stream()
        self.kernels = SumKernels(self.plan, BATCH, model(halves))
        self.random = np.random.default_rng(3)
        scales = self.random.uniform(0.5, 2, (self.plan.coefficients, BATCH))
        self.coefficients = (np.array(program.coefficients())[:, None] * scales).astype(np.float32)
        self.table = self.place(self.coefficients)
        self.registers = [self.empty(register, halves) for register in program.registers]
        self.buffers = [self.place(self.empty(register, halves)) for register in self.plan.slots]
        self.noise = self.random.standard_normal((BATCH, *LATENT)).astype(np.float32)
        self.registers[program.inputs["noise"]][...] = self.noise

    def empty(self, register: Register, halves: int) -> Array:
        return np.full(register_shape(register, BATCH, model(halves)), np.nan, np.float32)

    def start(self) -> None:
        """Bring the memory to what it is before the first step."""
        for slot in range(len(self.buffers)):
            self.buffer(slot)[...] = np.nan
        self.buffer(self.plan.noise)[...] = self.noise

    def place(self, content: Array) -> DeviceArray:
        array = DeviceArray(self.device.allocate(content.nbytes), content.shape, "float32")
        self.device.array(array)[...] = content
        return array

    def buffer(self, slot: int) -> Array:
        found: Array = self.device.array(self.buffers[slot])
        return found

    def interpret(self) -> None:
        """Run all instructions in NumPy, as runtime.host_trajectory does."""
        row = 0
        for i in self.program.instructions:
            out = self.registers[i.out]
            if isinstance(i, Evaluate):
                out[...] = self.random.standard_normal(out.shape)
                continue
            is_state = self.program.registers[i.out].kind == "state"
            for n, (_, register) in enumerate(i.terms):
                scale = self.coefficients[row].reshape(-1, *[1] * (out.ndim - 1))
                term = operand(self.registers[register], is_state) * scale
                out[...] = out + term if n else term
                row += 1

    def run(self, steps: range) -> None:
        """Launch some steps, and hold every buffer against the registers after each launch."""
        index = self.program.steps[steps[0] - 1].end if steps[0] else 0
        for launch in fuse(self.program, self.plan, steps):
            before = [self.buffer(slot).copy() for slot in range(len(self.buffers))]
            if isinstance(launch, Call):
                instruction = self.program.instructions[index]
                before[launch.out][...] = self.buffer(launch.out)[...] = self.registers[instruction.out]
                index += 1
                continue
            self.launch(launch)
            for n, found in enumerate(launch.sums):
                if n not in launch.dropped:
                    before[found.out] = self.registers[self.program.instructions[index + n].out]
            index += len(launch.sums)
            for slot, expected in enumerate(before):
                np.testing.assert_array_equal(self.buffer(slot), expected)

    def launch(self, fusion: Fusion) -> None:
        described = self.kernels.launch(fusion)
        loaded = self.device.load_kernels(self.kernels.source, self.kernels.names)
        row_bytes = 4 * BATCH
        addresses = [self.buffers[slot].address for slot in described.slots]
        arguments = [self.table.address + described.row * row_bytes, *addresses]
        self.device.launch(loaded[described.kernel], self.kernels.blocks, THREADS, arguments, self.stream)

    def prepare(self, parts: Sequence[range]) -> None:
        """Know all kernels before the first is compiled."""
        for fusion in fusions(self.program, self.plan, parts):
            self.kernels.launch(fusion)


def fusions(program: Program, plan: LaunchPlan, parts: Sequence[range]) -> Iterator[Fusion]:
    for steps in parts:
        yield from (launch for launch in fuse(program, plan, steps) if isinstance(launch, Fusion))


@needs_compiler
@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("text", TEXTS)
def test_equal_to_numpy(text: str, halves: int) -> None:
    """Whole and step by step: what is stored is right to the bit, and nothing else is touched."""
    program = program_of(text)
    every = range(len(program.steps))
    stepwise = [range(step, step + 1) for step in every]
    machine = Machine(program, halves)
    machine.prepare([every, *stepwise])
    machine.interpret()
    machine.start()
    machine.run(every)
    np.testing.assert_array_equal(machine.buffer(machine.plan.output), machine.registers[program.output])
    machine.start()
    for step in stepwise:
        machine.run(step)
        mark = program.steps[step[0]]
        state, velocity = machine.plan.marks[step[0]]
        np.testing.assert_array_equal(machine.buffer(state), machine.registers[mark.state])
        np.testing.assert_array_equal(machine.buffer(velocity), machine.registers[mark.velocity])


def described(text: str, variant: str = "guided") -> tuple[Program, LaunchPlan, SumKernels]:
    program = program_of(text, variant)
    plan = plan_launches(program)
    return program, plan, SumKernels(plan, BATCH, model(2))


def test_what_the_tests_cover() -> None:
    """Buffers taken over in place, results that are dropped, and several sums in a launch."""
    found = [
        fusion
        for text in TEXTS
        for program, plan, _ in [described(text)]
        for fusion in fusions(program, plan, [range(len(program.steps))])
    ]
    assert any(fusion.dropped for fusion in found)
    assert any(len(fusion.sums) > 1 for fusion in found)
    assert any(s.out in [slot for _, slot in s.terms] for fusion in found for s in fusion.sums)
    kinds = {type(i) for text in TEXTS for i in program_of(text).instructions}
    assert kinds == {Combine, Evaluate}


def test_a_dropped_result_has_no_store() -> None:
    program, plan, kernels = described("H1P1R1")
    parts = [range(len(program.steps))]
    dropping = next(fusion for fusion in fusions(program, plan, parts) if fusion.dropped)
    kernels.launch(dropping)
    stored = [found.out for n, found in enumerate(dropping.sums) if n not in dropping.dropped]
    shapes = (register_shape(plan.slots[slot], BATCH, model(2)) for slot in stored)
    assert kernels.source.count("] = v") == sum(shape[1] if len(shape) == 5 else 1 for shape in shapes)


def test_repeated_steps_share_kernels() -> None:
    """Twenty steps of a kind need no more kernels than five: only where they begin and end is special."""
    for short, long in (("H5", "H20"), ("H1P5R3", "H1P20R9"), ("E5", "E20"), ("AB3x8", "AB3x20")):
        counts = []
        for text in (short, long):
            program, plan, kernels = described(text)
            for fusion in fusions(program, plan, [range(len(program.steps))]):
                kernels.launch(fusion)
            counts.append(len(kernels.names))
        assert counts[0] == counts[1], (short, long)


def test_launches_of_one_kernel_have_their_own_coefficients() -> None:
    program, plan, kernels = described("E4")
    launches = [kernels.launch(fusion) for fusion in fusions(program, plan, [range(4)])]
    assert len({launch.kernel for launch in launches}) < len(launches)
    rows = [launch.row for launch in launches]
    assert rows == sorted(set(rows))
    assert rows[0] == 0
    assert kernels.blocks == (-(-360 // THREADS), BATCH) == (2, 3)


def test_whether_a_result_is_stored_decides_the_kernel() -> None:
    program, plan, kernels = described("H1P1R1")
    dropping = next(f for f in fusions(program, plan, [range(3)]) if f.dropped)
    assert kernels.launch(dropping).kernel != kernels.launch(Fusion(dropping.sums)).kernel
    assert kernels.launch(dropping) == kernels.launch(dropping)
    assert kernels.names == ("sums0", "sums1")


@pytest.mark.parametrize("capability", [(7, 5), (9, 0), (12, 0)])
@pytest.mark.parametrize("variant", ["guided", "unguided"])
def test_nvrtc_compiles_them(variant: str, capability: tuple[int, int]) -> None:
    """All of TEXTS' kernels, for old GPUs and new."""
    for text in TEXTS:
        if variant == "unguided" and Schedule.parse(text).guided is not None:
            continue
        program, plan, kernels = described(text, variant)
        every = range(len(program.steps))
        for fusion in fusions(program, plan, [every, *(range(step, step + 1) for step in every)]):
            kernels.launch(fusion)
        try:
            cubin = compile_kernels(kernels.source, capability)
        except BackendError as error:
            if "NVRTC, which compiles" in str(error) or "cuda-bindings" in str(error):
                pytest.skip(str(error))
            raise
        assert cubin[:4] == b"\x7fELF"
        for name in kernels.names:
            assert name.encode() in cubin
