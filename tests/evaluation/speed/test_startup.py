"""Fresh processes: what they report, and what is said when one fails."""

from pathlib import Path

import pytest

from flowturbo_trt.evaluation.speed import startup
from flowturbo_trt.evaluation.speed.startup import StartupError, Work, measure_startup


@pytest.fixture
def work(tiny_bundle: Path) -> Work:
    return Work(str(tiny_bundle), "onnxruntime", "cpu", None, 1, "H1P1R1", 1, 2.0, decode=True)


def test_a_process_reports_time_and_memory(work: Work) -> None:
    found = measure_startup(work, runs=1)
    assert found.runs == 1
    assert found.seconds > 0
    if Path("/proc/self/status").exists():
        assert found.loaded_bytes is not None
        assert found.peak_bytes is not None
        # Python with NumPy and ONNX Runtime, without torch.
        assert 10e6 < found.loaded_bytes <= found.peak_bytes < 300e6


def test_medians_over_processes(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([(3.0, 10), (1.0, 30), (2.0, None)])

    def run(_: Work) -> dict[str, object]:
        seconds, memory = next(runs)
        return {"seconds": seconds, "loaded_bytes": memory, "peak_bytes": None}

    monkeypatch.setattr(startup, "_run", run)
    assert measure_startup(work, runs=3) == startup.Startup(2.0, 3, 20, None)


def test_a_failure_is_one_line(tmp_path: Path, work: Work) -> None:
    wrong = Work(str(tmp_path), "onnxruntime", "cpu", None, 1, "H2", 1, 2.0, decode=True)
    with pytest.raises(
        StartupError, match=r"a fresh process failed before its first image: .*no bundle here"
    ):
        measure_startup(wrong, runs=1)
