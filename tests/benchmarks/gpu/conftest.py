"""Targets without a GPU: the CPU, and an emulated device."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flowturbo_trt.benchmarks.gpu.asking import Setting
from flowturbo_trt.benchmarks.gpu.findings import Finding, Findings
from flowturbo_trt.benchmarks.gpu.targets import DRY_TARGETS, Target
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend import Backend
from flowturbo_trt.tests.emulated_device import EmulatedDevice
from flowturbo_trt.tests.emulated_engines import open_emulated


@dataclass(frozen=True)
class EmulatedTarget(Target):
    """Opens every bundle on one emulated device."""

    emulated: EmulatedDevice = field(default_factory=EmulatedDevice)

    def open(self, bundle: Bundle, device: str) -> Backend:
        return open_emulated(bundle, self.emulated)


@pytest.fixture
def target() -> EmulatedTarget:
    return EmulatedTarget("emulated", "flowturbo_trt", captures=True)


@pytest.fixture
def setting(target: EmulatedTarget, tiny_bundle: Path) -> Setting:
    return Setting(target, Bundle.open(tiny_bundle), "cuda")


@pytest.fixture
def on_cpu(tiny_bundle: Path) -> Setting:
    return Setting(DRY_TARGETS["onnxruntime-cpu"], Bundle.open(tiny_bundle), "cpu")


@pytest.fixture
def findings() -> Findings:
    return Findings(lambda line: None)


@pytest.fixture
def by_status(findings: Findings) -> Callable[[str], list[Finding]]:
    """Give a function that returns the findings of a status."""
    return lambda status: [finding for finding in findings.all if finding.status == status]
