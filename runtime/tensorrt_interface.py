"""A loaded plan's tensors and profiles, held against the manifest's."""

from typing import Any

from flowturbo_trt.bundle.manifest import BATCH, Engine, Tensor
from flowturbo_trt.runtime.backend import BackendError

# TensorRT's names of types → ours; others appear in messages as they are.
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


def check_interface(described: Engine, loaded: Any) -> None:
    """Raise BackendError unless an ICudaEngine has the manifest's tensors and one profile per batch."""
    _check_profile_count(described, loaded)
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    for mode, tensors in (("INPUT", described.inputs), ("OUTPUT", described.outputs)):
        for tensor in tensors:
            expected = _text(mode, tensor.dtype, tensor.shape)
            found = _found(described, loaded, tensor) if tensor.name in names else "nothing"
            if found != expected:
                raise _mismatch(described, tensor.name, found, expected)
    known = {tensor.name for tensor in (*described.inputs, *described.outputs)}
    if unknown := sorted({*names} - known):
        raise BackendError(
            f"{described.name}: {described.file} has {unknown[0]}, which the manifest "
            "does not know; rebuild it"
        )
    _check_profiles(described, loaded)


def check_outputs(described: Engine, context: Any, batch: int) -> None:
    """Raise BackendError unless a context whose inputs have `batch` rows has outputs of so many."""
    for tensor in described.outputs:
        found = tuple(context.get_tensor_shape(tensor.name))
        if found != shape_for(tensor, batch):
            raise _mismatch(described, tensor.name, str(list(found)), str(list(shape_for(tensor, batch))))


def shape_for(tensor: Tensor, batch: int) -> tuple[int, ...]:
    """Return a tensor's shape for `batch` rows."""
    return tuple(batch if size == BATCH else int(size) for size in tensor.shape)


def _check_profile_count(described: Engine, loaded: Any) -> None:
    if loaded.num_optimization_profiles != len(described.batches):
        raise BackendError(
            f"{described.name}: {described.file} has {loaded.num_optimization_profiles} profiles, expected "
            f"one for each of the manifest's batches {list(described.batches)}; rebuild it"
        )


def _check_profiles(described: Engine, loaded: Any) -> None:
    for profile, batch in enumerate(described.batches):
        for tensor in described.inputs:
            shapes = [tuple(shape) for shape in loaded.get_tensor_profile_shape(tensor.name, profile)]
            if {*shapes} != {shape_for(tensor, batch)}:
                found = f"made for {' … '.join(str(list(shape)) for shape in shapes)} in profile {profile}"
                raise _mismatch(described, tensor.name, found, str(list(shape_for(tensor, batch))))


def _found(described: Engine, loaded: Any, tensor: Tensor) -> str:
    name = tensor.name
    dtype = loaded.get_tensor_dtype(name).name
    shape: list[int | str] = list(loaded.get_tensor_shape(name))
    # With one profile TensorRT may have made the batch a constant.
    if shape and len(described.batches) == 1 and shape[0] == described.batches[0]:
        shape[0] = tensor.shape[0]
    # An axis that TensorRT did not deduce is known once a context has its inputs' shapes (check_outputs).
    if len(shape) == len(tensor.shape):
        shape = [own if size == -1 else size for size, own in zip(shape, tensor.shape, strict=True)]
    return _text(loaded.get_tensor_mode(name).name, _DTYPES.get(dtype, dtype.lower()), tuple(shape))


def _text(mode: str, dtype: str, shape: tuple[int | str, ...]) -> str:
    return f"{mode.lower()} {dtype} [{', '.join(map(str, shape))}]"


def _mismatch(described: Engine, name: str, found: str, expected: str) -> BackendError:
    return BackendError(
        f"{described.name}: its {name} is {found} in {described.file}, {expected} in the manifest; rebuild it"
    )
