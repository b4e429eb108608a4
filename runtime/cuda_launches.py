"""What a trajectory asks of a GPU, piece by piece, bound to its arrays: engines, and sums as kernels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flowturbo_trt.bundle.manifest import Model
from flowturbo_trt.runtime.binding import Binder
from flowturbo_trt.runtime.buffers import register_name
from flowturbo_trt.runtime.conditioning import Conditioning
from flowturbo_trt.runtime.device import Device, DeviceArray, DeviceEngine
from flowturbo_trt.runtime.launch_plan import Call, Fusion, LaunchPlan, fuse
from flowturbo_trt.runtime.sum_kernels import THREADS, SumKernels, SumLaunch
from flowturbo_trt.sampling.program import Program

# Asks a stream for a piece of work.
Launch = Callable[[int], None]
ArrayOf = Callable[[str, slice | None], DeviceArray]


@dataclass(frozen=True)
class EngineCall:
    """Asks a stream for a call of an engine, bound to its arrays."""

    name: str
    engine: DeviceEngine
    ask: Launch

    def __call__(self, stream: int) -> None:
        self.ask(stream)


@dataclass(frozen=True)
class _NamedEngine:
    """An engine whose calls know whose they are."""

    name: str
    engine: DeviceEngine

    def bind(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> EngineCall:
        return EngineCall(self.name, self.engine, self.engine.bind(inputs, outputs))


@dataclass(frozen=True)
class Launches:
    """A trajectory's work in order: conditioning, then the program as a `whole` or step by step, decoding.

    `null` is the conditioning of the null condition, which depends on the times alone.
    """

    null: tuple[Launch, ...]
    conditioning: tuple[Launch, ...]
    whole: tuple[Launch, ...]
    steps: tuple[tuple[Launch, ...], ...]
    decoding: tuple[Launch, ...]


def bind_launches(
    program: Program,
    plan: LaunchPlan,
    model: Model,
    batch: int,
    conditionings: Mapping[str, Conditioning],
    device: Device,
    array: ArrayOf,
    engine: Callable[[str, str | None], DeviceEngine],
) -> Launches:
    """Bind engines to arrays and compile the sums of a program."""

    def named(network: str, variant: str | None) -> _NamedEngine:
        return _NamedEngine(network if variant is None else f"{network} {variant}", engine(network, variant))

    binder: Binder[DeviceArray, EngineCall] = Binder(model, conditionings, array, named)
    calls = {call: binder.call(call) for call in plan.calls}
    every_step = range(len(program.steps))
    sequences = [fuse(program, plan, every_step)]
    sequences += [fuse(program, plan, range(step, step + 1)) for step in every_step]
    sums = _bind_sums(sequences, SumKernels(plan, batch, model), device, array)
    whole, *steps = (
        tuple(calls[launch] if isinstance(launch, Call) else sums[launch] for launch in sequence)
        for sequence in sequences
    )
    guided = [found for found in conditionings.values() if found.guided]
    return Launches(
        null=tuple(call for found in guided for call in binder.conditioner(found, null=True)),
        conditioning=tuple(
            call for found in conditionings.values() for call in binder.conditioner(found, null=False)
        ),
        whole=whole,
        steps=tuple(steps),
        decoding=() if model.image is None else (binder.decoder(plan.output),),
    )


def _bind_sums(
    sequences: Sequence[Sequence[Call | Fusion]], kernels: SumKernels, device: Device, array: ArrayOf
) -> dict[Fusion, Launch]:
    fusions = [launch for sequence in sequences for launch in sequence if isinstance(launch, Fusion)]
    described = {fusion: kernels.launch(fusion) for fusion in fusions}
    loaded = device.load_kernels(kernels.source, kernels.names) if described else {}
    return {
        fusion: _bind_sum(launch, loaded[launch.kernel], kernels.blocks, device, array)
        for fusion, launch in described.items()
    }


def _bind_sum(
    found: SumLaunch, kernel: int, blocks: tuple[int, int], device: Device, array: ArrayOf
) -> Launch:
    coefficients = array("coefficients", slice(found.row, None))
    addresses = [coefficients.address, *(array(register_name(slot), None).address for slot in found.slots)]

    def launch(stream: int) -> None:
        device.launch(kernel, blocks, THREADS, addresses, stream)

    return launch
