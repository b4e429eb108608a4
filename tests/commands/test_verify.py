"""`verify`: honest bundles pass, every planted fault exits 3 and names its network."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from flowturbo_trt.tests.bundles import edit_manifest
from flowturbo_trt.tests.faults import (
    Fault,
    copy_in,
    fix_batch,
    half_precision_time,
    lower,
    plant,
    scale_decoder,
    scale_product,
    swap_conditions,
    swap_halves,
    swap_modulations,
)

Run = Callable[..., Result]
FAULTS: dict[str, tuple[str, Fault]] = {
    "a weight × 1.01": ("predictor", scale_product(1, 1.01)),
    "a conditioner's weight × 1.01": ("predictor_conditioner", scale_product(2, 1.01)),
    "the refiner's halves": ("refiner", swap_halves),
    "label and none exchanged": ("predictor", swap_modulations),
    "the refiner's label and none exchanged": ("refiner", swap_modulations),
    "the time in fp16": ("refiner_conditioner", half_precision_time),
    "the decoder × 1.05": ("decoder", scale_decoder(1.05)),
    "another batch": ("predictor", fix_batch(2)),
    "NaN": ("predictor", scale_product(1, float("nan"))),
    "NaN in a conditioner": ("refiner_conditioner", scale_product(3, float("nan"))),
}
# Those that hoisted networks have elsewhere, or not at all.
FUSED_FAULTS: dict[str, tuple[str, Fault]] = {
    "a weight × 1.01": ("predictor", scale_product(4, 1.01)),
    "label and none exchanged": ("predictor", swap_conditions),
    "the time in fp16": ("refiner", half_precision_time),
}
NETWORKS = {"predictor", "refiner", "predictor_conditioner", "refiner_conditioner", "decoder"}


def not_json(constant: str) -> None:
    pytest.fail(f"{constant} is not JSON")


def failures(result: Result) -> set[str]:
    """Return the networks whose own line has a ✗."""
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("✗")]
    return {words[1] for words in lines} & NETWORKS


def verify(run: Run, bundle: Path, *words: object, status: int = 0) -> Result:
    return run("verify", bundle, "--threads", 1, "-q", *words, status=status)


def test_honest_bundles(run: Run, golden_bundle: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    for bundle in (golden_bundle, copy_in("fp16", tiny_bundle, tmp_path)):
        result = verify(run, bundle, "--backend", "onnxruntime")
        assert failures(result) == set()
        assert result.stdout.splitlines()[-1].startswith("✓ all ")
        assert "not run" not in result.stdout


def check_fault(run: Run, bundle: Path, network: str, fault: Fault) -> None:
    """Plant a fault in a bundle's engine; only that network may be blamed."""
    plant(bundle, network, fault, "guided" if network in ("predictor", "refiner") else None)
    result = verify(run, bundle, "--backend", "onnxruntime", status=3)
    assert failures(result) == {network}
    assert result.stdout.splitlines()[-1].startswith("✗ ")


@pytest.mark.parametrize("name", FAULTS)
def test_faults(run: Run, golden_bundle: Path, tmp_path: Path, name: str) -> None:
    check_fault(run, Path(shutil.copytree(golden_bundle, tmp_path / "copy")), *FAULTS[name])


@pytest.mark.parametrize("name", FUSED_FAULTS)
def test_faults_of_fused_networks(run: Run, golden_fused_bundle: Path, tmp_path: Path, name: str) -> None:
    check_fault(run, Path(shutil.copytree(golden_fused_bundle, tmp_path / "copy")), *FUSED_FAULTS[name])


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "the refiner's halves"])
def test_faults_in_half_precision(run: Run, tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    check_fault(run, copy_in("fp16", tiny_bundle, tmp_path), *FAULTS[name])


@pytest.mark.parametrize("name", FUSED_FAULTS)
def test_faults_of_fused_networks_in_half_precision(
    run: Run, tiny_fused_bundle: Path, tmp_path: Path, name: str
) -> None:
    check_fault(run, copy_in("fp16", tiny_fused_bundle, tmp_path), *FUSED_FAULTS[name])


def test_says_where(run: Run, tiny_copy: Path) -> None:
    result = verify(run, plant(tiny_copy, "predictor", scale_product(1, 1.01)), "--bisect", status=3)
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("✗  predictor"))
    assert "H1P1R1 call " in line
    assert "half 0" in line
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("bisecting"))
    assert "predictor guided on onnxruntime: MatMul" in line
    assert "blocks.0.attn.qkv.weight" in line


