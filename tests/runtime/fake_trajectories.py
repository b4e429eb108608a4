"""A backend whose runs go on after they were started, as on a GPU, and which notices what must not be."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Model
from flowturbo_trt.runtime.backend import BackendError, Inputs, OnStep
from flowturbo_trt.runtime.device import Device
from flowturbo_trt.sampling.program import Program

Array = NDArray[np.float32]
# Long enough for any of these on a slow machine: only a deadlock takes longer.
PATIENCE = 20


class FakeRun:
    """A run that is computed when it is read."""

    def __init__(self, trajectory: "FakeTrajectory", number: int, latents: Array) -> None:
        self._trajectory = trajectory
        self._number = number
        self._latents = latents

    def latents(self) -> Array:
        trajectory = self._trajectory
        trajectory.reading()
        assert not trajectory.closed, "read after its trajectory was closed"
        assert trajectory.started - self._number < trajectory.depth, "read after it was overwritten"
        if trajectory.backend.fails_to_read:
            raise BackendError("the device was lost")
        return self._latents

    def images(self) -> NDArray[np.uint8]:
        raise NotImplementedError


class FakeTrajectory:
    """Latents are noise·guidance + label, and the first time of the program in their first number."""

    is_captured = False

    def __init__(self, backend: "FakeBackend", program: Program, batch: int) -> None:
        model, self.backend, self.depth = backend.model, backend, backend.depth
        self.program, self.batch = program, batch
        self.closed = False
        self.started = 0
        self._thread: int | None = None
        conditions = {condition.name: np.zeros(batch, dtype=np.int64) for condition in model.conditions}
        noise = np.zeros((batch, *model.latent), dtype=np.float32)
        self.inputs = Inputs(noise, conditions, np.zeros(batch, dtype=np.float32))

    def set_program(self, program: Program, rows: slice | None = None) -> None:
        assert not self.closed
        assert program.shape == self.program.shape
        self.program = program

    def start(self, *, decode: bool, on_step: OnStep | None = None) -> FakeRun:
        assert not self.closed, "started after it was closed"
        assert self._thread is None, "two threads start runs"
        self._thread = threading.get_ident()
        try:
            self.backend.starting(self)
            (label,) = self.inputs.conditions.values()
            scale = self.inputs.guidance[:, None, None, None]
            latents = self.inputs.noise * scale + label[:, None, None, None].astype(np.float32)
            latents[:, 0, 0, 0] = sum(self.program.times())
            if on_step is not None:
                for index, mark in enumerate(self.program.steps):
                    on_step(mark, index)
            self.started += 1
            return FakeRun(self, self.started, latents)
        finally:
            self._thread = None

    def reading(self) -> None:
        self.backend.reading(self)

    def state_after(self, index: int) -> Array:
        return self.inputs.noise

    def velocity_after(self, index: int) -> Array:
        return self.inputs.noise[:, None]

    def preview(self, index: int) -> NDArray[np.uint8]:
        raise NotImplementedError

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True


class FakeBackend:
    """Binds FakeTrajectories of one depth; the hooks are for tests to wait or fail in."""

    device: Device | None = None

    def __init__(self, model: Model, depth: int) -> None:
        self.model = model
        self.depth = depth
        self.bound: list[FakeTrajectory] = []
        self.fails_to_start = False
        self.fails_to_read = False
        self.closed = False

    def prepare(self, program: Program) -> None:
        pass

    def bind(self, program: Program, batch: int) -> FakeTrajectory:
        self.bound.append(FakeTrajectory(self, program, batch))
        return self.bound[-1]

    def evaluate(self, network: str, variant: str | None, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        raise NotImplementedError

    def starting(self, trajectory: FakeTrajectory) -> None:
        if self.fails_to_start:
            raise BackendError("no kernel was launched")

    def reading(self, trajectory: FakeTrajectory) -> None:
        pass

    def close(self) -> None:
        assert all(trajectory.closed for trajectory in self.bound), "closed before its trajectories"
        self.closed = True


class Waiting:
    """A place in the code where threads stop until they are let go."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self, trajectory: FakeTrajectory) -> None:
        self.reached.release()
        assert self.go.wait(PATIENCE)

    def wait_until_reached(self) -> None:
        assert self.reached.acquire(timeout=PATIENCE)


class Calls:
    """Threads whose exceptions and deadlocks are the test's."""

    def __init__(self, *works: Callable[[], object]) -> None:
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(work,), daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self.errors.append(error)

    def finish(self) -> None:
        end = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
            assert not thread.is_alive(), "deadlock"
        if self.errors:
            raise self.errors[0]
