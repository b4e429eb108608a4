"""Findings as lines and as data."""

import json
import math

from flowturbo_trt.benchmarks.gpu.findings import Finding, Findings
from flowturbo_trt.runtime.backend import BackendError


def test_lines() -> None:
    said: list[str] = []
    findings = Findings(said.append)
    findings.check("error", 2.5e-4, "at most 1e-3", met=True)
    findings.check("bytes lost", 256, "0", met=False, why="each time")
    findings.skip("torch", "is not installed")
    assert said == [
        "✓ error: 0.00025 (at most 1e-3)",
        "✗ bytes lost: 256 (0): each time",
        "– torch: not run: is not installed",
    ]
    assert findings.failed


def test_what_breaks_has_failed_in_one_line() -> None:
    findings = Findings(lambda line: None)

    def break_() -> None:
        raise RuntimeError("no\n  kernel")

    def refuse() -> None:
        raise BackendError("no GPU")

    findings.run("kernels", break_)
    findings.run("GPU", refuse)
    assert [finding.why for finding in findings.all] == ["RuntimeError: no kernel", "no GPU"]
    assert {finding.status for finding in findings.all} == {"failed"}


def test_data_is_json() -> None:
    """Identical images have infinitely many dB, which JSON cannot say."""
    findings = Findings(lambda line: None)
    findings.add(Finding("images", "passed", math.inf, "dB at least 60"))
    (found,) = findings.as_data()
    assert json.loads(json.dumps(found, allow_nan=False))["value"] is None
    assert found["limit"] == "dB at least 60"
