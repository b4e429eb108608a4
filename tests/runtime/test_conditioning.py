"""Hoisted conditioning: which networks, how many rows and calls, and where the rows of a time lie."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.bundle.manifest import BundleError, Condition, Engine, Manifest, Tensor, conditioner_of
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend_onnxruntime import NAME, OnnxRuntimeBackend
from flowturbo_trt.runtime.conditioning import Conditioning, needed_engines, null_values, plan_conditioning
from flowturbo_trt.sampling.program import Program
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace


def guided(text: str) -> Program:
    return trace(Schedule.parse(text), "guided")


@pytest.fixture
def manifest(golden_bundle: Path) -> Manifest:
    return Bundle.open(golden_bundle).manifest


@pytest.fixture
def fused(golden_fused_bundle: Path) -> Manifest:
    return Bundle.open(golden_fused_bundle).manifest


def width(manifest: Manifest, network: str) -> int:
    (output,) = manifest.engine(conditioner_of(network), None, NAME).outputs
    return int(output.shape[1])


def test_plan(manifest: Manifest) -> None:
    """One row for each different time and row of the batch, all in one call."""
    plan = plan_conditioning(manifest, guided("H2P1R2"), 3, NAME, pads=False)
    predictor = Conditioning("predictor", (0, 1, 1, 2, 3), 3, width(manifest, "predictor"), guided=True)
    refiner = Conditioning("refiner", (0, 1, 1, 2), 3, width(manifest, "refiner"), guided=True)
    assert plan == {"predictor": predictor, "refiner": refiner}
    assert (predictor.rows, predictor.calls, predictor.padded_rows) == (12, 1, 12)
    assert (refiner.rows, refiner.calls, refiner.padded_rows) == (9, 1, 9)
    assert predictor.call_rows(0) == slice(0, 12)
    assert [predictor.rows_at(slot) for slot in range(4)] == [slice(n, n + 3) for n in (0, 3, 6, 9)]


def test_null_modulations_are_for_guided_evaluations(manifest: Manifest) -> None:
    def needs_null(program: Program) -> dict[str, bool]:
        plan = plan_conditioning(manifest, program, 1, NAME, pads=False)
        return {network: conditioning.guided for network, conditioning in plan.items()}

    assert needs_null(trace(Schedule.parse("H1R1"), "unguided")) == {"predictor": False, "refiner": False}
    assert needs_null(guided("H1R1")) == {"predictor": True, "refiner": True}
    # The refiner takes over from an unguided velocity.
    assert needs_null(guided("H1P1R1:guided=0..0.5")) == {"predictor": True, "refiner": False}
    assert needs_null(guided("E2")) == {"predictor": True}


@pytest.mark.parametrize(
    ("batch", "fixed", "rows", "calls", "padded"),
    [(1, 64, 4, 1, 64), (16, 64, 64, 1, 64), (17, 64, 68, 2, 128), (3, 5, 12, 3, 15), (3, 0, 12, 1, 12)],
)
def test_padding(batch: int, fixed: int, rows: int, calls: int, padded: int) -> None:
    """Where engines fix the rows of a call, enough calls for all rows, and all rows in one of them."""
    conditioning = Conditioning("predictor", (0, 1, 1, 2, 3), batch, 64, True, fixed)
    assert (conditioning.rows, conditioning.calls, conditioning.padded_rows) == (rows, calls, padded)
    called = [row for call in range(calls) for row in range(padded)[conditioning.call_rows(call)]]
    assert called == list(range(padded))
    times = [row for slot in range(4) for row in range(padded)[conditioning.rows_at(slot)]]
    assert times == list(range(rows))


def test_rows_of_engines_that_fix_them(manifest: Manifest) -> None:
    """They come from the conditioner's own batches, which are no batch of a request."""
    assert manifest.engine("predictor_conditioner", None, NAME).batches == (64,)
    plan = plan_conditioning(manifest, guided("H2P1R2"), 20, NAME, pads=True)
    assert {network: c.fixed_rows for network, c in plan.items()} == {"predictor": 64, "refiner": 64}
    assert (plan["predictor"].calls, plan["refiner"].calls) == (2, 1)


def test_fused_networks_need_none(fused: Manifest) -> None:
    assert plan_conditioning(fused, guided("H1P1R1"), 2, NAME, pads=False) == {}


def test_networks_are_hoisted_one_by_one(manifest: Manifest, fused: Manifest) -> None:
    engines = (
        *(e for e in manifest.engines if e.network != "refiner"),
        fused.engine("refiner", "guided", NAME),
    )
    mixed = replace(manifest, engines=engines)
    assert list(plan_conditioning(mixed, guided("H1P1R1"), 2, NAME, pads=False)) == ["predictor"]
    needed = [network for network, _ in needed_engines(mixed, guided("H1P1R1"), NAME)]
    assert needed == ["predictor", "refiner", "predictor_conditioner", "decoder"]


def test_variants_must_agree(manifest: Manifest, fused: Manifest) -> None:
    def keeps(engine: Engine) -> bool:
        return (engine.network, engine.variant) != ("predictor", "unguided")

    engines = (*filter(keeps, manifest.engines), fused.engine("predictor", "unguided", NAME))
    mixed = replace(manifest, engines=engines)
    with pytest.raises(
        BundleError, match=r"^predictor: some of its variants have their conditioning hoisted"
    ):
        plan_conditioning(mixed, guided("H4:guided=0.2..0.6"), 1, NAME, pads=False)
    # A program of one variant alone is as it was.
    assert list(plan_conditioning(mixed, guided("H4"), 1, NAME, pads=False)) == ["predictor"]
    assert plan_conditioning(mixed, trace(Schedule.parse("H4"), "unguided"), 1, NAME, pads=False) == {}


