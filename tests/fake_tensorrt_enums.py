"""The enumerations of TensorRT that the fakes have, with the names of the real ones."""

from enum import Enum, IntEnum, auto


class TensorIOMode(Enum):
    NONE = auto()
    INPUT = auto()
    OUTPUT = auto()


class DataType(Enum):
    FLOAT = auto()
    HALF = auto()
    INT64 = auto()
    UINT8 = auto()


class ExecutionContextAllocationStrategy(Enum):
    STATIC = auto()
    ON_PROFILE_CHANGE = auto()
    USER_MANAGED = auto()


class LayerInformationFormat(Enum):
    ONELINE = auto()
    JSON = auto()


class ProfilingVerbosity(Enum):
    LAYER_NAMES_ONLY = auto()
    NONE = auto()
    DETAILED = auto()


class CudaGraphStrategy(Enum):
    DISABLED = auto()
    WHOLE_GRAPH_CAPTURE = auto()


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY = auto()
    EAGER = auto()
    NONE = auto()


class EngineInvalidityDiagnostics(IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


DATA_TYPES = {
    "float32": DataType.FLOAT,
    "float16": DataType.HALF,
    "int64": DataType.INT64,
    "uint8": DataType.UINT8,
}
