"""TensorRT plans at run time, both flavours: `tensorrt_rtx` and `tensorrt`.

Their Python interfaces are nearly the same; the imported module is an argument, and what only one of
them has is found by asking. Most of their failures are a logged message and None or False.
TensorRT works in the CUDA context that is current in the calling thread: it has to be the device's.
"""

import importlib
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from flowturbo_trt.bundle.manifest import Engine, Tensor
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.device import ALIGNMENT, Device, DeviceArray
from flowturbo_trt.runtime.kernel_cache import KernelCache, cache_folder
from flowturbo_trt.runtime.tensorrt_cache import CacheKey, TensorRtKernels, driver_version
from flowturbo_trt.runtime.tensorrt_interface import check_interface, check_outputs, shape_for
from flowturbo_trt.runtime.tensorrt_layers import agrees, layer_precisions
from flowturbo_trt.runtime.tensorrt_log import collector
from flowturbo_trt.runtime.tensorrt_refusal import RefusedPlan, memory_error, out_of_memory, plan_problems


def open_runtime(module_name: str, backend: str, kernels: Path | None = None) -> "TensorRtRuntime":
    """Import a flavour of TensorRT and start it.

    Kernels that it compiles are kept in the folder `kernels`, or the user's cache. Raises BackendError
    where it is not installed or does not start.
    """
    try:
        trt = importlib.import_module(module_name)
    except Exception as error:  # without the vendor's libraries it fails in ways of its own
        raise BackendError(
            f"backend {backend} is not installed ({error}); pip install 'flowturbo_trt[{backend}]'"
        ) from error
    return TensorRtRuntime(trt, backend, KernelCache(kernels or cache_folder("tensorrt")))


class TensorRtRuntime:
    """A started TensorRT, which loads plans."""

    def __init__(self, trt: ModuleType, backend: str, kernels: KernelCache) -> None:
        self.trt = trt
        self.backend = backend
        self.kernels = kernels
        self.log = collector(trt)
        try:
            self._runtime = trt.Runtime(self.log)
        except TypeError:  # what the bindings make of a constructor that returns null
            self._runtime = None
        if self._runtime is None:
            raise BackendError(
                f"{backend}: {self.version} does not start ({self.log.last()}); it needs an NVIDIA GPU and "
                "driver: see `flowturbo_trt doctor`, or use --backend onnxruntime"
            )

    @property
    def version(self) -> str:
        """Module and version as the manifest's builders name them."""
        return f"{self.trt.__name__} {self.trt.__version__}"

    def load(self, bundle: Bundle, engine: Engine, device: Device) -> "TensorRtEngine":
        """Load an engine's plan on the device and hold it against the manifest; raises BackendError."""
        path = bundle.file(engine.file)
        record = bundle.manifest.files[engine.file]
        self.log.clear()
        # Mapped, because a plan is as large as its weights and is needed no longer than this.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            loaded = self._runtime.deserialize_cuda_engine(plan)
            if loaded is None:
                reason = self.log.last()
                problems = plan_problems(self.trt, self._runtime, plan)
                refused = RefusedPlan(
                    self.backend, self.version, engine, record.bytes, device, reason, problems
                )
                raise refused.error()
        return TensorRtEngine(self, engine, loaded, device, record.sha256)


