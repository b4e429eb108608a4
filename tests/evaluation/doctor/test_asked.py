"""What was asked for on made-up machines: bundles that run or not, models that can be built or not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.evaluation.doctor.asked import ask_bundle
from flowturbo_trt.evaluation.doctor.asked_model import activation_bytes, ask_model, weight_bytes
from flowturbo_trt.evaluation.doctor.diagnosis import diagnose
from flowturbo_trt.evaluation.doctor.facts import HERE, Facts
from flowturbo_trt.evaluation.doctor.findings import Asked, Finding, readable
from flowturbo_trt.evaluation.doctor.probes import Answer
from flowturbo_trt.tests.bundles import changed_copy
from flowturbo_trt.tests.evaluation.doctor.machines import (
    BARE,
    FACTS,
    GIB,
    L4,
    absent,
    compiling,
    machine,
    with_gpu,
)

RTX = Answer(version="1.7.1", details={"builds": True, "bound": False})
Change = Callable[[dict[str, Any]], object]


def named(asked: Asked, name: str) -> Finding:
    (finding,) = (finding for finding in asked.findings if finding.name == name)
    return finding


def check_remedies(asked: Asked) -> None:
    assert all(finding.remedy for finding in asked.findings if finding.status == "problem")


def engines(**changes: Any) -> Change:
    """Return a change of every engine of a manifest."""

    def change(manifest: dict[str, Any]) -> None:
        for engine in manifest["engines"]:
            engine.update(changes)

    return change


def ask_changed(bundle: Path, folder: Path, change: Change, facts: Facts = FACTS) -> Asked:
    asked = ask_bundle(changed_copy(bundle, folder, change), facts)
    check_remedies(asked)
    return asked


def test_bundle_that_runs(tiny_bundle: Path) -> None:
    asked = ask_bundle(tiny_bundle, FACTS)
    assert asked.possible
    assert [finding.status for finding in asked.findings] == ["ok"] * 3
    assert named(asked, "onnxruntime fp32").detail == (
        "predictor guided, refiner guided, predictor_conditioner, refiner_conditioner, decoder: on cpu"
    )
    on_gpu = ask_bundle(tiny_bundle, with_gpu())
    assert named(on_gpu, "onnxruntime fp32").detail.endswith("on cpu, cuda:0")
    assert named(on_gpu, "memory, cuda:0").status == "ok"


def test_conditioners_are_weighed_with_the_rest(golden_bundle: Path) -> None:
    sizes = {file.name: file.stat().st_size for file in (golden_bundle / "onnx").iterdir()}
    loaded = sum(size for name, size in sizes.items() if "unguided" not in name)
    without = loaded - sum(size for name, size in sizes.items() if "conditioner" in name)
    assert readable(loaded) != readable(without)
    memory = named(ask_bundle(golden_bundle, FACTS), "memory, cpu")
    assert f"{readable(loaded)} of it weights" in memory.detail


def test_conditioner_that_is_not_there(tiny_bundle: Path, tmp_path: Path) -> None:
    def remove(manifest: dict[str, Any]) -> None:
        manifest["engines"] = [e for e in manifest["engines"] if e["network"] != "refiner_conditioner"]

    asked = ask_changed(tiny_bundle, tmp_path, remove)
    assert not asked.possible
    assert "no refiner_conditioner engine for onnxruntime" in named(asked, "onnxruntime").detail


def test_damaged_bundle(tiny_copy: Path) -> None:
    file = next((tiny_copy / "onnx").iterdir())
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    asked = ask_bundle(tiny_copy, FACTS)
    (finding,) = asked.findings
    assert not asked.possible
    assert "its content is not what was built" in finding.detail
    assert finding.remedy == "restore it or rebuild the bundle"


def test_no_bundle(tmp_path: Path) -> None:
    asked = ask_bundle(tmp_path, FACTS)
    assert not asked.possible
    assert "no bundle here" in asked.findings[0].detail
    check_remedies(asked)


def test_memory_that_does_not_hold_the_engines(tiny_bundle: Path) -> None:
    asked = ask_bundle(tiny_bundle, machine(memory_available=1000))
    assert not asked.possible
    assert named(asked, "memory, cpu").status == "problem"
    check_remedies(asked)
    assert ask_bundle(tiny_bundle, machine(memory_available=None)).possible


def test_gpu_with_room_where_the_host_has_none(tiny_bundle: Path) -> None:
    facts = with_gpu()
    facts = replace(facts, machine=replace(facts.machine, memory_available=50_000))
    assert named(ask_bundle(tiny_bundle, facts), "memory, cpu").status == "problem"
    assert ask_bundle(tiny_bundle, facts).possible


def test_precision_that_the_cpu_lacks(tiny_bundle: Path, tmp_path: Path) -> None:
    asked = ask_changed(tiny_bundle, tmp_path, engines(precision="bf16"))
    assert not asked.possible
    finding = named(asked, "onnxruntime bf16")
    assert "onnxruntime has no bf16 arithmetic on cpu" in finding.detail
    assert finding.remedy == "rebuild it with --precision onnxruntime=fp32"


def test_engines_that_this_version_cannot_run(tiny_bundle: Path, tmp_path: Path) -> None:
    change = engines(backend="tensorrt-rtx", precision="fp16", targets=["sm90", "8.6"])
    asked = ask_changed(tiny_bundle, tmp_path, change, with_gpu())
    assert not asked.possible
    finding = named(asked, "tensorrt-rtx fp16")
    assert finding.status == "problem"
    assert "this version cannot run engines of tensorrt-rtx yet" in finding.detail
    assert "built for compute capability sm90, 8.6, and cuda:0 has 8.9" in finding.detail
    assert "--backend onnxruntime and rebuild it with --target 8.9" in finding.remedy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": ["8.9"]}, ""),
        ({"targets": ["sm89", "9.0"]}, ""),
        ({"targets": []}, ""),
        ({"targets": ["9.0"]}, "compute capability 9.0, and cuda:0 has 8.9"),
        ({"builder": "tensorrt 11.0 for NVIDIA L4, 580.65.06"}, ""),
        ({"builder": "tensorrt 11.0 for NVIDIA H200, 580.65.06"}, "built on NVIDIA H200, 580.65.06"),
    ],
)
def test_engines_for_other_gpus(
    tiny_bundle: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    """As a version will see them that runs plans."""
    facts = replace(with_gpu(), backends={"onnxruntime": Answer(), "tensorrt-rtx": Answer()})
    changed = engines(backend="tensorrt-rtx", precision="fp16", **change)
    asked = ask_changed(tiny_bundle, tmp_path, changed, facts)
    assert asked.possible == (not words)
    assert words in named(asked, "tensorrt-rtx fp16").detail


def test_second_gpu_is_the_right_one(tiny_bundle: Path, tmp_path: Path) -> None:
    facts = with_gpu(backends={"tensorrt-rtx": Answer()})
    other = replace(L4, name="NVIDIA H200", compute_capability="9.0")
    facts = replace(facts, machine=replace(facts.machine, gpus=(other, L4)))
    asked = ask_changed(tiny_bundle, tmp_path, engines(backend="tensorrt-rtx", targets=["8.9"]), facts)
    assert asked.possible
    assert named(asked, "tensorrt-rtx fp32").detail.endswith("on cuda:1")


def test_engines_beside_those_that_run_are_no_problem(tiny_bundle: Path, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        more = [engine | {"backend": "tensorrt", "precision": "fp16"} for engine in manifest["engines"]]
        manifest["engines"] += more

    asked = ask_changed(tiny_bundle, tmp_path, change)
    assert asked.possible
    assert named(asked, "tensorrt fp16").status == "not needed"


def test_engine_that_is_not_there(tiny_bundle: Path, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["engines"] = [e for e in manifest["engines"] if e["network"] != "refiner"]

    asked = ask_changed(tiny_bundle, tmp_path, change)
    assert not asked.possible
    assert "no guided refiner engine" in named(asked, "onnxruntime").detail


def test_backend_that_cannot_start(tiny_bundle: Path) -> None:
    asked = ask_bundle(tiny_bundle, replace(FACTS, backends={"onnxruntime": absent("onnxruntime")}))
    assert not asked.possible
    check_remedies(asked)


def test_model_that_can_be_built() -> None:
    """6.5 to 7.9 GiB of memory were measured for this one."""
    facts = replace(FACTS, compilers=compiling(tensorrt_rtx=RTX))
    asked = ask_model("SiT-XL/2", (1, 8), facts, diagnose(facts))
    assert asked.possible
    assert named(asked, "build for tensorrt-rtx fp16").detail.startswith("takes about 7.6 GiB of memory")
    assert [finding.status for finding in asked.findings] == ["ok"] * 4


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"memory_available": 3 * GIB}, "free memory"),
        ({"disks": {HERE: GIB}}, "free disk"),
    ],
)
def test_model_that_does_not_fit(changes: dict[str, Any], remedy: str) -> None:
    facts = machine(**changes)
    asked = ask_model("SiT-XL/2", (), facts, diagnose(facts))
    assert not asked.possible
    assert asked.findings[0].remedy.startswith(remedy)
    assert ask_model("SiT-S/8", (), facts, diagnose(facts)).possible


def test_model_on_a_machine_that_does_not_tell() -> None:
    facts = machine(memory_available=None, disks={HERE: None})
    assert ask_model("SiT-XL/2", (8,), facts, diagnose(facts)).possible


def test_model_without_the_libraries_of_build() -> None:
    facts = replace(FACTS, libraries={**FACTS.libraries, **BARE}, packages={})
    asked = ask_model("SiT-S/2", (1,), facts, diagnose(facts))
    assert not asked.possible
    check_remedies(asked)


def test_batch_that_does_not_fit() -> None:
    facts = machine(memory_available=8 * GIB)
    asked = ask_model("SiT-XL/2", (1, 100), facts, diagnose(facts))
    assert not asked.possible
    assert named(asked, "run, batch 1").status == "ok"
    assert named(asked, "run, batch 100").status == "problem"
    check_remedies(asked)


def test_sizes_of_a_model() -> None:
    weights = weight_bytes("SiT-XL/2")
    assert weights == {"predictor": 4 * 675_129_632, "refiner": 4 * 29_708_960, "decoder": 4 * 49_490_199}
    assert activation_bytes("SiT-XL/2", 1) == 4 * 384 * 256 * 256
    assert activation_bytes("SiT-XL/2", 8) == 8 * activation_bytes("SiT-XL/2", 1)
