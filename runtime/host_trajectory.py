"""A trajectory in host memory: NumPy does the arithmetic, engines are called on bound arrays."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Model
from flowturbo_trt.runtime.backend import BackendError, OnStep
from flowturbo_trt.sampling.liveness import allocate
from flowturbo_trt.sampling.program import NOISE, Combine, Evaluate, Program, Register, StepMark
from flowturbo_trt.sampling.reference import operand

Array = NDArray[np.float32]
OUTPUTS = {"predictor": "velocity", "refiner": "offset"}


class HostEngine(Protocol):
    """An engine that can be called on arrays in host memory."""

    def bind(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> Callable[[], None]:
        """Fix the arrays of a call; the result runs it, in place and without allocating."""
        ...


class HostBuffers:
    """All memory of one trajectory, allocated here and nowhere else."""

    def __init__(self, program: Program, batch: int, model: Model) -> None:
        self._shapes = {
            "state": (batch, *model.latent),
            "velocity:guided": (batch, model.guidance.halves, *model.latent),
            "velocity:unguided": (batch, 1, *model.latent),
        }
        allocation = allocate(program)
        slots = [self.empty(register) for register in allocation.slots]
        self.registers = [slots[slot] for slot in allocation.slot_of]
        self.scratch = {str(register): self.empty(register) for register in allocation.slots}
        evaluations = sum(isinstance(i, Evaluate) for i in program.instructions)
        self.times = np.zeros((evaluations, batch), dtype=np.float32)
        self.guidance = np.ones(batch, dtype=np.float32)
        self.conditions = {c.name: np.zeros(batch, dtype=np.int64) for c in model.conditions}
        self.image = None if model.image is None else np.zeros((batch, *model.image, 3), dtype=np.uint8)

    def empty(self, register: Register) -> Array:
        return np.zeros(self._shapes[str(register)], dtype=np.float32)


class HostTrajectory:
    """Runs programs of one shape over HostEngines (runtime.backend.Trajectory)."""

    def __init__(
        self,
        program: Program,
        batch: int,
        model: Model,
        engine: Callable[[str, str | None], HostEngine],
    ) -> None:
        self._program = program
        self._buffers = HostBuffers(program, batch, model)
        self._engine = engine
        registers = self._buffers.registers
        self.noise = registers[program.inputs[NOISE]]
        self.latents = registers[program.output]
        self.conditions = self._buffers.conditions
        self.guidance = self._buffers.guidance
        self._calls = self._bind_instructions()
        self._decode = self._bind_decoder(self.latents, self._buffers.image)
        self._preview: tuple[Array, NDArray[np.uint8], Callable[[], None]] | None = None
        self.set_program(program)

    def set_program(self, program: Program) -> None:
        evaluations = (i for i in program.instructions if isinstance(i, Evaluate))
        for row, instruction in zip(self._buffers.times, evaluations, strict=True):
            row[...] = instruction.time
        self._program = program

    def run(self, on_step: OnStep | None = None) -> None:
        calls = iter(self._calls)
        for index, (mark, instructions) in enumerate(self._program.per_step()):
            for instruction in instructions:
                if isinstance(instruction, Combine):
                    self._combine(instruction)
                else:
                    next(calls)()
            if on_step is not None:
                on_step(mark, index)

    def state_after(self, mark: StepMark) -> Array:
        return self._buffers.registers[mark.state]

    def velocity_after(self, mark: StepMark) -> Array:
        return self._buffers.registers[mark.velocity]

    def decode(self) -> NDArray[np.uint8]:
        if self._decode is None or self._buffers.image is None:
            raise BackendError("the bundle has no decoder; ask for latents, or build it with --decoder")
        self._decode()
        return self._buffers.image

    def preview(self, mark: StepMark) -> NDArray[np.uint8]:
        if self._buffers.image is None:
            raise BackendError("the bundle has no decoder to preview with")
        if self._preview is None:
            # Of its own: the latents' buffer is in use while the trajectory runs.
            state, image = np.empty_like(self.latents), np.empty_like(self._buffers.image)
            call = self._bind_decoder(state, image)
            assert call is not None
            self._preview = state, image, call
        state, image, call = self._preview
        np.multiply(self.velocity_after(mark)[:, 0], 1 - mark.s, out=state)
        np.add(self.state_after(mark), state, out=state)
        call()
        return image

    def _bind_instructions(self) -> list[Callable[[], None]]:
        evaluations = (i for i in self._program.instructions if isinstance(i, Evaluate))
        return [self._bind(i, row) for i, row in zip(evaluations, self._buffers.times, strict=True)]

    def _bind(self, instruction: Evaluate, time: Array) -> Callable[[], None]:
        registers = self._buffers.registers
        inputs: dict[str, NDArray[Any]] = {
            "state": registers[instruction.state],
            "time": time,
            **self.conditions,
        }
        if instruction.variant == "guided":
            inputs["guidance"] = self.guidance
        if instruction.velocity is not None:
            inputs["velocity"] = registers[instruction.velocity]
        output = {OUTPUTS[instruction.network]: registers[instruction.out]}
        return self._engine(instruction.network, instruction.variant).bind(inputs, output)

    def _bind_decoder(self, state: Array, image: NDArray[np.uint8] | None) -> Callable[[], None] | None:
        if image is None:
            return None
        return self._engine("decoder", None).bind({"state": state}, {"image": image})

    def _combine(self, instruction: Combine) -> None:
        registers, types = self._buffers.registers, self._program.registers
        out = registers[instruction.out]
        is_state = types[instruction.out].kind == "state"
        scratch = self._buffers.scratch[str(types[instruction.out])]
        (coefficient, first), *rest = instruction.terms
        np.multiply(operand(registers[first], is_state), coefficient, out=out)
        for coefficient, register in rest:
            np.multiply(operand(registers[register], is_state), coefficient, out=scratch)
            np.add(out, scratch, out=out)