class TensorRtEngine:
    """A loaded plan: weights in the device's memory, one profile for each of the engine's batch sizes.

    `precisions` counts the layers that work on each type, empty where the plan does not tell.
    """

    def __init__(
        self, runtime: TensorRtRuntime, described: Engine, loaded: Any, device: Device, sha256: str
    ) -> None:
        self.described = described
        self._runtime = runtime
        self._loaded = loaded
        self._device = device
        check_interface(described, loaded)
        self.precisions: Mapping[str, int] = layer_precisions(runtime.trt, loaded)
        if not self.is_as_declared(described.precision):
            found = ", ".join(f"{dtype} in {layers} layers" for dtype, layers in self.precisions.items())
            raise BackendError(
                f"{described.name}: {described.file} computes in {found}, and the manifest says "
                f"{described.precision}; rebuild it with --backend {runtime.backend}"
            )
        self._kernels = self._open_kernel_cache(sha256)

    def is_as_declared(self, precision: str) -> bool:
        """Tell whether the layers' types are those of a precision; True where the plan does not tell."""
        return agrees(self.precisions, precision)

    def scratch_bytes(self, batch: int) -> int:
        """Return what a context for `batch` rows needs of memory that it does not keep between calls."""
        return int(self._loaded.get_device_memory_size_for_profile_v2(self._profile(batch)))

    def context(self, batch: int, scratch: DeviceArray, stream: int) -> "TensorRtContext":
        """Return a context for `batch` rows that works in `scratch`; waits for the stream.

        Contexts may share scratch memory of at least `scratch_bytes` if they never run at once. Raises
        BackendError.
        """
        profile, needed = self._profile(batch), self.scratch_bytes(batch)
        if scratch.nbytes < needed or scratch.address % ALIGNMENT:
            raise BackendError(
                f"{self.described.name}: {scratch.nbytes} bytes of scratch memory at {scratch.address:#x}, "
                f"expected at least {needed} at a multiple of {ALIGNMENT}"
            )
        self._runtime.log.clear()
        context = self._loaded.create_execution_context(self._runtime_config())
        if context is None:
            raise self.failure(f"cannot make a context for batch {batch}", needed)
        # What layers are called is in the plan for `precisions`; naming them in every call takes time.
        context.nvtx_verbosity = self._runtime.trt.ProfilingVerbosity.NONE
        if not context.set_optimization_profile_async(profile, stream):
            raise self.failure(f"cannot select the profile of batch {batch}")
        for tensor in self.described.inputs:
            if not context.set_input_shape(tensor.name, shape_for(tensor, batch)):
                raise self.failure(f"refuses {tensor.name} of shape {list(shape_for(tensor, batch))}")
        context.set_device_memory(scratch.address, scratch.nbytes)
        check_outputs(self.described, context, batch)
        # Choosing a profile may have copied something, and the context may be used on another stream.
        self._device.synchronize_stream(stream)
        self.save_kernels()
        return TensorRtContext(self, context, batch)

    def save_kernels(self) -> bool:
        """Keep what was compiled so far for the next process; tell whether there was more to keep."""
        return self._kernels is not None and self._kernels.save()

    def failure(self, failed: str, asked_bytes: int = 0) -> BackendError:
        """Return the error for what TensorRT just failed to do, with the reason it gave."""
        what, reason = f"{self.described.name}: {self._runtime.backend} {failed}", self._runtime.log.last()
        if out_of_memory(reason):
            return memory_error(what, reason, asked_bytes, self._device)
        return BackendError(f"{what}: {reason}; rebuild the bundle if it stays so")

    def _profile(self, batch: int) -> int:
        if batch not in self.described.batches:
            raise BackendError(
                f"{self.described.name}: {self.described.file} has batches "
                f"{', '.join(map(str, self.described.batches))}, not {batch}; rebuild it with --batch {batch}"
            )
        return self.described.batches.index(batch)

    def _open_kernel_cache(self, sha256: str) -> TensorRtKernels | None:
        config = self._new_config()
        if not hasattr(config, "create_runtime_cache"):
            return None
        key = CacheKey(
            plan=sha256,
            module=self._runtime.version,
            gpu=self._device.name,
            capability=self._device.capability,
            driver=driver_version(),
        )
        return TensorRtKernels(self._runtime.kernels, key, config.create_runtime_cache())

    def _runtime_config(self) -> Any:
        trt, config = self._runtime.trt, self._new_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._kernels is not None and not config.set_runtime_cache(self._kernels.cache):
            raise self.failure("refuses its own kernel cache")
        if hasattr(config, "cuda_graph_strategy"):
            # Whole trajectories are captured, and a capture cannot hold another.
            config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            # Compiled in the background they would come too late for a graph, which keeps the slow ones.
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        return config

    def _new_config(self) -> Any:
        config = self._loaded.create_runtime_config()
        if config is None:
            raise self.failure("makes no runtime configuration")
        return config


class TensorRtContext:
    """An engine's context for `batch` rows (runtime.device.DeviceEngine); one thread at a time."""

    def __init__(self, engine: TensorRtEngine, context: Any, batch: int) -> None:
        self.batch = batch
        self._engine = engine
        self._context = context

    def bind(
        self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]
    ) -> Callable[[int], None]:
        """Fix the arrays of a call; several calls may be bound, each sets its own addresses."""
        described, context, engine = self._engine.described, self._context, self._engine
        self._check_arrays("inputs", described.inputs, inputs)
        self._check_arrays("outputs", described.outputs, outputs)
        addresses = [(name, array.address) for name, array in {**inputs, **outputs}.items()]

        def call(stream: int) -> None:
            for name, address in addresses:
                if not context.set_tensor_address(name, address):
                    raise engine.failure(f"refuses {address:#x} as the address of {name}")
            if not context.execute_async_v3(stream):
                raise engine.failure("cannot run it")

        return call

    def is_capturable(self, stream: int) -> bool:
        """Tell whether calls can become part of a graph captured from the stream."""
        # Only TensorRT for RTX may allocate while it runs, and can tell.
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(stream))

    def _check_arrays(
        self, side: str, described: tuple[Tensor, ...], given: Mapping[str, DeviceArray]
    ) -> None:
        name, expected = self._engine.described.name, {tensor.name: tensor for tensor in described}
        if given.keys() != expected.keys():
            raise BackendError(f"{name}: {side} are {sorted(given)}, expected {sorted(expected)}")
        for key, array in given.items():
            wanted = (expected[key].dtype, shape_for(expected[key], self.batch))
            if (array.dtype, array.shape) != wanted or array.address % ALIGNMENT or not array.address:
                raise BackendError(
                    f"{name}: {key} is {array.dtype} {list(array.shape)} at {array.address:#x}, expected "
                    f"{wanted[0]} {list(wanted[1])} at a multiple of {ALIGNMENT}"
                )