def test_conditioner_that_is_not_there(manifest: Manifest) -> None:
    engines = tuple(e for e in manifest.engines if e.network != "refiner_conditioner")
    without = replace(manifest, engines=engines)
    assert plan_conditioning(without, guided("H2"), 1, NAME, pads=False).keys() == {"predictor"}
    with pytest.raises(BundleError, match="no refiner_conditioner engine for onnxruntime"):
        plan_conditioning(without, guided("H1R1"), 1, NAME, pads=False)


NeededEngines = Sequence[tuple[str, str | None]]


@pytest.mark.parametrize(
    ("text", "variant", "expected"),
    [
        ("H2", "guided", [("predictor", "guided"), ("predictor_conditioner", None)]),
        ("H2", "unguided", [("predictor", "unguided"), ("predictor_conditioner", None)]),
        (
            "H2P1R1:guided=0.2..0.5",
            "guided",
            [
                ("predictor", "unguided"),
                ("predictor", "guided"),
                ("refiner", "unguided"),
                ("predictor_conditioner", None),
                ("refiner_conditioner", None),
            ],
        ),
    ],
)
def test_needed_engines(manifest: Manifest, text: str, variant: str, expected: NeededEngines) -> None:
    program = trace(Schedule.parse(text), variant)
    assert needed_engines(manifest, program, NAME) == [*expected, ("decoder", None)]
    latents_only = replace(manifest, model=replace(manifest.model, image=None))
    assert needed_engines(latents_only, program, NAME) == expected


def test_needed_engines_of_fused_networks(fused: Manifest) -> None:
    expected = [("predictor", "guided"), ("refiner", "guided"), ("decoder", None)]
    assert needed_engines(fused, guided("H1P1R1"), NAME) == expected


def test_times_are_spread_time_by_time() -> None:
    conditioning = Conditioning("predictor", (0, 1, 1, 2), 2, 64, True, 8)
    out = np.full(8, -1, dtype=np.float32)
    assert conditioning.spread_times(guided("H2"), slice(None), out)
    np.testing.assert_array_equal(out, [0, 0, 0.5, 0.5, 1, 1, -1, -1])
    assert not conditioning.spread_times(guided("H2"), slice(None), out)
    # One row of the batch is at other times than the other.
    assert conditioning.spread_times(guided("H2@0,0.25,1"), slice(1, 2), out)
    np.testing.assert_array_equal(out, [0, 0, 0.5, 0.25, 1, 1, -1, -1])
    assert not conditioning.spread_times(guided("H2"), slice(0, 1), out)
    assert conditioning.spread_times(guided("H2"), slice(1, 2), out)
    np.testing.assert_array_equal(out, [0, 0, 0.5, 0.5, 1, 1, -1, -1])


def test_times_of_one_network_only() -> None:
    conditioning = Conditioning("refiner", (0, 1), 1, 64, True)
    out = np.zeros(2, dtype=np.float32)
    conditioning.spread_times(guided("H1R1@0,0.25,0.75"), slice(None), out)
    np.testing.assert_array_equal(out, [0.25, 0.75])


def test_conditions_are_spread_to_every_time() -> None:
    conditioning = Conditioning("predictor", (0, 1, 1, 2), 2, 64, True, 8)
    out = np.full(8, -1, dtype=np.int64)
    conditioning.spread_condition(np.array([7, 3]), out)
    np.testing.assert_array_equal(out, [7, 3, 7, 3, 7, 3, -1, -1])


def test_null_values(manifest: Manifest) -> None:
    assert null_values(manifest.model.conditions) == {"label": 10}
    # 0 is a value too.
    assert null_values((Condition("label", "int64", 1, 5, 0),)) == {"label": 0}
    with pytest.raises(BundleError, match="does not say which label stands for none; rebuild the bundle"):
        null_values((Condition("label", "int64", 0, 9),))


def test_manifest_without_null(golden_bundle: Path) -> None:
    """Refused where it is needed: for guided evaluations of hoisted networks."""
    bundle = Bundle.open(golden_bundle)
    label = replace(bundle.manifest.model.conditions[0], null=None)
    model = replace(bundle.manifest.model, conditions=(label,))
    backend = OnnxRuntimeBackend(Bundle(bundle.path, replace(bundle.manifest, model=model)), 1)
    with pytest.raises(BundleError, match="does not say which label stands for none"):
        backend.bind(guided("E1"), 1)
    run = backend.bind(trace(Schedule.parse("E1"), "unguided"), 1).start(decode=False)
    assert np.isfinite(run.latents()).all()


def test_is_hoisted_and_is_conditioner(manifest: Manifest, fused: Manifest) -> None:
    found = {e.name: (e.is_hoisted, e.is_conditioner) for e in manifest.engines if e.backend == NAME}
    assert {name for name, (hoisted, _) in found.items() if hoisted} == {
        f"{network} {variant}" for network in ("predictor", "refiner") for variant in ("guided", "unguided")
    }
    assert {name for name, (_, conditioner) in found.items() if conditioner} == {
        "predictor_conditioner",
        "refiner_conditioner",
    }
    assert not any(engine.is_hoisted or engine.is_conditioner for engine in fused.engines)
    engine = manifest.engine("predictor", "guided", NAME)
    assert replace(engine, inputs=(Tensor("label", "int64", (1,)),)).is_hoisted is False
