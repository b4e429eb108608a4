"""TensorRT without a GPU: modules with as much of either flavour's interface as the runtime uses.

A plan is one of fake_tensorrt_plans; what it computes is a Python function, run as work of a stream.
Like the real one it answers misuse with a logged message and None or False. Its classes have the names
of the real ones, their methods the names and parameters (test_tensorrt_names.py).
"""

from collections.abc import Callable, Mapping
from enum import Enum, IntEnum
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from flowturbo_trt.runtime.device import DeviceArray
from flowturbo_trt.tests import fake_tensorrt_enums as enums
from flowturbo_trt.tests.fake_tensorrt_plans import FakePlan

# (Name of the plan, its inputs) → its outputs.
Compute = Callable[[str, Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
SCRATCH = 1000


class FakeTensorRt(ModuleType):
    """A fake of the module `tensorrt_rtx` or `tensorrt`.

    `enqueue(stream, work)` runs Python as work of a stream and `array` views device memory; an
    EmulatedDevice has both as `enqueue_host` and `array`. `refusals` maps names of calls to the reasons
    with which they fail; `problems` are what plans are found invalid for; `calls` lists what contexts
    were asked for.
    """

    def __init__(
        self,
        flavour: str,
        enqueue: Callable[[int, Callable[[], None]], None],
        array: Callable[[DeviceArray], NDArray[Any]],
        compute: Compute,
    ) -> None:
        super().__init__(flavour)
        self.is_rtx = flavour == "tensorrt_rtx"
        self.__version__ = "1.7.1" if self.is_rtx else "11.0.0"
        self.enqueue, self.array, self.compute = enqueue, array, compute
        self.refusals: dict[str, str] = {}
        self.problems: set[str] = set()
        self.calls: list[tuple[Any, ...]] = []
        self.configs: list[Any] = []
        known = vars(enums).items()
        self.__dict__.update({n: e for n, e in known if isinstance(e, type) and issubclass(e, Enum)})
        if not self.is_rtx:
            for name in ("CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy"):
                delattr(self, name)
            del self.EngineInvalidityDiagnostics
        self.ILogger = ILogger
        self.Runtime = lambda logger: (RtxRuntime if self.is_rtx else Runtime)(self, logger)

    def fails(self, call: str, logger: Any) -> bool:
        """Log the reason if a call is to fail."""
        if call in self.refusals:
            logger.log(ILogger.Severity.ERROR, self.refusals[call])
        return call in self.refusals


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class Bound:
    """An object as the bindings make them: it has the attributes of its class and no others."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        super().__setattr__(name, value)


class Runtime(Bound):
    def __init__(self, module: FakeTensorRt, logger: Any) -> None:
        self._module, self._logger = module, logger
        if module.fails("Runtime", logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, serialized_engine: Any) -> "ICudaEngine | None":
        with memoryview(serialized_engine) as content:
            plan = FakePlan.read(bytes(content))
        if self._module.fails("deserialize_cuda_engine", self._logger):
            return None
        if plan is None or plan.version != self._module.__version__:
            self._logger.log(ILogger.Severity.ERROR, "the plan\ncannot be read")
            return None
        return ICudaEngine(self._module, self._logger, plan)


class RtxRuntime(Runtime):
    def get_engine_validity(self, buffer: Any) -> tuple[Any, int]:
        known = enums.EngineInvalidityDiagnostics
        found = sum(int(known[name]) for name in self._module.problems)
        with memoryview(buffer) as content:
            if FakePlan.read(bytes(content)) is None:
                found |= int(known.MALFORMED_ENGINE)
        return None, found


class ICudaEngine(Bound):
    def __init__(self, module: FakeTensorRt, logger: Any, plan: FakePlan) -> None:
        self._module, self._logger, self._plan = module, logger, plan
        self._tensors = {tensor.name: tensor for tensor in (*plan.inputs, *plan.outputs)}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._plan.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        is_input = self._tensors[name] in self._plan.inputs
        return enums.TensorIOMode.INPUT if is_input else enums.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return enums.DATA_TYPES[self._tensors[name].dtype]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """One profile of one batch makes the batch a constant, as in TensorRT."""
        batches = {batch for profile in self._plan.profiles for batch in profile}
        return self._shape(name, batches.pop() if len(batches) == 1 else -1)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [self._shape(name, batch) for batch in self._plan.profiles[profile_index]]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return SCRATCH * self._plan.profiles[profile_index][2]

    def create_engine_inspector(self) -> "EngineInspector":
        return EngineInspector(self._plan)

    def create_runtime_config(self) -> "IRuntimeConfig | None":
        if self._module.fails("create_runtime_config", self._logger):
            return None
        return (RtxRuntimeConfig if self._module.is_rtx else IRuntimeConfig)(self._module, self._logger)

    def create_execution_context(self, runtime_config: "IRuntimeConfig") -> "IExecutionContext | None":
        if self._module.fails("create_execution_context", self._logger):
            return None
        self._module.configs.append(runtime_config)
        if isinstance(runtime_config, RtxRuntimeConfig):
            runtime_config.compile(self._plan.name)
        kind = RtxExecutionContext if self._module.is_rtx else IExecutionContext
        return kind(self._module, self._logger, self, runtime_config)

    def _shape(self, name: str, batch: int) -> tuple[int, ...]:
        return tuple(batch if size == "batch" else int(size) for size in self._tensors[name].shape)


class EngineInspector(Bound):
    def __init__(self, plan: FakePlan) -> None:
        self._plan = plan

    def get_engine_information(self, format: Any) -> str:
        assert format is enums.LayerInformationFormat.JSON
        return self._plan.information()


class IRuntimeConfig(Bound):
    def __init__(self, module: FakeTensorRt, logger: Any) -> None:
        self._module, self._logger = module, logger
        self._strategy: Any = enums.ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def get_execution_context_allocation_strategy(self) -> Any:
        return self._strategy


class RtxRuntimeConfig(IRuntimeConfig):
    cuda_graph_strategy: Any = enums.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    dynamic_shapes_kernel_specialization_strategy: Any = enums.DynamicShapesKernelSpecializationStrategy.LAZY
    _cache: "IRuntimeCache | None" = None

    def create_runtime_cache(self) -> "IRuntimeCache":
        return IRuntimeCache(self._module)

    def set_runtime_cache(self, cache: "IRuntimeCache") -> bool:
        self._cache = cache
        return not self._module.fails("set_runtime_cache", self._logger)

    def compile(self, name: str) -> None:
        """Do what creating a context does (no method of TensorRT's)."""
        if self._cache is not None:
            self._cache.add(name)


class IRuntimeCache(Bound):
    def __init__(self, module: FakeTensorRt) -> None:
        self._module = module
        self._kernels: list[str] = []

    def add(self, name: str) -> None:
        """Keep the kernels of a plan (no method of TensorRT's)."""
        if name not in self._kernels:
            self._kernels.append(name)

    def serialize(self) -> bytes | None:
        return "\n".join((self._module.__version__, *self._kernels)).encode()

    def deserialize(self, blob: bytes) -> bool:
        version, *kernels = blob.decode().split("\n")
        if version != self._module.__version__:
            return False
        self._kernels = kernels
        return True


class IExecutionContext(Bound):
    nvtx_verbosity: Any = enums.ProfilingVerbosity.DETAILED

    def __init__(self, module: FakeTensorRt, logger: Any, engine: ICudaEngine, config: Any) -> None:
        self._module, self._logger, self._engine, self._config = module, logger, engine, config
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = (0, 0)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile, self._shapes = profile_index, {}
        return self._asked("set_optimization_profile_async", profile_index, stream_handle)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Refuse what the profile does not span: here, all but its one shape."""
        wanted = self._engine.get_tensor_profile_shape(name, self._profile or 0)[2]
        self._shapes[name] = shape
        return shape == wanted and self._asked("set_input_shape", name, shape)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = self._shapes[self._engine.get_tensor_name(0)][0]
        if self._module.fails("get_tensor_shape", self._logger):
            batch += 1
        return self._engine._shape(name, batch)

    def set_device_memory(self, memory: int, size: int) -> None:
        self._memory = (memory, size)
        self._asked("set_device_memory", memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return self._asked("set_tensor_address", name, memory)

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Enqueue the computation on the addresses set by now."""
        assert self._profile is not None
        needed = self._engine.get_device_memory_size_for_profile_v2(self._profile)
        if self._memory[1] < needed or self._addresses.keys() != self._engine._tensors.keys():
            self._logger.log(ILogger.Severity.ERROR, "not everything is set")
            return False
        if not self._asked("execute_async_v3", stream_handle):
            return False
        arrays = {name: self._array(name, address) for name, address in self._addresses.items()}
        scratch = DeviceArray(self._memory[0], (needed,), "uint8")
        self._module.enqueue(stream_handle, lambda: self._run(arrays, scratch))
        return True

    def _run(self, arrays: Mapping[str, DeviceArray], scratch: DeviceArray) -> None:
        plan, view = self._engine._plan, self._module.array
        view(scratch)[...] = 0xA5
        inputs = {tensor.name: view(arrays[tensor.name]).copy() for tensor in plan.inputs}
        for name, result in self._module.compute(plan.name, inputs).items():
            view(arrays[name])[...] = result

    def _array(self, name: str, address: int) -> DeviceArray:
        return DeviceArray(address, self.get_tensor_shape(name), self._engine._tensors[name].dtype)

    def _asked(self, call: str, *arguments: Any) -> bool:
        self._module.calls.append((call, *arguments))
        return not self._module.fails(call, self._logger)


class RtxExecutionContext(IExecutionContext):
    def is_stream_capturable(self, stream: int) -> bool:
        """As TensorRT for RTX: nothing may be allocated, captured or compiled while it runs."""
        user_managed = enums.ExecutionContextAllocationStrategy.USER_MANAGED
        eager = enums.DynamicShapesKernelSpecializationStrategy.EAGER
        return (
            stream != 0
            and self._config.get_execution_context_allocation_strategy() is user_managed
            and self._config.cuda_graph_strategy is enums.CudaGraphStrategy.DISABLED
            and self._config.dynamic_shapes_kernel_specialization_strategy is eager
        )
