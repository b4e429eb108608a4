"""What nvidia-smi says, read from a stand-in."""

from pathlib import Path

import pytest

from flowturbo_trt.bundle.gpus import Gpu, GpuError, gpus
from flowturbo_trt.evaluation.report import gpu, machine

GIB = 2**30


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a script that stands for nvidia-smi."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "nvidia-smi"


def write(script: Path, lines: str, status: int = 0) -> None:
    script.write_text(f"#!/bin/sh\necho '{lines}'\nexit {status}\n")
    script.chmod(0o755)


def test_all_gpus(nvidia_smi: Path) -> None:
    write(nvidia_smi, "NVIDIA L4, 580.65.06, 23034, 22000, 8.9\nNVIDIA GB10, 580.65.06, [N/A], [N/A], 12.1")
    assert gpus() == (
        Gpu("NVIDIA L4", "580.65.06", 23034 * 2**20, 22000 * 2**20, "8.9"),
        Gpu("NVIDIA GB10", "580.65.06", None, None, "12.1"),
    )
    assert gpu() == machine()["gpu"] == "NVIDIA L4, 580.65.06"


def test_no_driver(nvidia_smi: Path) -> None:
    with pytest.raises(GpuError, match="no NVIDIA driver found"):
        gpus()
    assert gpu() is None


@pytest.mark.parametrize(("lines", "status"), [("No devices were found", 6), ("", 0), ("Driver/library", 18)])
def test_driver_without_gpu(nvidia_smi: Path, lines: str, status: int) -> None:
    write(nvidia_smi, lines, status)
    with pytest.raises(GpuError, match=f"nvidia-smi shows no GPU: {lines}"):
        gpus()


def test_tool_that_cannot_be_run(nvidia_smi: Path) -> None:
    nvidia_smi.write_text("")
    with pytest.raises(GpuError, match="does not answer"):
        gpus()
