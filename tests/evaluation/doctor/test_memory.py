"""What doctor says of memory: plans of bundles and of models against that of hosts and GPUs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.doctor.asked import ask_bundle
from flowturbo_trt.evaluation.doctor.asked_model import (
    SCHEDULE,
    activation_bytes,
    ask_model,
    run_bytes,
    weight_bytes,
)
from flowturbo_trt.evaluation.doctor.diagnosis import diagnose
from flowturbo_trt.evaluation.doctor.facts import Facts
from flowturbo_trt.evaluation.doctor.findings import Asked, Finding, readable
from flowturbo_trt.evaluation.doctor.probes import Answer
from flowturbo_trt.models.published import NAMED_MODELS
from flowturbo_trt.runtime.memory_plan import MemoryPlan, plan_memory
from flowturbo_trt.tests.bundles import changed_copy
from flowturbo_trt.tests.evaluation.doctor.machines import FACTS, GIB, absent, machine, with_gpu


def named(asked: Asked, name: str) -> Finding:
    (finding,) = (finding for finding in asked.findings if finding.name == name)
    return finding


def plan_of(bundle: Path, backend: str = "onnxruntime", *, on_gpu: bool) -> MemoryPlan:
    manifest = Bundle.open(bundle).manifest
    program = manifest.programs[manifest.default_schedule]["guided"]
    return plan_memory(manifest, program, manifest.batches, backend, on_gpu=on_gpu)


def with_memory(host: int | None, gpu: int) -> Facts:
    """Return the facts of a machine with so much free memory on either side."""
    facts = with_gpu()
    cards = (replace(facts.machine.gpus[0], free_bytes=gpu),)
    return replace(facts, machine=replace(facts.machine, memory_available=host, gpus=cards))


def test_it_is_the_plan(tiny_bundle: Path) -> None:
    """Both batch sizes, the weights once."""
    asked = ask_bundle(tiny_bundle, with_gpu())
    for device, free in (("cpu", "20.0 GiB"), ("cuda:0", "23.0 GiB")):
        plan = plan_of(tiny_bundle, on_gpu=device != "cpu")
        assert named(asked, f"memory, {device}").detail == (
            f"onnxruntime takes {readable(plan.total)} for batches 1, 3, {readable(plan.weights)} of it "
            f"weights; {free} are free. On top come {plan.unknown}"
        )


def test_to_the_byte(tiny_bundle: Path) -> None:
    host, gpu = (plan_of(tiny_bundle, on_gpu=on_gpu) for on_gpu in (False, True))
    assert gpu.pinned < host.total
    exact = ask_bundle(tiny_bundle, with_memory(host.total, gpu.total))
    assert {named(exact, f"memory, {device}").status for device in ("cpu", "cuda:0")} == {"ok"}
    less = ask_bundle(tiny_bundle, with_memory(host.total - 1, gpu.total - 1))
    for device in ("cpu", "cuda:0"):
        finding = named(less, f"memory, {device}")
        assert (finding.status, finding.remedy.startswith("free memory")) == ("problem", True)
    assert not less.possible


def test_copies_take_memory_of_the_host(tiny_bundle: Path) -> None:
    """Engines that fit on a GPU do not run there without it."""
    gpu = plan_of(tiny_bundle, on_gpu=True)
    assert ask_bundle(tiny_bundle, with_memory(gpu.pinned, gpu.total)).possible
    asked = ask_bundle(tiny_bundle, with_memory(gpu.pinned - 1, gpu.total))
    assert not asked.possible
    assert "of the host's memory are for copies" in named(asked, "memory, cuda:0").detail
    assert ask_bundle(tiny_bundle, with_memory(None, gpu.total)).possible


@pytest.mark.parametrize(
    ("answer", "reason", "remedy"),
    [
        (
            absent("tensorrt_rtx"),
            "tensorrt-rtx is not installed",
            "pip install 'flowturbo_trt[tensorrt-rtx]'",
        ),
        (
            Answer(version="1.7.1"),
            "there is no GPU",
            "use a machine with an NVIDIA GPU, or rebuild it with --backend onnxruntime",
        ),
        (
            Answer(error="OSError: libx.so"),
            "tensorrt-rtx cannot start here",
            "mend tensorrt-rtx, see above",
        ),
    ],
)
def test_plans_that_do_not_run_here(
    tiny_bundle: Path, tmp_path: Path, answer: Answer, reason: str, remedy: str
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        for engine in manifest["engines"]:
            engine.update(backend="tensorrt-rtx", precision="fp16")

    facts = replace(FACTS, backends={"onnxruntime": Answer(), "tensorrt-rtx": answer})
    asked = ask_bundle(changed_copy(tiny_bundle, tmp_path, change), facts)
    finding = named(asked, "tensorrt-rtx fp16")
    assert not asked.possible
    assert finding.detail.endswith(f": {reason}")
    assert finding.remedy == remedy


def test_model_on_a_gpu() -> None:
    """In half the bytes; a batch that fits on one of the devices is possible."""
    facts = with_memory(GIB, 23 * GIB)
    asked = ask_model("SiT-XL/2", (1,), facts, diagnose(facts))
    host, gpu = named(asked, "run, batch 1"), named(asked, "run, batch 1, cuda:0")
    assert (host.status, gpu.status) == ("problem", "ok")
    least = run_bytes("SiT-XL/2", 1, 2, on_gpu=True)
    assert gpu.detail == f"takes at least {readable(least)} of memory in fp16; 23.0 GiB are there"
    enough = with_memory(20 * GIB, least)
    assert ask_model("SiT-XL/2", (1,), enough, diagnose(enough)).possible
    tight = with_memory(20 * GIB, least - 1)
    found = ask_model("SiT-XL/2", (1,), tight, diagnose(tight))
    assert named(found, "run, batch 1, cuda:0").status == "problem"
    assert found.possible
    none = with_memory(GIB, least - 1)
    assert not ask_model("SiT-XL/2", (1,), none, diagnose(none)).possible


def test_model_without_a_gpu() -> None:
    facts = machine(memory_available=3 * GIB)
    asked = ask_model("SiT-XL/2", (1,), facts, diagnose(facts))
    assert [finding.name for finding in asked.findings if finding.name.startswith("run")] == ["run, batch 1"]


def test_run_of_a_model() -> None:
    """Weights and activations of any precision, and a trajectory whose largest part are modulations.

    At 7 and 4 times, conditional and null.
    """
    assert SCHEDULE == "H1P5R3"
    values = sum(weight_bytes("SiT-XL/2").values()) // 4
    halves = [run_bytes("SiT-XL/2", 8, size, on_gpu=False) for size in (2, 4)]
    assert halves[1] - halves[0] == 2 * (values + activation_bytes("SiT-XL/2", 8) // 4)
    trajectory = 2 * halves[0] - halves[1]
    modulations = 4 * 2 * 8 * (7 * (6 * 28 + 2) + 4 * (6 + 2)) * 1152
    assert modulations < trajectory < 1.04 * modulations


def test_modulations_as_networks_have_them() -> None:
    """Known without torch, and the same."""
    pytest.importorskip("torch")
    from flowturbo_trt.models.sit import SiTConfig

    shape = NAMED_MODELS["SiT-XL/2"]
    config = SiTConfig(input_size=32, in_channels=4, num_classes=1000, **shape)
    assert config.modulation_width == (6 * shape["depth"] + 2) * shape["hidden_size"]
