"""The errors that requests are answered with, each counted where it is made."""

from typing import Any

import triton_python_backend_utils as pb_utils

from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.serving.triton.metrics import Metrics


def tensors_of(request: Any) -> dict[str, Any]:
    """Return the arrays of a request by the name of their input."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def invalid(metrics: Metrics, error: FlowTurboError) -> Any:
    """Return the error of a request that its client has to mend."""
    metrics.add("flowturbo_failed_requests_total", 1, reason="invalid")
    return pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)


def internal(metrics: Metrics, error: Exception) -> Any:
    """Return the error of a request that failed by no fault of its client's."""
    metrics.add("flowturbo_failed_requests_total", 1, reason="internal")
    return pb_utils.TritonError(_line(error), pb_utils.TritonError.INTERNAL)


def cancelled(metrics: Metrics) -> Any:
    """Return the error of a request whose client has given up."""
    metrics.add("flowturbo_cancelled_requests_total", 1)
    return pb_utils.TritonError("the request was cancelled", pb_utils.TritonError.CANCELLED)


def log_failure(error: Exception) -> None:
    """Tell the server's log of engines that failed."""
    pb_utils.Logger.log_error(f"flowturbo_trt: {_line(error)}")


def _line(error: Exception) -> str:
    told = " ".join(str(error).split())
    return told if isinstance(error, FlowTurboError) else f"{type(error).__name__}: {told}"
