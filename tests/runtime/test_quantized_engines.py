"""8-bit engines at work: near float32, not float32, and as fast as their session's settings let them be."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.runtime.backend_onnxruntime import NAME
from flowturbo_trt.runtime.onnxruntime_session import open_session, session_options
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.tests.bundles import latents

if TYPE_CHECKING:
    from flowturbo_trt.export.options import BuildOptions

FUSION, EMULATED = "optimization.disable_specified_optimizers", "session.disable_quant_qdq"


@pytest.fixture
def in_kind(
    tiny_options: "BuildOptions", tiny_bundle: Path, tmp_path: Path, instant_export: list[str]
) -> Callable[[str, str], Path]:
    """Give a function (kind, backend) that builds the tiny model with a quantised predictor."""
    from flowturbo_trt.export.build import build
    from flowturbo_trt.tests.export.recipes import recipe_for, saved

    def make(kind: str, backend: str) -> Path:
        recipe = saved(recipe_for(tiny_bundle, kind), tmp_path / f"{kind}.json")
        options = replace(
            tiny_options, backends=(backend,), precisions=(kind,), recipes=(recipe,), force=kind == "fp8"
        )
        return build(options, tmp_path / "bundle").path

    return make


@pytest.mark.parametrize(("kind", "backend"), [("int8", NAME), ("fp8", NAME), ("int8", "openvino")])
def test_trajectory(
    in_kind: Callable[[str, str], Path], tiny_pipeline: Pipeline, kind: str, backend: str
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    found = latents(Pipeline.load(in_kind(kind, backend), backend=backend, threads=1), [0, 1, 2])
    assert 1e-4 < relative_l2(found, latents(tiny_pipeline, [0, 1, 2])) < 0.1


@pytest.mark.parametrize(
    ("precision", "fusion", "emulated"), [("int8", "MatMulAddFusion", None), ("fp8", None, "1")]
)
def test_settings_are_of_8_bit_sessions_alone(
    in_kind: Callable[[str, str], Path], precision: str, fusion: str | None, emulated: str | None
) -> None:
    bundle = Bundle.open(in_kind(precision, NAME))
    for network, settings in (("predictor", (fusion, emulated)), ("refiner", (None, None))):
        engine = bundle.manifest.engine(network, "guided", NAME)
        options = open_session(bundle, engine, "cpu", 1, {}).get_session_options()
        assert tuple(_entry(options, name) for name in (FUSION, EMULATED)) == settings
    assert _entry(session_options(1), FUSION) is None


def _entry(options: object, name: str) -> str | None:
    try:
        return str(options.get_session_config_entry(name))  # type: ignore[attr-defined]  # no types of its own
    except RuntimeError:
        return None
