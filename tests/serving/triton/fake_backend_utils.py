"""`triton_python_backend_utils` without a server: what of it our models use, under the same names."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from numpy.typing import NDArray

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message = message
        self._code = code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self._name = name
        self._array = array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._tensors = list(output_tensors)
        self._error = error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class ResponseSender:
    """Keeps what was sent, and the flags with it."""

    def __init__(self) -> None:
        self.sent: list[tuple[InferenceResponse, int]] = []

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        assert not self.is_over(), "the server refuses what comes after the final response"
        self.sent.append((response, flags))

    def is_over(self) -> bool:
        return bool(self.sent) and self.sent[-1][1] == TRITONSERVER_RESPONSE_COMPLETE_FINAL


class InferenceRequest:
    """A request with its tensors; `cancelled` is asked each time whether its client has given up."""

    def __init__(
        self, tensors: Mapping[str, NDArray[Any]], cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        self._tensors = [Tensor(name, array) for name, array in tensors.items()]
        self._cancelled = cancelled
        self.sender = ResponseSender()

    def inputs(self) -> list[Tensor]:
        return self._tensors

    def is_cancelled(self) -> bool:
        return self._cancelled()

    def get_response_sender(self) -> ResponseSender:
        return self.sender


class Metric:
    def __init__(self, values: "defaultdict[frozenset[tuple[str, str]], float]", labels: Mapping[str, str]):
        self._values = values
        self._key = frozenset(labels.items())
        self._values[self._key] += 0

    def increment(self, amount: float) -> None:
        assert amount >= 0, "the server refuses to lower a counter"
        self._values[self._key] += amount


class MetricFamily:
    """A family of the server: instances that make it anew get the same one."""

    COUNTER, GAUGE = 0, 1
    registry: ClassVar[dict[str, "defaultdict[frozenset[tuple[str, str]], float]"]] = {}

    def __init__(self, name: str, description: str, kind: int) -> None:
        assert kind == self.COUNTER
        assert description
        self._values = self.registry.setdefault(name, defaultdict(float))

    # The server's names it.
    def Metric(self, labels: Mapping[str, str]) -> Metric:  # noqa: N802
        return Metric(self._values, labels)


class Logger:
    errors: ClassVar[list[str]] = []

    @staticmethod
    def log_error(message: str) -> None:
        Logger.errors.append(message)
