"""What cannot work on this GPU must say so in one line: no room, and engines made for another GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flowturbo_trt.benchmarks.gpu.asking import Setting, different_bytes, in_turn
from flowturbo_trt.benchmarks.gpu.behaviour import NO_DEVICE, SAME
from flowturbo_trt.benchmarks.gpu.bundles import Wanted, Weights, build_bundle
from flowturbo_trt.benchmarks.gpu.findings import Findings, reason_of
from flowturbo_trt.export.compile import CompileError
from flowturbo_trt.runtime.backend import BackendError
from flowturbo_trt.runtime.device import Device, OutOfMemoryError

# What is left free while a bundle is loaded that needs more.
LEFT_FREE = 2**20
# Compute capabilities that plans can be made for; the first that is not of this GPU's generation is taken.
FOREIGN = ("12.0", "8.9", "7.5")


def full_device(setting: Setting, findings: Findings) -> None:
    """Ask for more memory than there is, and load a bundle where there is next to none left."""
    names = ("an allocation that cannot fit is refused", "a bundle that cannot fit is refused")
    with setting.pipeline() as pipeline:
        device = pipeline._backend.device
        if device is None:
            for name in names:
                findings.skip(name, NO_DEVICE)
            return
        first = in_turn(setting)[0]
        expected = first.of(pipeline)
        _, total = device.memory()
        _refused(findings, names[0], OutOfMemoryError, lambda: device.free(device.allocate(2 * total)))
        with _filled(device):
            _refused(findings, names[1], BackendError, lambda: _use(setting))
        wrong = different_bytes(first.of(pipeline), expected)
        findings.check("a pipeline goes on when another was refused", wrong, SAME, met=wrong == 0)


def foreign_engine(setting: Setting, findings: Findings, weights: Weights, folder: Path) -> None:
    """Load a plan that was compiled for another generation of GPUs."""
    name = "an engine for another GPU is refused"
    if setting.target.backend != "tensorrt-rtx":
        findings.skip(name, f"{setting.target.backend} builds for the GPU of this machine only")
        return
    with setting.pipeline() as pipeline:
        device = pipeline._backend.device
        if device is None:
            findings.skip(name, NO_DEVICE)
            return
        generation = device.capability[0]
    target = next(text for text in FOREIGN if int(text.partition(".")[0]) != generation)
    engine = setting.bundle.manifest.engines[0]
    wanted = Wanted(engine.backend, engine.precision, engine.batches[:1], ("H1P1R1",), targets=(target,))
    try:
        bundle = build_bundle(weights, folder / "foreign", wanted, setting.path)
    except CompileError as error:
        findings.skip(name, f"none could be built: {error}")
        return
    foreign = Setting(setting.target, bundle, setting.device)
    _refused(findings, f"{name} ({target})", BackendError, lambda: _use(foreign))


def _use(setting: Setting) -> None:
    with setting.pipeline() as pipeline:
        in_turn(setting)[0].of(pipeline)


def _refused(findings: Findings, name: str, kind: type[BackendError], attempt: Callable[[], object]) -> None:
    """Expect an error of a kind whose message is one line."""
    try:
        attempt()
    except kind as error:
        lines = str(error).splitlines()
        findings.check(name, len(lines), "1 line", met=len(lines) == 1, why=lines[0])
    except Exception as error:  # another kind is what this looks for
        findings.check(name, 0, "1 line", met=False, why=reason_of(error))
    else:
        findings.check(name, 0, "1 line", met=False, why="it was accepted")


@contextmanager
def _filled(device: Device) -> Iterator[None]:
    """Take the device's free memory but LEFT_FREE bytes, in ever smaller pieces."""
    taken = []
    try:
        size, _ = device.memory()
        while (size := min(size, device.memory()[0])) > LEFT_FREE:
            try:
                taken.append(device.allocate(size))
            except OutOfMemoryError:
                size //= 2
        yield
    finally:
        for address in taken:
            device.free(address)