def test_says_where_in_a_conditioner(run: Run, tiny_copy: Path) -> None:
    bundle = plant(tiny_copy, "predictor_conditioner", scale_product(2, 1.01), None)
    result = verify(run, bundle, "--bisect", status=3)
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("✗  predictor_conditioner"))
    assert "H1P1R1 call " in line
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("bisecting"))
    assert "predictor_conditioner on onnxruntime: Gemm" in line
    assert "blocks.0.adaLN_modulation.1.weight" in line


def test_interval_of_guidance(run: Run, golden_bundle: Path) -> None:
    result = verify(
        run, golden_bundle, "--backend", "onnxruntime", "--schedule", "H1P1R2:guided=0.1..0.6", "--batch", 2
    )
    assert failures(result) == set()
    assert "not run" not in result.stdout
    assert result.stdout.splitlines()[-1].startswith("✓ all ")


def test_document(document: Callable[..., dict[str, Any]], tiny_bundle: Path) -> None:
    found = document("verify", tiny_bundle, "--threads", 1, "--schedule", "H2", "--schedule", "H1P1R1")
    assert found["passed"] is True
    assert [engine["status"] for engine in found["engines"]] == ["passed"] * 5
    predictor, *_, decoder = found["engines"]
    assert {call["schedule"] for call in predictor["calls"]} == {"H2", "H1P1R1"}
    assert set(predictor["limits"]) >= {"call_relative_l2", "decoder_psnr"}
    assert decoder["images"][0]["psnr"] == "inf"
    assert len(found["trajectories"]) == 4


def test_document_of_a_failure(run: Run, tiny_copy: Path) -> None:
    """NaN is text: a document that holds it as a number is not JSON."""
    plant(tiny_copy, "predictor", scale_product(1, float("nan")))
    text = verify(run, tiny_copy, "--json", "--bisect", status=3).stdout
    found = json.loads(text, parse_constant=not_json)
    assert found["passed"] is False
    assert found["engines"][0]["calls"][0]["relative_l2"] == "nan"
    assert found["bisections"][0]["divergence"]["op_type"] == "MatMul"


def test_options_choose(run: Run, tiny_bundle: Path) -> None:
    result = verify(run, tiny_bundle, "--batch", 3, "--images", 1, "--seed", 9, "--schedule", "E2")
    assert "batch 1" not in result.stdout
    assert "–  refiner" in result.stdout
    assert "not run here" in result.stdout.splitlines()[-1]


def test_engines_that_cannot_run_here(run: Run, tiny_copy: Path) -> None:
    """A backend this version does not know, and a precision the CPU lacks: never a ✓."""

    def change(manifest: dict[str, Any]) -> None:
        predictor = manifest["engines"][0]
        predictor["precision"] = "bf16"
        manifest["engines"].append({**predictor, "backend": "abacus"})

    edit_manifest(plant(tiny_copy, "predictor", lower("bf16")), change)
    result = verify(run, tiny_copy)
    unrun = [line for line in result.stdout.splitlines() if line.startswith("–")]
    assert [line.split()[3] for line in unrun[:2]] == ["onnxruntime", "abacus"]
    assert "no bf16 arithmetic" in unrun[0]
    assert "backend 'abacus' is not known" in unrun[1]
    assert "4 not run here" in result.stdout.splitlines()[-1]


def test_nothing_to_run(fails: Callable[..., str], tiny_copy: Path) -> None:
    edit_manifest(tiny_copy, lambda m: [engine.update(backend="abacus") for engine in m["engines"]])
    assert "no engine of the bundle could be run here" in fails("verify", tiny_copy)


def test_stripped_bundle(fails: Callable[..., str], tiny_copy: Path) -> None:
    edit_manifest(tiny_copy, lambda manifest: manifest.update(graphs=[]))
    assert "no float32 graphs" in fails("verify", tiny_copy)


def test_missing_tools(fails: Callable[..., str], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'flowturbo_trt[verify]'" in fails("verify", tiny_bundle, "--bisect")


def test_progress_goes_to_stderr(run: Run, tiny_bundle: Path) -> None:
    result = run("verify", tiny_bundle, "--threads", 1)
    assert "verified" in result.stderr.splitlines()[-1]
    assert "[" not in result.stdout
