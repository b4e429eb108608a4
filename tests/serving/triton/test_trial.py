"""Running a version on the machine that checks it: what only that shows."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from flowturbo_trt.bundle.gpus import GpuError
from flowturbo_trt.serving.triton import trial
from flowturbo_trt.serving.triton.checks import Finding, check_repository
from flowturbo_trt.serving.triton.config import read_config
from flowturbo_trt.serving.triton.options import ModelOptions
from flowturbo_trt.serving.triton.repository import write_repository
from flowturbo_trt.tests import faults

MODEL = ModelOptions(schedules=("H1P1R1", "H2"), threads=1)


def the_fault(repository: Path) -> Finding:
    (finding,) = (finding for finding in check_repository(repository) if finding.status != "passed")
    return finding


def test_model_that_makes_no_numbers(tiny_bundle: Path, tmp_path: Path) -> None:
    """Every file is as it was built: only running it shows what it does."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    faults.plant(bundle, "predictor", faults.scale_product(0, float("nan")))
    write_repository(bundle, tmp_path / "models", "tiny", MODEL)
    fault = the_fault(tmp_path / "models")
    assert fault.what == "running version 1"
    assert fault.detail == "H1P1R1, batch 1: latents hold NaN or infinities; see `flowturbo_trt verify`"


def test_model_for_a_gpu_that_is_not_here(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be said of it, that is said."""

    def none() -> None:
        raise GpuError("nvidia-smi shows no GPU")

    monkeypatch.setattr(trial, "gpus", none)
    write_repository(tiny_bundle, tmp_path, "tiny", replace(MODEL, device="cuda"))
    assert read_config(tmp_path / "tiny" / "config.pbtxt").instance_group[0].kind == (
        ModelInstanceGroup.KIND_GPU
    )
    fault = the_fault(tmp_path)
    assert (fault.what, fault.status) == ("running version 1", "not run")
    assert fault.detail == "nvidia-smi shows no GPU, and the model runs on one; check it where it is served"
