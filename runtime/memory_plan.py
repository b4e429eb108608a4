"""What a pipeline will hold in memory, known before anything is loaded.

Trajectories are counted to the byte, as `runtime.buffers` lays them out; weights are as large as the
engines' files, in whichever form a backend keeps them. What only a loaded engine can tell is named
instead of guessed. Not counted are previews, and results that stay on a GPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowturbo_trt.bundle.manifest import BundleError, Manifest, Model
from flowturbo_trt.runtime.backend import BACKENDS, BackendError
from flowturbo_trt.runtime.buffers import Block, Field, plan_layout, plan_results, register_name, sum_fields
from flowturbo_trt.runtime.conditioning import Conditioning, needed_engines, plan_conditioning
from flowturbo_trt.runtime.cuda_trajectory import PLACES
from flowturbo_trt.runtime.launch_plan import plan_launches
from flowturbo_trt.sampling.program import Program


@dataclass(frozen=True)
class TrajectoryPlan:
    """Bytes of a trajectory of `batch` rows, all but `pinned` in the memory that its engines work in.

    `registers` are states and velocities, on the host also those that sums are formed with; `tables` the
    times, coefficients, conditions and guidance; `staging` is where a GPU has the inputs and results of
    runs beside the one it works on, `pinned` the host memory that they are copied from and to.
    """

    batch: int
    registers: int
    modulations: int
    tables: int
    images: int
    staging: int
    pinned: int

    @property
    def total(self) -> int:
        return self.registers + self.modulations + self.tables + self.images + self.staging


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a backend's engines, each once, and of a trajectory for every batch size.

    They are a GPU's if it works `on_gpu`, the host's otherwise; `unknown` says what comes on top.
    """

    backend: str
    on_gpu: bool
    weights: int
    trajectories: tuple[TrajectoryPlan, ...]
    unknown: str

    @property
    def total(self) -> int:
        """What all batch sizes take when each has been used."""
        return self.weights + sum(trajectory.total for trajectory in self.trajectories)

    @property
    def pinned(self) -> int:
        return sum(trajectory.pinned for trajectory in self.trajectories)


def plan_memory(
    manifest: Manifest, program: Program, batches: Sequence[int], backend: str, *, on_gpu: bool
) -> MemoryPlan:
    """Plan what a program's engines and trajectories take on a backend.

    Raises BackendError for one that is not known, BundleError for engines that the bundle lacks.
    """
    for batch in batches:
        if batch not in manifest.batches:
            raise BundleError(
                f"batch {batch}: the bundle was built for {', '.join(map(str, manifest.batches))}; take one "
                f"of these, or rebuild it with --batch {batch}"
            )
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r} is not known; use {', '.join(BACKENDS)}")
    plans = runs_plans(backend)
    trajectories = tuple(
        plan_trajectory(
            program,
            batch,
            manifest.model,
            plan_conditioning(manifest, program, batch, backend, pads=plans),
            on_gpu=on_gpu,
        )
        for batch in batches
    )
    within = "scratch memory of the plans" if plans else "activations within the engines"
    unknown = f"{within}, and what CUDA takes for itself" if on_gpu else within
    return MemoryPlan(backend, on_gpu, _weights(manifest, program, backend), trajectories, unknown)


def runs_plans(backend: str) -> bool:
    """Tell whether a backend's engines are plans for GPUs, which have their rows fixed."""
    return BACKENDS[backend].device != "cpu"


def plan_trajectory(
    program: Program, batch: int, model: Model, conditionings: Mapping[str, Conditioning], *, on_gpu: bool
) -> TrajectoryPlan:
    """Plan what a trajectory allocates when it is bound."""
    plan = plan_launches(program)
    layout = plan_layout(plan, batch, model, conditionings)
    registers = {register_name(slot) for slot in range(len(plan.slots))}
    found: dict[str, list[Field]] = {"registers": [], "modulations": [], "tables": [], "images": []}
    for field in (field for block in layout.blocks for field in block.fields):
        if field.name in registers:
            kind = "registers"
        elif field.name == "image":
            kind = "images"
        else:
            kind = "modulations" if field.name.endswith("modulation") else "tables"
        found[kind].append(field)
    sums = () if on_gpu else sum_fields(plan, batch, model)
    copies = PLACES * (layout.inputs.nbytes + plan_results(plan, batch, model).nbytes) if on_gpu else 0
    sizes = {kind: Block(tuple(fields)).nbytes for kind, fields in found.items()}
    sizes["registers"] += sum(field.nbytes for field in sums)
    return TrajectoryPlan(batch=batch, staging=copies, pinned=copies, **sizes)


def _weights(manifest: Manifest, program: Program, backend: str) -> int:
    files: set[str] = set()
    for network, variant in needed_engines(manifest, program, backend):
        wanted = (manifest.engine(network, variant, backend).name, backend)
        # All of them: plans may be apart by batch, and are loaded together.
        files.update(f for e in manifest.engines if (e.name, e.backend) == wanted for f in e.files)
    return sum(manifest.files[file].bytes for file in files)
