"""Which lessons a run takes: on the data's paths, or of schedules in turn."""

from dataclasses import replace

import pytest
import torch

from flowturbo_trt.models.sit import SiT
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.training.config import TrainingConfig, TrainingError
from flowturbo_trt.training.data import DataError, LatentCache
from flowturbo_trt.training.lessons import choose_lessons

CONFIG = TrainingConfig(batch=6, on_policy="H1R1 P2R2:single", guidance_high=2.0)
ALL = slice(None)


@pytest.mark.parametrize(("high", "variant"), [(2.0, "guided"), (1.0, "unguided")])
def test_schedules_take_turns(predictor: SiT, high: float, variant: str) -> None:
    config = replace(CONFIG, guidance_high=high)
    lessons = choose_lessons(None, predictor.config, config, 2)
    expected = [trace(Schedule.parse(text), variant) for text in config.schedules]
    found = [vars(lessons.draw(step, ALL))["program"] for step in range(4)]
    assert found == expected * 2
    assert lessons.provenance == {}


def test_losses_are_of_every_sample(predictor: SiT, cache: LatentCache) -> None:
    """In both kinds, and of both schedules; guidance reaches as many channels as are guided."""
    refiner = SiT(predictor.config, refines=True)
    for source, config in ((None, CONFIG), (cache, replace(CONFIG, on_policy=""))):
        two, one = (choose_lessons(source, predictor.config, config, channels) for channels in (2, 1))
        for step in (0, 1):
            losses = [kind.loss(predictor, refiner, kind.draw(step, ALL)) for kind in (two, one)]
            assert all(loss.shape == (6,) and bool((loss > 0).all()) for loss in losses)
            assert not torch.equal(*losses)


def test_data_and_schedules_exclude_each_other(predictor: SiT, cache: LatentCache) -> None:
    with pytest.raises(TrainingError, match="on policy, training starts from noise and reads no data"):
        choose_lessons(cache, predictor.config, CONFIG, 2)
    with pytest.raises(TrainingError, match="give data to learn from, or the schedules"):
        choose_lessons(None, predictor.config, replace(CONFIG, on_policy=""), 2)


def test_data_must_fit(predictor: SiT, cache: LatentCache) -> None:
    with pytest.raises(DataError, match="fewer than one batch of 11"):
        choose_lessons(cache, predictor.config, TrainingConfig(batch=11), 2)
