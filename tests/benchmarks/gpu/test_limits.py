"""Counts and floors of the model that is timed."""

from dataclasses import asdict, replace

import pytest

from flowturbo_trt.benchmarks.gpu.limits import count, floors
from flowturbo_trt.bundle.manifest import Guidance, Model
from flowturbo_trt.models.autoencoder import STABLE_DIFFUSION_CONFIG
from flowturbo_trt.models.published import CLASSES, LATENT, NAMED_MODELS
from flowturbo_trt.models.sit import SiTConfig
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace

PROGRAM = trace(Schedule.parse("H1P5R3"), "guided")


@pytest.fixture
def model() -> Model:
    """SiT-XL/2 with the Stable Diffusion decoder."""
    config = SiTConfig(
        input_size=LATENT[1], in_channels=LATENT[0], num_classes=CLASSES, **NAMED_MODELS["SiT-XL/2"]
    )
    return Model(
        family="sit",
        latent=LATENT,
        image=(256, 256),
        conditions=(),
        guidance=Guidance(3, 2, 1.5),
        config=asdict(config),
        refiner_config=asdict(replace(config, depth=1)),
        decoder_config=STABLE_DIFFUSION_CONFIG,
    )


def test_floors_of_the_published_model(model: Model) -> None:
    """6.15 and 5.40 ms by an estimate that counts more traffic; these lie within 4 % below."""
    found = floors("NVIDIA H200", model, PROGRAM, 1, "bf16")
    assert found is not None
    assert 0.96 * 6.15 < found["fused"] < 6.15
    assert 0.96 * 5.40 < found["hoisted"] < 5.40


def test_no_floor_where_limits_are_not_known(model: Model) -> None:
    assert floors("NVIDIA L4", model, PROGRAM, 1, "bf16") is None
    assert floors(None, model, PROGRAM, 1, "bf16") is None
    # The figures are those of 16 bits.
    assert floors("NVIDIA H200", model, PROGRAM, 1, "fp32") is None


def test_counts(model: Model) -> None:
    model = replace(model, image=None)
    found = count(model, PROGRAM, 1, "fp16")
    fused, hoisted, saved = (found[f"weight_megabytes_{name}"] for name in ("fused", "hoisted", "saved"))
    assert saved == pytest.approx(fused - hoisted)
    # Six of seven evaluations of the predictor read no modulation's weights, 446 MB of each.
    assert 6 * 446 < saved < 6 * 446 * 1.2
    assert count(model, PROGRAM, 1, "fp32")["weight_megabytes_saved"] == pytest.approx(2 * saved)
    assert found["gflop_per_image"] == pytest.approx(4046 - 622, rel=0.02)
