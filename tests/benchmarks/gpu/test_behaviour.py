"""The checks of behaviour hold on an emulated GPU, and fail where what they look for is planted."""

import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.benchmarks.gpu import behaviour
from flowturbo_trt.benchmarks.gpu.asking import Setting, in_turn
from flowturbo_trt.benchmarks.gpu.behaviour import (
    finite,
    fresh_results,
    one_graph,
    replays_leak_nothing,
    results_on_device,
    steps_and_whole,
    two_threads,
)
from flowturbo_trt.benchmarks.gpu.findings import Finding, Findings
from flowturbo_trt.runtime.cuda_trajectory import CudaTrajectory
from flowturbo_trt.runtime.device import CaptureError
from flowturbo_trt.runtime.pipeline import Generated, Pipeline

ByStatus = Callable[[str], list[Finding]]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behaviour, "REQUESTS_PER_THREAD", 2)


def replay(setting: Setting, findings: Findings) -> None:
    replays_leak_nothing(setting, findings, 6)


def fresh(setting: Setting, findings: Findings) -> None:
    fresh_results(setting, findings, "tiny")


EVERY = [fresh, steps_and_whole, one_graph, replay, two_threads, results_on_device]


@pytest.mark.parametrize("check", EVERY)
def test_holds_on_the_emulated_device(
    check: Callable[[Setting, Findings], None], setting: Setting, findings: Findings, by_status: ByStatus
) -> None:
    check(setting, findings)
    assert findings.all
    assert not by_status("failed")
    # Torch has no CUDA here.
    assert len(by_status("not run")) == (check is results_on_device)


@pytest.mark.parametrize("check", [one_graph, replay, results_on_device])
def test_is_not_run_without_a_gpu(
    check: Callable[[Setting, Findings], None], on_cpu: Setting, findings: Findings
) -> None:
    check(on_cpu, findings)
    assert {(finding.status, finding.why) for finding in findings.all} == {
        ("not run", "no GPU: results are made in host memory")
    }


@pytest.mark.parametrize("check", [fresh, steps_and_whole, two_threads])
def test_holds_on_the_cpu(
    check: Callable[[Setting, Findings], None], on_cpu: Setting, findings: Findings, by_status: ByStatus
) -> None:
    check(on_cpu, findings)
    assert len(by_status("passed")) == len(findings.all) > 0


def test_requests_differ_in_one_thing_each(setting: Setting) -> None:
    """Each has other images than the one before it, so that kept ones show."""
    with setting.pipeline() as pipeline:
        made = [asked.of(pipeline).latents for asked in in_turn(setting)]
    for before, after in pairwise(made):
        assert not np.array_equal(before, after)


def test_kept_tables_show(
    setting: Setting, findings: Findings, by_status: ByStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a trajectory runs after its first program is the first one's times."""
    monkeypatch.setattr(CudaTrajectory, "set_program", _once(CudaTrajectory.set_program))
    fresh_results(setting, findings, "tiny")
    assert ["other times" in finding.name for finding in by_status("failed")] == [True]


def _once(real: Callable[..., None]) -> Callable[..., None]:
    def set_program(self: Any, *arguments: Any) -> None:
        # Once while it is made: a request of the same program has nothing to change.
        if not getattr(self, "has_one", False):
            real(self, *arguments)
        self.has_one = True

    return set_program


def test_steps_that_differ_show(
    setting: Setting, findings: Findings, by_status: ByStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Pipeline.generate

    def generate(self: Pipeline, *arguments: Any, **named: Any) -> Generated:
        made = real(self, *arguments, **named)
        if named.get("on_step") is not None:
            made.latents[0, 0, 0, 0] += 1e-6
        return made

    monkeypatch.setattr(Pipeline, "generate", generate)
    steps_and_whole(setting, findings)
    assert len(by_status("failed")) == 1


def test_what_is_not_captured_shows(
    setting: Setting, findings: Findings, by_status: ByStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(stream: int, work: object) -> int:
        raise CaptureError("it waits")

    monkeypatch.setattr(setting.target.emulated, "capture", refuse)  # type: ignore[attr-defined]
    findings.run("graphs launched by a run", lambda: one_graph(setting, findings))
    assert len(by_status("failed")) == 1


def test_leaks_show(
    setting: Setting, findings: Findings, by_status: ByStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = setting.target.emulated  # type: ignore[attr-defined]
    real = Pipeline.generate

    def generate(self: Pipeline, *arguments: Any, **named: Any) -> Generated:
        device.allocate(256)
        return real(self, *arguments, **named)

    monkeypatch.setattr(Pipeline, "generate", generate)
    replay(setting, findings)
    (finding,) = by_status("failed")
    assert finding.value is not None
    assert finding.value >= 6 * 256


def test_a_thread_that_breaks_is_a_failure(
    setting: Setting, findings: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Pipeline.generate

    def generate(self: Pipeline, *arguments: Any, **named: Any) -> Generated:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("broken")
        return real(self, *arguments, **named)

    monkeypatch.setattr(Pipeline, "generate", generate)
    with pytest.raises(ValueError, match="broken"):
        two_threads(setting, findings)


def test_finite() -> None:
    images = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    latents = np.zeros((1, 1, 2, 2), dtype=np.float32)
    assert finite(Generated(latents, images))
    assert not finite(Generated(latents * np.nan, images))
    assert not finite(Generated(latents, images * 0))
