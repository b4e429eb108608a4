"""Engines for TensorRT, both flavours: `tensorrt_rtx` (builds without a GPU) and `tensorrt`.

Their Python interfaces are nearly the same; the imported module is an argument, and what only one of
them has is found by asking. Networks are strongly typed: their precision is what the graph says.
"""

import importlib
import tempfile
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from flowturbo_trt.bundle.gpus import GpuError, gpus
from flowturbo_trt.export.compile import CompileError, Compiler, EngineRequest
from flowturbo_trt.export.onnx_graph import save_graph
from flowturbo_trt.export.precision import engine_graph
from flowturbo_trt.runtime.tensorrt_log import collector


def open_rtx(targets: tuple[str, ...]) -> Compiler:
    """Return the compiler of TensorRT for RTX, which needs neither a GPU nor a driver."""
    return _open("tensorrt_rtx", "tensorrt-rtx", targets)


def open_enterprise(targets: tuple[str, ...]) -> Compiler:
    """Return the compiler of TensorRT, which builds for the GPU of this machine."""
    return _open("tensorrt", "tensorrt", targets)


def _open(module: str, backend: str, targets: tuple[str, ...]) -> Compiler:
    try:
        trt = importlib.import_module(module)
    except Exception as error:  # without the vendor's libraries it fails in ways of its own
        raise CompileError(
            f"backend {backend} is not installed ({error}); pip install 'flowturbo_trt[{backend}]'"
        ) from error
    for target in targets:
        _capability(trt, target, backend)
    builder = f"{trt.__name__} {trt.__version__}"
    if not hasattr(trt, "ComputeCapability"):
        builder += f" for {_gpu(backend)}"
    return Compiler(builder, partial(compile_plan, trt, backend, targets), targets, fixes_batches=True)


def _gpu(backend: str) -> str:
    """Return name and driver of the GPU that an engine of the enterprise flavour is bound to."""
    try:
        first = gpus()[0]
    except GpuError as error:
        raise CompileError(
            f"backend {backend} builds on the GPU it is to run on ({error}); build there, or use "
            "--backend tensorrt-rtx, which needs none"
        ) from error
    return f"{first.name}, {first.driver}"


def compile_plan(
    trt: ModuleType, backend: str, targets: tuple[str, ...], request: EngineRequest, folder: Path
) -> tuple[Path, ...]:
    """Build one plan whose profiles fix the batch (min = opt = max), so that its weights are held once."""
    log = collector(trt)
    builder = trt.Builder(log)
    if builder is None:
        raise CompileError(
            f"{backend}: cannot start ({log.last()}); TensorRT needs an NVIDIA GPU and driver to build"
        )
    network = builder.create_network(_network_flags(trt))
    # Beside the plan and not in the system's folder, which may be in memory: it is as large.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source = _lowered(request, Path(scratch))
        _parse(trt, network, source, log, f"{backend}, {request.name}")
        _check_interface(network, request, backend)
        config = builder.create_builder_config()
        for batch in request.batches:
            config.add_optimization_profile(_profile(builder, request, batch))
        _set_flags(trt, config, request.base)
        _set_targets(trt, config, targets, backend)
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise CompileError(f"{backend} refused {request.name}: {log.last()}")
    path = folder / f"{request.name}.plan"
    path.write_bytes(memoryview(plan))
    return (path,)


def _lowered(request: EngineRequest, folder: Path) -> Path:
    """Write the graph in the request's precision; its weights leave this process's memory with the model."""
    return save_graph(engine_graph(request), folder / "network.onnx")[0]


def _set_flags(trt: ModuleType, config: Any, precision: str) -> None:
    # On by default, and then float32 products are computed with 10 bits of mantissa.
    tf32 = getattr(trt.BuilderFlag, "TF32", None)
    if precision == "fp32" and tf32 is not None:
        config.clear_flag(tf32)
    # Trajectories are captured as one CUDA graph, in which nothing may be allocated and one stream is used.
    user_allocation = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if user_allocation is not None:
        config.set_flag(user_allocation)
    config.max_aux_streams = 0
    # So that a loaded engine can tell the types it computes in.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _network_flags(trt: ModuleType) -> int:
    # Before version 11 strong typing had to be asked for.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(trt: ModuleType, network: Any, source: Path, log: Any, what: str) -> None:
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(source)):
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        errors = [f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in found]
        raise CompileError(
            f"{what}: the parser refused the graph: {' '.join((errors or [log.last()])[0].split())}"
        )


def _check_interface(network: Any, request: EngineRequest, backend: str) -> None:
    found = [network.get_input(i).name for i in range(network.num_inputs)]
    found += [network.get_output(i).name for i in range(network.num_outputs)]
    expected = [tensor.name for tensor in (*request.inputs, *request.outputs)]
    if sorted(found) != sorted(expected):
        raise CompileError(f"{backend}, {request.name}: has tensors {found}, expected {expected}")


def _profile(builder: Any, request: EngineRequest, batch: int) -> Any:
    profile = builder.create_optimization_profile()
    for tensor in request.inputs:
        shape = (batch, *tensor.shape[1:])
        profile.set_shape(tensor.name, shape, shape, shape)
    return profile


def _set_targets(trt: ModuleType, config: Any, targets: tuple[str, ...], backend: str) -> None:
    """Restrict the plan to compute capabilities, e.g. ("8.9",); none leaves it portable."""
    if targets:
        config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(_capability(trt, target, backend), index)


def _capability(trt: ModuleType, target: str, backend: str) -> Any:
    """Return TensorRT's name for a compute capability given as `8.9` or `sm89`."""
    if not hasattr(trt, "ComputeCapability"):
        raise CompileError(f"{backend} builds for the GPU of this machine only; leave out --target")
    known = {
        name.removeprefix("SM"): member
        for name, member in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    key = target.lower().removeprefix("sm").replace(".", "")
    if key not in known:
        raise CompileError(f"unknown target {target!r}; {backend} knows {', '.join(map(_dotted, known))}")
    return known[key]


def _dotted(capability: str) -> str:
    return f"{capability[:-1]}.{capability[-1]}"
