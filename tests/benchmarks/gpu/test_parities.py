"""Parity as findings, and deployed processes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.benchmarks.gpu import processes
from flowturbo_trt.benchmarks.gpu.asking import Setting
from flowturbo_trt.benchmarks.gpu.findings import Finding, Findings
from flowturbo_trt.benchmarks.gpu.parities import parity
from flowturbo_trt.benchmarks.gpu.processes import deployed_process
from flowturbo_trt.evaluation.parity import verification
from flowturbo_trt.runtime.backend import Backend, load_backend

ByStatus = Callable[[str], list[Finding]]


def test_every_network_and_trajectory_is_a_finding(
    on_cpu: Setting, findings: Findings, by_status: ByStatus
) -> None:
    parity(on_cpu, findings, "tiny", ("H1P1R1",))
    assert len(by_status("passed")) == len(findings.all)
    named = {finding.name: finding for finding in findings.all}
    networks = {"predictor guided", "refiner guided", "predictor_conditioner", "refiner_conditioner"}
    assert {f"tiny: {name}" for name in networks | {"decoder"}} <= named.keys()
    assert {f"tiny: H1P1R1 guided, batch {batch}" for batch in (1, 3)} <= named.keys()
    assert named["tiny: predictor guided"].limit is not None
    assert named["tiny: H1P1R1 guided, batch 3, images"].limit == "dB at least 55"


def test_what_is_beyond_its_limit_fails(
    on_cpu: Setting, findings: Findings, by_status: ByStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Velocities that are a thousandth too long; trajectories go another way, and are right."""

    def open_(*arguments: Any) -> Backend:
        backend = load_backend(*arguments)
        real = backend.evaluate

        def evaluate(network: str, variant: str | None, inputs: Any) -> NDArray[Any]:
            found = real(network, variant, inputs)
            return found * np.float32(1.001) if variant else found

        monkeypatch.setattr(backend, "evaluate", evaluate)
        return backend

    monkeypatch.setattr(verification, "load_backend", open_)
    parity(on_cpu, findings, "tiny", ("H1P1R1",))
    assert {finding.name for finding in by_status("failed")} == {
        "tiny: predictor guided",
        "tiny: refiner guided",
    }
    assert all(finding.value == pytest.approx(1e-3, rel=0.01) for finding in by_status("failed"))


def test_deployed_process(on_cpu: Setting, findings: Findings) -> None:
    deployed_process(on_cpu, findings)
    assert [(finding.status, finding.value) for finding in findings.all] == [("passed", 0)] * 2


def test_libraries_of_the_build_machine_show(
    on_cpu: Setting, findings: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "HEAVY", ("json", "torch"))
    deployed_process(on_cpu, findings)
    assert (findings.all[0].status, findings.all[0].why) == ("failed", "json")


def test_process_that_fails_shows(
    on_cpu: Setting, findings: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "CHILD", "import nothing_like_it")
    deployed_process(on_cpu, findings)
    (found,) = findings.all
    assert found.status == "failed"
    assert found.why == "ModuleNotFoundError: No module named 'nothing_like_it'"
