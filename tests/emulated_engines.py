"""Engines on an emulated device: ONNX Runtime on the emulation's memory, as work of its streams."""

from collections import Counter
from collections.abc import Callable, Mapping

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend
from flowturbo_trt.runtime.cuda_backend import CudaBackend
from flowturbo_trt.runtime.cuda_memory import Streams
from flowturbo_trt.runtime.device import CaptureError, DeviceArray, DeviceEngine
from flowturbo_trt.tests.emulated_device import EmulatedDevice


class EmulatedEngine:
    """A DeviceEngine of the engines `owner`, who says what goes wrong with it."""

    def __init__(self, owner: "EmulatedEngines", network: str, variant: str | None) -> None:
        self._owner = owner
        self._network = network
        self._variant = variant

    def bind(
        self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]
    ) -> Callable[[int], None]:
        owner, network = self._owner, self._network

        def run() -> None:
            # Looked up when it runs: memory that is no longer there must show.
            arrays = {name: owner.device.array(array) for name, array in inputs.items()}
            results = {name: owner.device.array(array) for name, array in outputs.items()}
            is_null = any((arrays[name] == value).all() for name, value in owner.null if name in arrays)
            owner.sessions.engine(network, self._variant).bind(arrays, results)()
            owner.runs[network + " null" * is_null] += 1

        def ask(stream: int) -> None:
            if network == owner.failing:
                raise BackendError(f"{network} failed")
            if network == owner.waiting:
                try:
                    owner.device.synchronize_stream(stream)
                except CaptureError as error:
                    # In words of its own, as engines do.
                    raise BackendError(f"{network}: a copy to the host failed") from error
            owner.device.enqueue_host(stream, run)

        return ask

    def is_capturable(self, stream: int) -> bool:
        return self._network != self._owner.uncapturable


class EmulatedEngines:
    """A bundle's ONNX engines (runtime.cuda_backend.DeviceEngines), with or without fixed rows.

    `runs` counts by network how often engines really ran, conditioners for no label apart; `made` lists
    network, variant and rows of those that were asked for. Of the networks `failing` fails when it is
    called, `waiting` waits for the stream and `uncapturable` says that it cannot be captured.
    """

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        device: EmulatedDevice,
        *,
        fixes_rows: bool,
        must_capture: bool = True,
        sessions: OnnxRuntimeBackend | None = None,
    ) -> None:
        self.device = device
        self.sessions = sessions or OnnxRuntimeBackend(bundle, 1)
        self.null = tuple((c.name, c.null) for c in bundle.manifest.model.conditions if c.null is not None)
        self.fixes_rows = fixes_rows
        self.must_capture = must_capture
        self.runs: Counter[str] = Counter()
        self.made: list[tuple[str, str | None, int]] = []
        self.loaded: list[tuple[str, str | None]] = []
        self.failing = self.waiting = self.uncapturable = ""
        self.closed = False

    def load(self, network: str, variant: str | None) -> None:
        self.loaded.append((network, variant))
        self.sessions.engine(network, variant)

    def engine(self, network: str, variant: str | None, rows: int) -> DeviceEngine:
        self.made.append((network, variant, rows))
        return EmulatedEngine(self, network, variant)

    def counted(self) -> dict[str, int]:
        """Return the runs since this was last asked."""
        counts = dict(self.runs)
        self.runs.clear()
        return counts

    def close(self) -> None:
        self.closed = True


def open_emulated(bundle: Bundle, device: EmulatedDevice, *, fixes_rows: bool = True) -> CudaBackend:
    """Run a bundle on an emulated device."""
    engines = EmulatedEngines(bundle, device, fixes_rows=fixes_rows)
    return CudaBackend(bundle.manifest, Streams.on(device), engines)
