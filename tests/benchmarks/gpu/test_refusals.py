"""Errors that a GPU must give in one line, here an emulated one's."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flowturbo_trt.benchmarks.gpu import refusals
from flowturbo_trt.benchmarks.gpu.asking import Setting
from flowturbo_trt.benchmarks.gpu.bundles import Wanted, Weights
from flowturbo_trt.benchmarks.gpu.findings import Finding, Findings
from flowturbo_trt.benchmarks.gpu.refusals import foreign_engine, full_device
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import Backend, BackendError, UnsupportedError
from flowturbo_trt.tests.benchmarks.gpu.conftest import EmulatedTarget

ByStatus = Callable[[str], list[Finding]]
WEIGHTS = Weights(Path("p"), Path("r"), Path("d"), Path("c"))


def test_full_device(
    setting: Setting, target: EmulatedTarget, findings: Findings, by_status: ByStatus
) -> None:
    full_device(setting, findings)
    assert [finding.status for finding in findings.all] == ["passed"] * 3
    assert target.emulated.counters.live_bytes == 0


def test_full_device_is_not_run_without_a_gpu(on_cpu: Setting, findings: Findings) -> None:
    full_device(on_cpu, findings)
    assert [finding.status for finding in findings.all] == ["not run"] * 2


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (BackendError("no room\nat all"), "no room"),
        (MemoryError("no room"), "MemoryError: no room"),
        (None, "it was accepted"),
    ],
)
def test_what_is_no_refusal(
    error: Exception | None, why: str, findings: Findings, by_status: ByStatus
) -> None:
    def attempt() -> None:
        if error is not None:
            raise error

    refusals._refused(findings, "refused", BackendError, attempt)
    (found,) = by_status("failed")
    assert found.why == why


class TakesItsOwn(EmulatedTarget):
    """Runs a plan only if it was compiled for no other GPU."""

    def open(self, bundle: Bundle, device: str) -> Backend:
        if bundle.manifest.engines[0].targets:
            raise UnsupportedError("it was compiled for another GPU")
        return super().open(bundle, device)


@pytest.mark.parametrize(("kind", "status"), [(TakesItsOwn, "passed"), (EmulatedTarget, "failed")])
def test_foreign_engine(
    kind: type[EmulatedTarget],
    status: str,
    tiny_bundle: Path,
    tmp_path: Path,
    findings: Findings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A plan for a generation that is not the device's."""
    asked: list[Wanted] = []

    def build(weights: Weights, out: Path, wanted: Wanted, sibling: Path) -> Bundle:
        asked.append(wanted)
        bundle = Bundle.open(sibling)
        engines = tuple(replace(engine, targets=wanted.targets) for engine in bundle.manifest.engines)
        return Bundle(bundle.path, replace(bundle.manifest, engines=engines))

    monkeypatch.setattr(refusals, "build_bundle", build)
    setting = Setting(kind("tensorrt-rtx", "flowturbo_trt"), Bundle.open(tiny_bundle), "cuda")
    foreign_engine(setting, findings, WEIGHTS, tmp_path)
    assert [finding.status for finding in findings.all] == [status]
    assert asked[0].targets == ("12.0",)


def test_only_rtx_builds_for_other_gpus(setting: Setting, findings: Findings, tmp_path: Path) -> None:
    foreign_engine(setting, findings, WEIGHTS, tmp_path)
    assert [(finding.status, finding.why) for finding in findings.all] == [
        ("not run", "emulated builds for the GPU of this machine only")
    ]
