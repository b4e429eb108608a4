"""Making plans: what a bundle has by default, and every mistake before anything long starts."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.generation.identity import identity
from flowturbo_trt.generation.options import GenerationOptions, check_disk, make_plan
from flowturbo_trt.generation.plan import GenerationError
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.tests.bundles import changed_copy
from flowturbo_trt.tests.generation.sets import small_plan


def test_defaults_are_the_bundles(tiny_bundle: Path) -> None:
    plan = make_plan(tiny_bundle, GenerationOptions())
    assert plan.bundle == identity(Bundle.open(tiny_bundle).manifest, "H1P1R1")
    assert (plan.num, plan.schedule, plan.guidance) == (50_000, "H1P1R1", 2)
    assert (plan.labels, plan.classes, plan.seed) == ("balanced", (0, 2), 0)
    assert (plan.format, plan.shard_size, plan.batch, plan.image) == ("npz", 500, 3, (8, 8))
    assert (plan.backend, plan.device, plan.provider) == ("onnxruntime", "cpu", None)
    assert {"flowturbo_trt", "numpy"} < set(plan.software)
    assert any(name.startswith("onnxruntime") for name in plan.software)
    assert "torch" not in plan.software


def test_pictures_depend_on_pillow(tiny_bundle: Path) -> None:
    assert "pillow" in small_plan(tiny_bundle, format="png").software


def test_schedules_are_written_one_way(tiny_bundle: Path) -> None:
    assert small_plan(tiny_bundle, schedule="E2@0,0.50,1") == small_plan(tiny_bundle, schedule="E2@0,0.5,1.0")


def test_number_of_a_gpu_is_no_part_of_the_plan(tiny_bundle: Path) -> None:
    first, second = (small_plan(tiny_bundle, device=f"cuda:{i}", provider="cuda") for i in range(2))
    assert first == second
    assert first.device == "cuda"
    assert small_plan(tiny_bundle, provider="cuda").device == "cuda"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schedule": "R1"}, "starts with R"),
        (
            {"schedule": "H2:guided=0.5..1"},
            "needs unguided engines; build the bundle with --variant unguided",
        ),
        ({"labels": (0, 3)}, "label 3 is out of range; the model knows 0 to 2"),
        ({"labels": ()}, "no labels are listed"),
        ({"guidance": math.inf}, "guidance is inf"),
        ({"backend": "openvino"}, "the bundle has no guided predictor engine for openvino"),
        ({"batch": 0}, "batch is 0"),
        ({"num": 0}, "num is 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_mistakes(tiny_bundle: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(FlowTurboError, match=message):
        small_plan(tiny_bundle, **changed)


def test_bundle_without_decoder(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = changed_copy(tiny_bundle, tmp_path, lambda manifest: manifest["model"].update(image=None))
    with pytest.raises(FlowTurboError, match="has no decoder, and so makes no images; build it with"):
        small_plan(bundle)


@pytest.mark.parametrize(("file_format", "size"), [("npz", 8 * 8 * 3), ("png", 4096)])
def test_disk_space(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str, size: int
) -> None:
    plan = small_plan(tiny_bundle, format=file_format)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000 * size))
    check_disk(plan, 1000, tmp_path)
    with pytest.raises(GenerationError, match=rf"1001 images take about 0.0 GB as {file_format}, 0.0 GB are"):
        check_disk(plan, 1001, tmp_path)
