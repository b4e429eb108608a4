"""A trajectory in host memory: NumPy does the arithmetic, engines are called on bound arrays."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.runtime.backend import BackendError, Inputs, OnStep
from flowturbo_trt.runtime.binding import Binder
from flowturbo_trt.runtime.buffers import HostBlock, plan_layout, register_name, sum_fields
from flowturbo_trt.runtime.conditioning import null_values, plan_conditioning
from flowturbo_trt.runtime.launch_plan import Call, Sum, plan_launches
from flowturbo_trt.runtime.tables import spread_conditions, write_program
from flowturbo_trt.sampling.program import Program, StepMark
from flowturbo_trt.sampling.reference import operand

Array = NDArray[np.float32]
Work = Callable[[], None]


class HostEngine(Protocol):
    """An engine that can be called on arrays in host memory."""

    def bind(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> Callable[[], None]:
        """Fix the arrays of a call; the result runs it, in place and without allocating."""
        ...


@dataclass(frozen=True)
class HostRun:
    """A run that is over; its arrays are the trajectory's (runtime.backend.Run)."""

    _latents: Array
    _images: NDArray[np.uint8] | None

    def latents(self) -> Array:
        return self._latents

    def images(self) -> NDArray[np.uint8]:
        if self._images is None:
            raise BackendError("the run was started without decoding")
        return self._images


class HostTrajectory:
    """Runs programs of one shape over HostEngines (runtime.backend.Trajectory)."""

    depth = 1
    is_captured = False

    def __init__(
        self,
        program: Program,
        batch: int,
        manifest: Manifest,
        backend: str,
        engine: Callable[[str, str | None], HostEngine],
    ) -> None:
        self._program = program
        self._plan = plan_launches(program)
        self._model = manifest.model
        self._engine = engine
        self._conditionings = plan_conditioning(manifest, program, batch, backend, pads=False)
        layout = plan_layout(self._plan, batch, self._model, self._conditionings)
        self._arrays: dict[str, NDArray[Any]] = {}
        for block in layout.blocks:
            self._arrays |= HostBlock(block).arrays
        self._registers = [self._arrays[register_name(slot)] for slot in range(len(self._plan.slots))]
        names = (condition.name for condition in self._model.conditions)
        self.inputs = Inputs(
            self._registers[self._plan.noise],
            {name: self._arrays[name] for name in names},
            self._arrays["guidance"],
        )
        fields = sum_fields(self._plan, batch, self._model)
        self._scratch = {field.name: np.empty(field.shape, field.dtype) for field in fields}
        self._binder = binder = Binder(self._model, self._conditionings, self._rows, engine)
        self._conditioners = [binder.conditioner(c, null=False) for c in self._conditionings.values()]
        self._null = [binder.conditioner(c, null=True) for c in self._conditionings.values() if c.guided]
        self._null_is_current = False
        self._steps = [[self._work(launch) for launch in step] for step in self._plan.steps]
        self._decode: Work | None = None
        self._preview: tuple[Array, NDArray[np.uint8], Work] | None = None
        self._fill_null_conditions()
        self.set_program(program)

    def set_program(self, program: Program, rows: slice | None = None) -> None:
        changed = write_program(program, self._plan, self._conditionings, self._arrays, rows)
        self._null_is_current = self._null_is_current and not changed
        self._program = program

    def start(self, *, decode: bool, on_step: OnStep | None = None) -> HostRun:
        decoding = self._decoder() if decode else None
        self._condition()
        for index, step in enumerate(self._steps):
            for work in step:
                work()
            if on_step is not None:
                on_step(self._program.steps[index], index)
        if decoding is not None:
            decoding()
        return HostRun(self._registers[self._plan.output], self._arrays["image"] if decode else None)

    def state_after(self, index: int) -> Array:
        return self._registers[self._plan.marks[index][0]]

    def velocity_after(self, index: int) -> Array:
        return self._registers[self._plan.marks[index][1]]

    def preview(self, index: int) -> NDArray[np.uint8]:
        if self._model.image is None:
            raise BackendError("the bundle has no decoder to preview with")
        if self._preview is None:
            # Of its own: the latents' buffer is in use while the trajectory runs.
            state, image = np.empty_like(self.inputs.noise), np.empty_like(self._arrays["image"])
            call = self._engine("decoder", None).bind({"state": state}, {"image": image})
            self._preview = state, image, call
        state, image, call = self._preview
        extrapolate(self.state_after(index), self.velocity_after(index), self._program.steps[index], state)
        call()
        return image

    def close(self) -> None:
        """Nothing is held but memory."""

    def _decoder(self) -> Work:
        """Bind the decoder when it is first asked for."""
        if self._model.image is None:
            raise BackendError("the bundle has no decoder; ask for latents, or build it with --decoder")
        if self._decode is None:
            self._decode = self._binder.decoder(self._plan.output)
        return self._decode

    def _rows(self, name: str, rows: slice | None) -> NDArray[Any]:
        array = self._arrays[name]
        return array if rows is None else array[rows]

    def _fill_null_conditions(self) -> None:
        for network, conditioning in self._conditionings.items():
            if conditioning.guided:
                for name, value in null_values(self._model.conditions).items():
                    self._arrays[f"{network}.null_{name}"][...] = value

    def _condition(self) -> None:
        """Compute the modulations of hoisted networks: the null condition's only when times have changed."""
        spread_conditions(self._conditionings, self.inputs.conditions, self._arrays)
        stale = [] if self._null_is_current else self._null
        for call in (call for calls in (*self._conditioners, *stale) for call in calls):
            call()
        self._null_is_current = True

    def _work(self, launch: Call | Sum) -> Work:
        return self._binder.call(launch) if isinstance(launch, Call) else self._sum(launch)

    def _sum(self, launch: Sum) -> Work:
        """Bind a combination; every row has coefficients of its own."""
        out, is_state = self._registers[launch.out], self._plan.slots[launch.out].kind == "state"
        scratch = self._scratch[str(self._plan.slots[launch.out])]
        column = (-1, *([1] * (out.ndim - 1)))
        terms = [
            (operand(self._registers[slot], is_state), self._arrays["coefficients"][row].reshape(column))
            for row, slot in launch.terms
        ]
        (first, scale), *rest = terms

        def work() -> None:
            np.multiply(first, scale, out=out)
            for array, coefficient in rest:
                np.multiply(array, coefficient, out=scratch)
                np.add(out, scratch, out=out)

        return work


def extrapolate(state: Array, velocity: Array, mark: StepMark, out: Array) -> None:
    """Write where a trajectory would end if it went on straight from the end of a step."""
    np.multiply(velocity[:, 0], 1 - mark.s, out=out)
    np.add(state, out, out=out)
