"""Costs of a bundle's schedules: those of its programs, on the engines that it has."""

from dataclasses import replace
from pathlib import Path

import pytest

from flowturbo_trt.bundle.manifest import BundleError, Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation import cost
from flowturbo_trt.evaluation.cost import hoisting_saving, program_cost, unguided_saving
from flowturbo_trt.evaluation.schedule_cost import Amount, ScheduleCost, schedule_costs
from flowturbo_trt.runtime.programs import find_program


def count(manifest: Manifest, schedule: str, variant: str, batch: int, backend: str) -> ScheduleCost:
    programs = {schedule: {variant: find_program(manifest, schedule, variant)}}
    (found,) = schedule_costs(manifest, programs, (batch,), backend)
    return found


@pytest.fixture
def manifest(golden_bundle: Path) -> Manifest:
    """ONNX Runtime's engines, and as many plans in fp16."""
    found = Bundle.open(golden_bundle).manifest
    engines = [engine for engine in found.engines if engine.backend == "onnxruntime"]
    plans = tuple(replace(engine, backend="tensorrt-rtx", precision="fp16") for engine in engines)
    return replace(found, engines=(*engines, *plans))


@pytest.mark.parametrize(("backend", "rows", "itemsize"), [("onnxruntime", 0, 4), ("tensorrt-rtx", 64, 2)])
def test_per_image(manifest: Manifest, backend: str, rows: int, itemsize: int) -> None:
    """Rows of conditioners are fixed in plans only; the bytes are those of the engines' precision."""
    found = count(manifest, "H2P3R0", "guided", 2, backend)
    program = find_program(manifest, "H2P3R0", "guided")
    total = program_cost(manifest.model, program, 2, "hoisted", rows).total
    assert found.image == Amount(total.flop / 2, total.weights * itemsize / 2)
    saving = hoisting_saving(manifest.model, program, 2, rows)
    assert found.by_hoisting == Amount(saving.flop / 2, saving.weight_bytes(itemsize) / 2)
    assert found.by_hoisting.weight_bytes > 0
    assert found.by_unguided == Amount(0, 0)


def test_unguided_evaluations(manifest: Manifest) -> None:
    interval = count(manifest, "H4:guided=0.5..0.75", "guided", 1, "onnxruntime")
    program = find_program(manifest, "H4:guided=0.5..0.75", "guided")
    saving = unguided_saving(manifest.model, program, 1, "hoisted", 0)
    assert interval.by_unguided.flop == saving.flop > 0
    whole = count(manifest, "H4", "unguided", 1, "onnxruntime")
    assert whole.by_unguided.flop > interval.by_unguided.flop
    assert whole.image.flop + whole.by_unguided.flop == pytest.approx(
        count(manifest, "H4", "guided", 1, "onnxruntime").image.flop
    )


def test_fused_bundle(golden_fused_bundle: Path) -> None:
    """What hoisting would save is told, and not taken off."""
    manifest = Bundle.open(golden_fused_bundle).manifest
    found = count(manifest, "H2", "guided", 1, "onnxruntime")
    program = find_program(manifest, "H2", "guided")
    assert found.conditioning == "fused"
    assert found.image.flop == program_cost(manifest.model, program, 1, "fused").total.flop
    assert found.by_hoisting.flop == hoisting_saving(manifest.model, program, 1, 0).flop


def test_all_of_a_bundle(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every schedule, variant and batch; each engine is counted once."""
    counted: list[tuple[object, ...]] = []
    engine_cost = cost.engine_cost

    def recorded(model: object, *key: object) -> object:
        counted.append(key)
        return engine_cost(model, *key)  # type: ignore[arg-type]

    monkeypatch.setattr(cost, "engine_cost", recorded)
    programs = {s: {v: find_program(manifest, s, v) for v in ("guided", "unguided")} for s in ("H1", "H2")}
    found = schedule_costs(manifest, programs, (1, 2), "tensorrt-rtx")
    assert [(c.schedule, c.variant, c.batch) for c in found] == [
        (schedule, variant, batch)
        for schedule in ("H1", "H2")
        for variant in ("guided", "unguided")
        for batch in (1, 2)
    ]
    assert len(counted) == len(set(counted))


def test_engine_that_is_not_there(manifest: Manifest) -> None:
    with pytest.raises(BundleError, match="no guided predictor engine for openvino"):
        count(manifest, "H2", "guided", 1, "openvino")
