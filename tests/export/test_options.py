"""Build options: what is refused before anything is read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.export.compile import CompileError
from flowturbo_trt.export.options import BuildError, BuildOptions
from flowturbo_trt.export.precision import PrecisionError
from flowturbo_trt.sampling.schedule import ScheduleError
from flowturbo_trt.sampling.table import SolverTable

# Nothing of it exists: options are checked without a look at files.
OPTIONS = BuildOptions(predictor=Path("predictor.pt"))


@pytest.mark.parametrize("batches", [(0,), (-1,), (1, 0), (2, 2), (1, 8, 1), ()])
def test_batches(batches: tuple[int, ...]) -> None:
    with pytest.raises(BuildError, match=r"batch sizes are \[.*\], expected different ones of at least 1"):
        replace(OPTIONS, batches=batches)


def test_unknown_backend() -> None:
    with pytest.raises(CompileError, match="unknown backend 'onnx'; known are onnxruntime, tensorrt-rtx"):
        replace(OPTIONS, backends=("onnxruntime", "onnx"))


def test_unknown_variant() -> None:
    with pytest.raises(BuildError, match="unknown variant 'both'; known are guided, unguided"):
        replace(OPTIONS, variants=("guided", "both"))


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("field", ["backends", "variants"])
def test_none_or_one_twice(field: str, count: int) -> None:
    with pytest.raises(BuildError, match=rf"{field} are \[.*\], expected at least one, each once"):
        replace(OPTIONS, **{field: getattr(OPTIONS, field) * count})


@pytest.mark.parametrize("precisions", [("fp4",), ("onnxruntime=INT8",), ("fp16", "onnxruntime=")])
def test_unknown_precision(precisions: tuple[str, ...]) -> None:
    with pytest.raises(PrecisionError, match=r"unknown precision '\w*'; known are fp32, fp16, bf16, int8"):
        replace(OPTIONS, precisions=precisions)


def test_precision_that_openvino_lacks() -> None:
    with pytest.raises(PrecisionError, match=r"openvino has no fp8 arithmetic; add --precision openvino="):
        replace(OPTIONS, backends=("onnxruntime", "openvino"), precisions=("fp8",))


@pytest.mark.parametrize("targets", [("8.6",), ("8.9", "8.0"), ("sm86",), ("SM75", "12.0")])
def test_fp8_on_gpus_without(targets: tuple[str, ...]) -> None:
    changes: dict[str, Any] = {"backends": ("tensorrt-rtx",), "targets": targets}
    with pytest.raises(PrecisionError, match=r"^target \S+ has no fp8 arithmetic, .*; leave it out, or use"):
        replace(OPTIONS, **changes, precisions=("fp8",))
    assert replace(OPTIONS, **changes, precisions=("int8",)).targets == targets
    newer = replace(OPTIONS, **changes | {"targets": ("8.9", "sm120")}, precisions=("fp8",))
    assert newer.precision_of("tensorrt-rtx") == "fp8"


def test_force_without_a_recipe() -> None:
    with pytest.raises(BuildError, match="--force is for recipes whose gate did not hold; add --recipe"):
        replace(OPTIONS, force=True)


@pytest.mark.parametrize("owner", ["tensorrt-rtx", "onnxrutime"])
def test_precision_of_a_backend_that_is_not_built(owner: str) -> None:
    with pytest.raises(PrecisionError, match=rf"'{owner}' is not built; add --backend {owner}"):
        replace(OPTIONS, precisions=(f"{owner}=fp16",))


@pytest.mark.parametrize("schedule", ["R1", "H0", "X1", ""])
def test_schedule_that_cannot_run(schedule: str) -> None:
    with pytest.raises(ScheduleError):
        replace(OPTIONS, schedules=("H1", schedule))


@pytest.mark.parametrize("variants", [("guided",), ("unguided",)])
def test_interval_of_guidance_needs_both_variants(variants: tuple[str, ...]) -> None:
    changes: dict[str, Any] = {"schedules": ("H2", "H1P5R3:guided=0.1..0.8"), "variants": variants}
    words = r"schedule H1P5R3:guided=0\.1\.\.0\.8 is guided some .*; add --variant guided --variant unguided"
    with pytest.raises(BuildError, match=words):
        replace(OPTIONS, **changes)
    both = replace(OPTIONS, **changes | {"variants": ("unguided", "guided")})
    assert both.schedules == changes["schedules"]


@pytest.mark.parametrize("conditioning", ["", "Hoisted", "both"])
def test_unknown_conditioning(conditioning: str) -> None:
    with pytest.raises(BuildError, match=rf"conditioning '{conditioning}', expected hoisted or fused"):
        replace(OPTIONS, conditioning=conditioning)


@pytest.mark.parametrize(
    ("precisions", "onnxruntime", "rtx"),
    [
        ((), "fp32", "fp16"),
        (("bf16",), "bf16", "bf16"),
        (("onnxruntime=fp16",), "fp16", "fp16"),
        (("tensorrt-rtx=bf16", "fp32"), "fp32", "bf16"),
        (("fp32", "tensorrt-rtx=bf16"), "fp32", "bf16"),
        (("onnxruntime=fp16", "tensorrt-rtx=fp32"), "fp16", "fp32"),
    ],
)
def test_precision_of_each_backend(precisions: tuple[str, ...], onnxruntime: str, rtx: str) -> None:
    """A backend's own precision goes before the one for all, in whatever order they are given."""
    options = replace(OPTIONS, backends=("onnxruntime", "tensorrt-rtx"), precisions=precisions)
    assert options.precision_of("onnxruntime") == onnxruntime
    assert options.precision_of("tensorrt-rtx") == rtx


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_target_that_nothing_heeds(backend: str) -> None:
    with pytest.raises(BuildError, match=r"target 8\.9 is for GPU engines; add --backend tensorrt-rtx"):
        replace(OPTIONS, backends=(backend,), targets=("8.9",))


@pytest.mark.parametrize(
    "field",
    [
        {"batches": (1, 8)},
        {"schedules": ("H8", "H1P5R3")},
        {"variants": ("unguided",)},
        {"conditioning": "fused"},
    ],
)
def test_accepted(field: dict[str, Any]) -> None:
    options = replace(OPTIONS, **field)
    assert {name: getattr(options, name) for name in field} == field


def test_tables() -> None:
    table = SolverTable("ours", (0, 1), ((1,),))
    assert replace(OPTIONS, tables=(table,), schedules=("table:ours",)).schedules == ("table:ours",)
    with pytest.raises(BuildError, match="two tables have one name"):
        replace(OPTIONS, tables=(table, replace(table, times=(0, 0.5))))
    with pytest.raises(ScheduleError, match="table:none"):
        replace(OPTIONS, tables=(table,), schedules=("table:none",))
