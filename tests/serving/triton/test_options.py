"""Options of served models: what follows for a bundle, and what is refused."""

from pathlib import Path

import pytest

from flowturbo_trt.bundle.manifest import BundleError, Manifest
from flowturbo_trt.bundle.store import read_manifest
from flowturbo_trt.sampling.schedule import ScheduleError
from flowturbo_trt.serving.triton import options as options_module
from flowturbo_trt.serving.triton.options import (
    ModelOptions,
    ServerOptions,
    ServingOptionsError,
    make_settings,
)
from flowturbo_trt.serving.triton.settings import ModelSettings
from flowturbo_trt.tests.bundles import changed_copy
from flowturbo_trt.tests.runtime.openvino_bundles import as_openvino

ONE = ServerOptions()


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return read_manifest(tiny_bundle)


def test_defaults(manifest: Manifest) -> None:
    assert make_settings(manifest, ModelOptions(), ONE) == ModelSettings(
        backend="onnxruntime", device="cpu", schedules=("H1P1R1",), threads=0, cancellation=True
    )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (ModelOptions(), ("cpu", None, True)),
        (ModelOptions(device="cuda"), ("cuda", None, False)),
        (ModelOptions(provider="tensorrt"), ("cuda", "tensorrt", False)),
        (ModelOptions(provider="cpu"), ("cpu", "cpu", True)),
        (ModelOptions(device="cuda", cancellation=True), ("cuda", None, True)),
        (ModelOptions(cancellation=False), ("cpu", None, False)),
    ],
)
def test_device_and_cancellation(
    manifest: Manifest, model: ModelOptions, expected: tuple[str, str | None, bool]
) -> None:
    """To be cancelled a run is watched step by step, which on a GPU is not the captured graph."""
    settings = make_settings(manifest, model, ONE)
    assert (settings.device, settings.provider, settings.cancellation) == expected


def test_a_bundle_of_another_backend(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = changed_copy(tiny_bundle, tmp_path, as_openvino("fp32"))
    settings = make_settings(read_manifest(bundle), ModelOptions(), ONE)
    assert (settings.backend, settings.device) == ("openvino", "cpu")


@pytest.mark.parametrize(
    ("model", "instances", "threads"),
    [
        (ModelOptions(), 1, 0),
        (ModelOptions(), 3, 2),
        (ModelOptions(), 7, 1),
        (ModelOptions(), 50, 1),
        (ModelOptions(threads=5), 3, 5),
        (ModelOptions(threads=0), 3, 0),
        (ModelOptions(device="cuda"), 3, 0),
    ],
)
def test_instances_on_the_cpu_share_its_cores(
    manifest: Manifest,
    model: ModelOptions,
    instances: int,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(options_module, "cores", lambda: 7)
    assert make_settings(manifest, model, ServerOptions(instances=instances)).threads == threads


def test_schedules_are_written_one_way_and_once(manifest: Manifest) -> None:
    model = ModelOptions(schedules=("H2", "E4@0,0.10,0.5,0.75,1", "H2", "E4@0,0.1,0.5,0.75,1"))
    assert make_settings(manifest, model, ONE).schedules == ("H2", "E4@0,0.1,0.5,0.75,1")


@pytest.mark.parametrize(
    ("model", "server", "error", "words"),
    [
        (ModelOptions(backend="onnx"), ONE, ServingOptionsError, "backend 'onnx' is not known; use onnxrun"),
        (ModelOptions(backend="openvino"), ONE, BundleError, "no guided predictor engine for openvino"),
        (ModelOptions(device="cuda:1"), ONE, ServingOptionsError, "'cuda:1': expected cpu or cuda; which"),
        (ModelOptions(provider="cuda", device="cpu"), ONE, ServingOptionsError, "cuda does not run on dev"),
        (ModelOptions(provider="cpu", device="cuda"), ONE, ServingOptionsError, "cpu does not run on dev"),
        (ModelOptions(backend="tensorrt", device="cpu"), ONE, ServingOptionsError, "tensorrt does not run"),
        (ModelOptions(backend="openvino", device="cuda"), ONE, ServingOptionsError, "openvino does not r"),
        (ModelOptions(backend="tensorrt", provider="cuda"), ONE, ServingOptionsError, "only onnxruntime ha"),
        (ModelOptions(), ServerOptions(gpus=(0,)), ServingOptionsError, "runs on the CPU; leave them out"),
        (ModelOptions(schedules=("R3",)), ONE, ScheduleError, "starts with R"),
        (ModelOptions(schedules=("H2", "banana")), ONE, ScheduleError, "'banana' is no schedule"),
        (ModelOptions(schedules=("E2@0.1,0.5,1",)), ONE, ScheduleError, "generation needs 0 to 1"),
        (ModelOptions(schedules=("table:mine",)), ONE, ScheduleError, "no such table"),
    ],
)
def test_what_does_not_fit(
    manifest: Manifest, model: ModelOptions, server: ServerOptions, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make_settings(manifest, model, server)


def test_batch_size_without_an_engine(tiny_bundle: Path, tmp_path: Path) -> None:
    def drop(manifest: dict[str, list[dict[str, list[int]]]]) -> None:
        for engine in manifest["engines"]:
            if engine["network"] == "refiner":  # type: ignore[comparison-overlap]
                engine["batches"] = [1]

    bundle = changed_copy(tiny_bundle, tmp_path, drop)
    with pytest.raises(BundleError, match="no guided refiner engine"):
        make_settings(read_manifest(bundle), ModelOptions(), ONE)
    # A schedule that leaves it out can be served.
    make_settings(read_manifest(bundle), ModelOptions(schedules=("H2",)), ONE)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"instances": 0}, "instances is 0, expected 1 to 1024"),
        ({"max_queue_delay_us": -1}, "max_queue_delay_us is -1"),
        ({"queue_size": 2**32}, "queue_size is 4294967296, expected 0 to 4294967295"),
        ({"timeout_ms": 2**63}, "timeout_ms is"),
        ({"gpus": (1, 1)}, r"gpus are \[1, 1\], expected different"),
        ({"gpus": (0, -1)}, r"gpus are \[0, -1\]"),
    ],
)
def test_numbers_that_a_config_cannot_hold(wrong: dict[str, int], words: str) -> None:
    with pytest.raises(ServingOptionsError, match=words):
        ServerOptions(**wrong)  # type: ignore[arg-type]


def test_negative_threads() -> None:
    with pytest.raises(ServingOptionsError, match="threads are -1"):
        ModelOptions(threads=-1)
