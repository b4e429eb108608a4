"""`build`: from checkpoints to a bundle."""

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from flowturbo_trt.bundle.environment import versions
from flowturbo_trt.bundle.manifest import (
    FORMAT,
    FORMAT_VERSION,
    Condition,
    Engine,
    Graph,
    Guidance,
    Manifest,
    Model,
)
from flowturbo_trt.bundle.store import Bundle, record_files, replacing, write_manifest
from flowturbo_trt.export.compile import CompiledEngine, Compiler, EngineRequest, load_compiler
from flowturbo_trt.export.graphs import Exportable, export_one, exportables
from flowturbo_trt.export.networks import velocity_halves
from flowturbo_trt.export.options import BuildError, BuildOptions
from flowturbo_trt.export.sources import Sources, load_sources
from flowturbo_trt.sampling.program import Program
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace

# Told what is being done, how many pieces of work are done, and how many there are.
Progress = Callable[[str, int, int], None]
Work = TypeVar("Work", Exportable, Graph)
LICENCE = "The weights keep the licence of their source checkpoints."


def build(options: BuildOptions, out: Path, progress: Progress = lambda what, done, total: None) -> Bundle:
    """Build a bundle at `out`; an older one there is replaced only when all is done.

    Raises FlowTurboError subclasses: before any long work for mistakes in the options, the checkpoints
    or the place, later when a network cannot be exported or compiled.
    """
    compilers = {backend: load_compiler(backend, options.targets) for backend in options.backends}
    with replacing(out) as folder:
        progress("reading the checkpoints", 0, 1)
        sources = load_sources(options)
        programs = trace_programs(options, sources)
        networks = list(exportables(sources, options.variants))
        work = _Counter(progress, len(networks) * (1 + len(compilers)))
        graphs = [export_one(n, folder) for n in work.over(networks, "exporting")]
        engines = [
            compile_one(graph, backend, compiler, options, folder)
            for backend, compiler in compilers.items()
            for graph in work.over(graphs, f"compiling for {backend}:")
        ]
        work.done("writing the manifest")
        write_manifest(folder, describe(options, sources, programs, graphs, engines, folder))
    return Bundle.open(out)


def trace_programs(options: BuildOptions, sources: Sources) -> dict[str, dict[str, Program]]:
    """Lower every schedule for every variant; one may not need a network that is not there."""
    default = ("H1P5R3",) if sources.refiner else ("H8",)
    schedules = [Schedule.parse(text) for text in options.schedules or sources.schedules or default]
    for schedule in schedules:
        if schedule.evaluations()["refiner"] and sources.refiner is None:
            raise BuildError(f"schedule {schedule} has R steps, which need a refiner; give --refiner")
        if (schedule.grid[0], schedule.grid[-1]) != (0, 1):
            raise BuildError(f"schedule {schedule} does not run from 0 to 1, as generation does")
    return {str(s): {variant: trace(s, variant) for variant in options.variants} for s in schedules}


def compile_one(
    graph: Graph, backend: str, compiler: Compiler, options: BuildOptions, folder: Path
) -> Engine:
    """Compile one graph for one backend and describe the engine."""
    precision = options.precision_of(backend)
    request = EngineRequest(
        graph.network,
        graph.variant,
        folder / graph.file,
        graph.inputs,
        graph.outputs,
        precision,
        options.batches,
        options.targets,
    )
    compiled: CompiledEngine = compiler(request, folder / "engines" / backend)
    first, *data = (file.relative_to(folder).as_posix() for file in compiled.files)
    return Engine(
        graph.network,
        graph.variant,
        backend,
        precision,
        options.batches,
        first,
        tuple(data),
        compiled.targets,
        compiled.builder,
        graph.inputs,
        graph.outputs,
    )


def describe(
    options: BuildOptions,
    sources: Sources,
    programs: dict[str, dict[str, Program]],
    graphs: list[Graph],
    engines: list[Engine],
    folder: Path,
) -> Manifest:
    """Write down what was built, from what, with what."""
    return Manifest(
        format=FORMAT,
        version=FORMAT_VERSION,
        model=describe_model(sources, graphs),
        batches=tuple(sorted(options.batches)),
        default_schedule=next(iter(programs)),
        programs=programs,
        graphs=tuple(graphs),
        engines=tuple(engines),
        files=record_files(folder),
        sources=sources.provenance,
        options={name: _plain(value) for name, value in asdict(options).items()},
        environment=versions() | {"platform": platform.platform()},
        licence=LICENCE,
    )


def describe_model(sources: Sources, graphs: list[Graph]) -> Model:
    config = sources.predictor.config
    decoder = next((graph for graph in graphs if graph.network == "decoder"), None)
    image = None if decoder is None else tuple(int(size) for size in decoder.outputs[0].shape[1:3])
    channels = sources.guided_channels
    return Model(
        family="sit",
        latent=(config.in_channels, config.input_size, config.input_size),
        image=image,  # type: ignore[arg-type]  # the slice has two items
        conditions=(Condition("label", "int64", 0, config.num_classes - 1),),
        guidance=Guidance(channels, velocity_halves(channels, config.in_channels), sources.default_guidance),
        config=asdict(config),
        refiner_config=asdict(sources.refiner.config) if sources.refiner else None,
        decoder_config=sources.decoder.config if sources.decoder else None,
    )


def _plain(value: object) -> object:
    # Only the file's name: where it lay on the machine that built is nobody's business.
    if isinstance(value, Path):
        return value.name
    return list(value) if isinstance(value, tuple) else value


class _Counter:
    """Reports progress over several lists of work as one."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._count = progress, total, 0

    def over(self, items: Sequence[Work], verb: str) -> Iterator[Work]:
        for item in items:
            self._progress(f"{verb} {item.network}", self._count, self._total)
            yield item
            self._count += 1

    def done(self, what: str) -> None:
        self._progress(what, self._total, self._total)
