"""Pipelines: a bundle on a backend, from labels and seeds to images."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import DEFAULT_BACKEND, Backend, Trajectory, load_backend
from flowturbo_trt.runtime.batching import split
from flowturbo_trt.runtime.programs import choose_variant, find_program
from flowturbo_trt.runtime.request import Request, RequestError, make_request
from flowturbo_trt.sampling.program import Program, StepMark
from flowturbo_trt.sampling.schedule import Schedule

# Bound trajectories kept for reuse: a few schedules at a few batch sizes.
MAX_TRAJECTORIES = 16


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
        self._trajectories: OrderedDict[tuple[object, ...], Trajectory] = OrderedDict()

    @classmethod
    def load(
        cls, path: str | Path, *, backend: str | None = None, device: str = "cpu", threads: int = 0
    ) -> "Pipeline":
        """Open a bundle and load the engines its default schedule needs.

        `device` is cpu, cuda or cuda:N; `threads` bounds the CPU threads of an engine (0: all cores).
        Raises BundleError for a bundle that cannot be used, BackendError for a backend or device.
        """
        bundle = Bundle.open(path)
        pipeline = cls(bundle, load_backend(backend or DEFAULT_BACKEND, bundle, device, threads))
        schedule = bundle.manifest.default_schedule
        variant = next(iter(bundle.manifest.programs[schedule]))
        pipeline._backend.prepare(bundle.manifest.programs[schedule][variant])
        return pipeline

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
        model = self.manifest.model
        if decode and model.image is None:
            raise RequestError("the bundle has no decoder; ask for latents, or build it with --decoder")
        n = len(request)
        latents = np.empty((n, *model.latent), dtype=np.float32)
        images = np.empty((n, *model.image, 3), dtype=np.uint8) if decode and model.image else None
        with self._exclusive():
            for rows, trajectory in self._run(request, schedule, on_step):
                used = rows.stop - rows.start
                latents[rows] = trajectory.latents[:used]
                if images is not None:
                    images[rows] = trajectory.decode()[:used]
        return Generated(latents, images)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Let one call at a time use the buffers."""
        if self._owner == threading.get_ident():
            raise RequestError("called from within its own on_step, where it would wait for itself")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    def _run(
        self, request: Request, schedule: str | Schedule | None, on_step: Callable[[Step], object] | None
    ) -> Iterator[tuple[slice, Trajectory]]:
        """Run a request batch by batch; each trajectory is to be read before the next is asked for."""
        variant = choose_variant(self.manifest, is_unguided=request.is_unguided)
        program = find_program(self.manifest, schedule, variant)
        start = 0
        for batch in split(len(request), self.manifest.batches):
            rows = slice(start, min(start + batch, len(request)))
            trajectory = self._trajectory(program, batch)
            _fill(trajectory, request, rows)
            trajectory.run(on_step and _reporter(on_step, rows, trajectory, len(program.steps)))
            yield rows, trajectory
            start = rows.stop

    def _trajectory(self, program: Program, batch: int) -> Trajectory:
        """Return buffers and bound engines for a program's shape, with this program's numbers."""
        key = (program.shape(), batch)
        if key not in self._trajectories:
            self._trajectories[key] = self._backend.bind(program, batch)
            if len(self._trajectories) > MAX_TRAJECTORIES:
                self._trajectories.popitem(last=False)
        self._trajectories.move_to_end(key)
        trajectory = self._trajectories[key]
        trajectory.set_program(program)
        return trajectory


def _fill(trajectory: Trajectory, request: Request, rows: slice) -> None:
    """Copy some rows of a request into a trajectory's inputs; the rows past them are padding."""
    used = rows.stop - rows.start
    request.fill_noise(rows, trajectory.noise[:used])
    trajectory.noise[used:] = 0
    trajectory.guidance[:used] = request.guidance[rows]
    trajectory.guidance[used:] = 1
    for name, values in request.conditions.items():
        trajectory.conditions[name][:used] = values[rows]
        trajectory.conditions[name][used:] = values[rows.start]


def _reporter(
    on_step: Callable[[Step], object], rows: slice, trajectory: Trajectory, count: int
) -> Callable[[StepMark, int], None]:
    used = slice(0, rows.stop - rows.start)

    def report(mark: StepMark, index: int) -> None:
        state, velocity = trajectory.state_after(mark)[used], trajectory.velocity_after(mark)[used]
        preview = partial(trajectory.preview, mark)
        on_step(Step(rows, index, count, mark.kind, mark.t, mark.s, state, velocity, preview))

    return report
