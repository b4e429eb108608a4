"""`build`: from checkpoints to a bundle."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path

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
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.export.compile import (
    GPU_BACKENDS,
    Compiler,
    EngineRequest,
    is_as_is,
    load_compiler,
)
from flowturbo_trt.export.engine_sizes import engine_bytes
from flowturbo_trt.export.graphs import Exportable, export_one, exportables
from flowturbo_trt.export.keys import engine_key, graph_key
from flowturbo_trt.export.networks import CONDITIONER_ROWS, velocity_halves
from flowturbo_trt.export.options import BuildError, BuildOptions
from flowturbo_trt.export.preflight import check_need, engine_need
from flowturbo_trt.export.progress import BuildProgress, Progress
from flowturbo_trt.export.recipe_checks import check_recipes
from flowturbo_trt.export.recipe_notes import OPTION
from flowturbo_trt.export.recipes import Recipes, load_recipes
from flowturbo_trt.export.sources import Sources, load_sources
from flowturbo_trt.export.workspace import Workspace, open_workspace
from flowturbo_trt.sampling.program import Program
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.table import SolverTable
from flowturbo_trt.sampling.trace import trace

LICENCE = "The weights keep the licence of their source checkpoints."


def build(
    options: BuildOptions,
    out: Path,
    progress: Progress = lambda what, done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> Bundle:
    """Build a bundle at `out`; an older one there is replaced only when all is done.

    What an interrupted build, or the older bundle, has finished is used again where everything it
    depends on is the same; `say` is told so, and why other pieces are made anew. The log is beside the
    bundle (OUT.build.log). Raises FlowTurboError subclasses: before any long work for mistakes in the
    options, the checkpoints or the place, later when a network cannot be exported or compiled.
    """
    compilers = {backend: load_compiler(backend, options.targets) for backend in options.backends}
    recipes = load_recipes(options, say)
    with open_workspace(out, say) as work:
        progress("reading the checkpoints", 0, 1)
        sources = load_sources(options)
        programs = trace_programs(options, sources)
        items = list(exportables(sources, options.variants, options.conditioning))
        check_recipes(recipes, items, sources, list(programs), say)
        track = BuildProgress(progress, {item.network: item.weight_bytes for item in items})
        if options.preflight:
            # Graphs that are finished lie on the disk already.
            keys = [graph_key(item, sources.provenance[item.checkpoint]) for item in items]
            engine_sizes = engine_bytes(options, recipes, items)
            finished = work.finished_bytes(keys)
            check_resources(track.weight_bytes, engine_sizes, len(options.variants), finished, out)
        model, provenance = describe_model(sources, items), sources.provenance
        track.plan([item.network for item in items], len(compilers))
        graphs = [export_graph(item, provenance[item.checkpoint], work, track) for item in items]
        # From here on the memory is the compilers'.
        del sources, items
        engines = [
            engine
            for backend, compiler in compilers.items()
            for graph in graphs
            for engine in compile_engines(graph, backend, compiler, options, recipes, work, track)
        ]
        track.end("writing the manifest")
        kept = [] if options.strip else graphs
        work.publish(describe(options, recipes, model, provenance, programs, kept, engines, work))
    return Bundle.open(out)


def check_resources(
    weight_bytes: Mapping[str, int],
    engine_sizes: Mapping[str, Mapping[str, int]],
    variants: int,
    finished_bytes: int,
    out: Path,
) -> None:
    """Raise ResourceError where memory or disk will not do for what is not finished yet."""
    need = engine_need(weight_bytes, engine_sizes, variants)
    check_need(replace(need, disk_bytes=max(0, need.disk_bytes - finished_bytes)), out)


def trace_programs(options: BuildOptions, sources: Sources) -> dict[str, dict[str, Program]]:
    """Lower every schedule for every variant; one may not need a network that is not there."""
    default = ("H1P5R3",) if sources.refiner else ("H8",)
    texts = options.schedules or sources.schedules or default
    schedules = [Schedule.parse(text, options.tables) for text in texts]
    named = {schedule.table for schedule in schedules}
    schedules += [Schedule.of_table(table) for table in options.tables if table not in named]
    for schedule in schedules:
        options.check_guidance(schedule)
        if schedule.evaluations()["refiner"] and sources.refiner is None:
            raise BuildError(f"schedule {schedule} has R steps, which need a refiner; give --refiner")
        if (schedule.grid[0], schedule.grid[-1]) != (0, 1):
            raise BuildError(f"schedule {schedule} does not run from 0 to 1, as generation does")
    return {str(s): {variant: trace(s, variant) for variant in options.variants} for s in schedules}


def export_graph(item: Exportable, weights: dict[str, str], work: Workspace, track: BuildProgress) -> Graph:
    """Export one network, unless it is there already, and describe its graph."""
    track.begin(f"exporting {item.network}", item.network)
    key = graph_key(item, weights)
    first, *data = work.piece(f"onnx {item.name}", "onnx", key, lambda folder: export_one(item, folder)).files
    return Graph(item.network, item.variant, first, tuple(data), item.inputs, (item.output,), key)


def compile_engines(
    graph: Graph,
    backend: str,
    compiler: Compiler,
    options: BuildOptions,
    recipes: Recipes,
    work: Workspace,
    track: BuildProgress,
) -> list[Engine]:
    """Compile one graph for one backend: an engine for all batch sizes, or one for each."""
    precision, quantization = recipes.apply(options, backend, graph.name)
    batches = (CONDITIONER_ROWS,) if graph.is_conditioner else options.batches
    separate = options.separate_plans and backend in GPU_BACKENDS and not graph.is_conditioner
    parts = [(batch,) for batch in batches] if separate else [batches]
    engines = []
    for part in parts:
        track.begin(f"compiling for {backend}: {graph.network}", graph.network, len(parts))
        request = EngineRequest(
            graph.network,
            graph.variant,
            work.draft / graph.file,
            graph.inputs,
            graph.outputs,
            precision,
            part,
            separate,
            quantization,
        )
        engines.append(compile_engine(request, graph, backend, compiler, work))
    return engines


def compile_engine(
    request: EngineRequest, graph: Graph, backend: str, compiler: Compiler, work: Workspace
) -> Engine:
    """Compile one engine, unless it is there already, and describe it."""
    key: dict[str, str] = {}
    files = list(graph.files)
    if not is_as_is(backend, request.precision):
        key = engine_key(request, {file: work.files[file] for file in files}, backend, compiler)
        name, place = f"{backend} {graph.name}", f"engines/{backend}"
        files = list(work.piece(name, place, key, lambda folder: compiler.compile(request, folder)).files)
    return Engine(
        request.network,
        request.variant,
        backend,
        request.precision,
        request.batches,
        files[0],
        tuple(files[1:]),
        compiler.targets,
        compiler.builder,
        request.inputs,
        request.outputs,
        key,
    )


def describe(
    options: BuildOptions,
    recipes: Recipes,
    model: Model,
    provenance: dict[str, dict[str, str]],
    programs: dict[str, dict[str, Program]],
    graphs: list[Graph],
    engines: list[Engine],
    work: Workspace,
) -> Manifest:
    """Write down what was built, from what, with what."""
    items: list[Graph | Engine] = [*graphs, *engines]
    needed = sorted({file for item in items for file in item.files})
    return Manifest(
        format=FORMAT,
        version=FORMAT_VERSION,
        model=model,
        batches=tuple(sorted(options.batches)),
        default_schedule=next(iter(programs)),
        programs=programs,
        graphs=tuple(graphs),
        engines=tuple(engines),
        files={file: work.files[file] for file in needed},
        sources=provenance,
        options={field.name: _plain(getattr(options, field.name)) for field in fields(options)}
        | {OPTION: recipes.describe()},
        environment=versions() | {"platform": platform.platform()},
        licence=LICENCE,
        tables=options.tables,
    )


def describe_model(sources: Sources, items: list[Exportable]) -> Model:
    config = sources.predictor.config
    decoder = next((item for item in items if item.network == "decoder"), None)
    image = None if decoder is None else tuple(int(size) for size in decoder.output.shape[1:3])
    channels = sources.guided_channels
    return Model(
        family=sources.predictor.family,
        latent=(config.in_channels, config.input_size, config.input_size),
        image=image,  # type: ignore[arg-type]  # the slice has two items
        conditions=(Condition("label", "int64", 0, config.num_classes - 1, config.null_label),),
        guidance=Guidance(channels, velocity_halves(channels, config.in_channels), sources.default_guidance),
        config=asdict(config),
        refiner_config=asdict(sources.refiner.config) if sources.refiner else None,
        decoder_config=sources.decoder.config if sources.decoder else None,
    )


def _plain(value: object) -> object:
    # Only the file's name: where it lay on the machine that built is nobody's business.
    if isinstance(value, Path):
        return value.name
    # The manifest has tables themselves.
    if isinstance(value, SolverTable):
        return value.name
    return list(map(_plain, value)) if isinstance(value, tuple) else value
