"""Pipelines: a bundle on a backend, from labels and seeds to images."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import (
    Backend,
    Inputs,
    OnStep,
    Run,
    Trajectory,
    default_backend,
    load_backend,
)
from flowturbo_trt.runtime.batching import split
from flowturbo_trt.runtime.device_results import DeviceResults, GeneratedOnDevice
from flowturbo_trt.runtime.programs import choose_variant, find_program
from flowturbo_trt.runtime.request import Request, RequestError, make_request
from flowturbo_trt.runtime.trajectories import Lanes, Pending
from flowturbo_trt.sampling.program import StepMark
from flowturbo_trt.sampling.schedule import Schedule


@dataclass(frozen=True)
class Step:
    """What a callback is told after each step of each batch of a request.

    `rows` are the request's rows in this batch; `index` counts the steps of one batch, `count` is
    their number. `state` (n,C,H,W) and `velocity` (n,G,C,H,W), the velocity passed on, are views
    that the next step overwrites: copy what is to be kept.
    """

    rows: slice
    index: int
    count: int
    kind: str
    t: float
    s: float
    state: NDArray[np.float32]
    velocity: NDArray[np.float32]
    _preview: Callable[[], NDArray[np.uint8]]

    def preview(self) -> NDArray[np.uint8]:
        """Decode where the trajectory would end if it went on straight: (n,H,W,3) uint8; costs a decode."""
        return self._preview()[: self.rows.stop - self.rows.start].copy()


@dataclass(frozen=True)
class Generated:
    """Latents (N,C,H,W) float32 and images (N,H,W,3) uint8, which are None when not asked for."""

    latents: NDArray[np.float32]
    images: NDArray[np.uint8] | None


class Pipeline:
    """Generates images from a bundle. Safe to call from several threads, where calls queue."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._bundle = bundle
        self._backend = backend
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._lanes = Lanes(backend)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        backend: str | None = None,
        device: str | None = None,
        threads: int = 0,
        provider: str | None = None,
    ) -> "Pipeline":
        """Open a bundle and load the engines its default schedule needs.

        `backend` is by default onnxruntime, or what the bundle was built for; `device` is cpu, cuda or
        cuda:N, by default what the backend is made for; `threads` bounds the CPU threads of an engine
        (0: all cores); `provider` is ONNX Runtime's: cpu, cuda or tensorrt. Raises BundleError for a
        bundle that cannot be used, BackendError for a backend or device.
        """
        bundle = Bundle.open(path)
        name = backend or default_backend(bundle.manifest)
        pipeline = cls(bundle, load_backend(name, bundle, device, threads, provider))
        schedule = bundle.manifest.default_schedule
        variant = next(iter(bundle.manifest.programs[schedule]))
        try:
            pipeline._backend.prepare(bundle.manifest.programs[schedule][variant])
        except BaseException:
            pipeline.close()
            raise
        return pipeline

    def close(self) -> None:
        """Give back the memory of a GPU, when all calls have returned; the pipeline is not used again."""
        with self._exclusive():
            self._lanes.close()
            self._backend.close()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self._bundle.manifest

    def __call__(
        self,
        labels: ArrayLike,
        *,
        seeds: Sequence[int] | None = None,
        guidance: ArrayLike | None = None,
        schedule: str | Schedule | None = None,
        noise: NDArray[np.float32] | None = None,
        on_step: Callable[[Step], object] | None = None,
    ) -> NDArray[np.uint8]:
        """Generate one image per label: (N,H,W,3) uint8, in order.

        labels (N) integers; seeds (N) in 0 … 2⁶⁴−1, by default 0 … N−1, each giving the same image in
        every batch; guidance a number or one per image; schedule as text, by default the bundle's;
        noise (N,C,H,W) float32 instead of seeds. `on_step` is called after every step; an exception
        it raises cancels the call and leaves the pipeline usable. Raises RequestError, ScheduleError.
        """
        request = make_request(self.manifest.model, {"label": labels}, seeds, guidance, noise)
        images = self.generate(request, schedule, on_step=on_step).images
        assert images is not None
        return images

    def generate(
        self,
        request: Request,
        schedule: str | Schedule | None = None,
        *,
        decode: bool = True,
        on_step: Callable[[Step], object] | None = None,
    ) -> Generated:
        """Run a request (runtime.request.make_request); with `decode=False` the images are None."""
        self._require_decoder(decode)
        model = self.manifest.model
        latents = np.empty((len(request), *model.latent), dtype=np.float32)
        images = np.empty((len(request), *model.image, 3), dtype=np.uint8) if decode and model.image else None

        def read(rows: slice, run: Run) -> None:
            used = rows.stop - rows.start
            latents[rows] = run.latents()[:used]
            if images is not None:
                images[rows] = run.images()[:used]

        self._run(request, schedule, read, decode=decode, on_step=on_step)
        return Generated(latents, images)

    def generate_on_device(
        self, request: Request, schedule: str | Schedule | None = None, *, decode: bool = True
    ) -> GeneratedOnDevice:
        """Run a request as `generate` does, and leave the results in the GPU's memory, for DLPack.

        Raises RequestError on backends that make them in host memory.
        """
        if self._backend.device is None:
            raise RequestError("this backend makes its results in host memory; use generate")
        self._require_decoder(decode)
        results = DeviceResults(self._backend.device, self.manifest.model, len(request), decode=decode)
        try:
            self._run(request, schedule, results.read, decode=decode, on_step=None)
        except BaseException:
            results.free()
            raise
        return results.hand_out()

    def _require_decoder(self, decode: bool) -> None:
        if decode and self.manifest.model.image is None:
            raise RequestError("the bundle has no decoder; ask for latents, or build it with --decoder")

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Let one call at a time start runs."""
        if self._owner == threading.get_ident():
            raise RequestError("called from within its own on_step, where it would wait for itself")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    def _run(
        self,
        request: Request,
        schedule: str | Schedule | None,
        read: Callable[[slice, Run], None],
        *,
        decode: bool,
        on_step: Callable[[Step], object] | None,
    ) -> None:
        """Run a request batch by batch and `read` every run.

        Calls queue for starting their runs only: while one waits for its last, the next prepares its
        first. Who waits for the lock holds no place on a trajectory, so that those in it get theirs.
        """
        variant = choose_variant(self.manifest, is_unguided=request.is_unguided)
        program = find_program(self.manifest, schedule, variant)
        pending = Pending(read)
        try:
            with self._exclusive():
                start = 0
                for batch in split(len(request), self.manifest.batches):
                    rows = slice(start, min(start + batch, len(request)))
                    lane = self._lanes.lane(program, batch, pending.read_all)
                    report = on_step and _reporter(on_step, rows, lane.trajectory, len(program.steps))
                    begin = partial(_start, lane.trajectory, request, rows, decode, report)
                    pending.start(lane, rows, begin)
                    start = rows.stop
            pending.read_all()
        finally:
            pending.abandon()


def _start(trajectory: Trajectory, request: Request, rows: slice, decode: bool, report: OnStep | None) -> Run:
    _fill(trajectory.inputs, request, rows)
    return trajectory.start(decode=decode, on_step=report)


def _fill(inputs: Inputs, request: Request, rows: slice) -> None:
    """Copy some rows of a request into a trajectory's inputs; the rows past them are padding."""
    used = rows.stop - rows.start
    request.fill_noise(rows, inputs.noise[:used])
    inputs.noise[used:] = 0
    inputs.guidance[:used] = request.guidance[rows]
    inputs.guidance[used:] = 1
    for name, values in request.conditions.items():
        inputs.conditions[name][:used] = values[rows]
        inputs.conditions[name][used:] = values[rows.start]


def _reporter(on_step: Callable[[Step], object], rows: slice, trajectory: Trajectory, count: int) -> OnStep:
    used = slice(0, rows.stop - rows.start)

    def report(mark: StepMark, index: int) -> None:
        state, velocity = trajectory.state_after(index)[used], trajectory.velocity_after(index)[used]
        preview = partial(trajectory.preview, index)
        on_step(Step(rows, index, count, mark.kind, mark.t, mark.s, state, velocity, preview))

    return report
