"""Hyper-parameters: the paper's, their limits, and the learning rate over time."""

from typing import Any

import pytest

from flowturbo_trt.training.config import PRESETS, TrainingConfig, TrainingError


def test_defaults_are_the_papers() -> None:
    assert TrainingConfig() == TrainingConfig(
        steps=30_000,
        batch=18,
        accumulate=1,
        learning_rate=5e-5,
        warmup=0,
        weight_decay=0,
        clip=0,
        ema=0.9999,
        max_delta=0.12,
        label_drop=0.1,
        guidance_low=1,
        guidance_high=1,
        depth=1,
        init="random",
    )
    assert not TrainingConfig().guided


def test_presets() -> None:
    assert TrainingConfig(**PRESETS["class-conditional"]) == TrainingConfig()
    text = TrainingConfig(**PRESETS["text-to-image"])
    assert (text.learning_rate, text.batch, text.warmup, text.clip, text.steps) == (
        2e-5,
        16,
        100,
        0.01,
        10_000,
    )


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("steps", 0, "steps is 0, expected at least 1"),
        ("batch", 0, "batch is 0, expected at least 1"),
        ("accumulate", 0, "accumulate is 0, expected at least 1"),
        ("depth", -1, "depth is -1, expected at least 1"),
        ("checkpoint_every", 0, "checkpoint_every is 0, expected at least 1"),
        ("keep", 0, "keep is 0, expected at least 1"),
        ("seed", -1, "seed is -1, expected at least 0"),
        ("warmup", -1, "warmup is -1, expected at least 0"),
        ("width", -8, "width is -8, expected at least 0"),
        ("heads", -1, "heads is -1, expected at least 0"),
        ("max_delta", 0.0, "expected 0 < max_delta ≤ 1"),
        ("max_delta", 1.5, "expected 0 < max_delta ≤ 1"),
        ("ema", 1.0, "0 ≤ ema < 1"),
        ("ema", -0.1, "0 ≤ ema < 1"),
        ("label_drop", 1.1, "0 ≤ label_drop ≤ 1"),
        ("learning_rate", 0.0, "expected learning_rate > 0"),
        ("learning_rate", float("nan"), "expected learning_rate > 0"),
        ("weight_decay", -1.0, "weight_decay ≥ 0"),
        ("clip", -1.0, "clip ≥ 0"),
        ("clip", float("nan"), "clip ≥ 0"),
        ("guidance_low", 2.0, "guidance goes from 2.0 to 1.0, expected guidance_low ≤ guidance_high"),
        ("guidance_high", float("inf"), "guidance goes from 1.0 to inf"),
        ("guidance_high", float("nan"), "guidance goes from 1.0 to nan"),
        ("init", "zeros", "init is 'zeros', expected random, predictor, refiner"),
        ("on_policy", " ", "on_policy is blank, expected schedules, e.g. H1P5R3"),
        ("on_policy", "H1R1 H4", "on_policy has H4, which calls no refiner"),
        ("precision", "fp16", "precision is 'fp16', expected fp32 or bf16"),
    ],
)
def test_options_out_of_range(option: str, value: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainingConfig(**{option: value})


def test_learning_rate_rises_and_stays() -> None:
    config = TrainingConfig(learning_rate=0.8, warmup=4)
    assert [config.learning_rate_at(step) for step in range(6)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 0.8, 0.8]
    )
    assert TrainingConfig(learning_rate=0.8).learning_rate_at(0) == 0.8


def test_schedules_to_learn_on_policy() -> None:
    assert TrainingConfig().schedules == ()
    assert TrainingConfig(on_policy=" H1R1  H2R1@0,.5,.75,1 ").schedules == ("H1R1", "H2R1@0,.5,.75,1")


def test_a_range_of_one_scale_is_guided_unless_it_is_one() -> None:
    assert TrainingConfig(guidance_low=1.5, guidance_high=1.5).guided
    assert TrainingConfig(guidance_low=1, guidance_high=4).guided
