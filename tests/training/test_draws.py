"""The randomness of a step: the same for whoever takes part, and guidance drawn last."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowturbo_trt.models.sit import SiT
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.training.config import TrainingConfig
from flowturbo_trt.training.data import LatentCache
from flowturbo_trt.training.draws import Draws, draw_path_points, draw_starts

CONFIG = TrainingConfig(batch=6, guidance_low=1, guidance_high=4)
CPU = torch.device("cpu")


def tensors(draws: Draws) -> dict[str, Tensor]:
    return {name: value for name, value in vars(draws).items() if isinstance(value, Tensor)}


def assert_joined(parts: list[Draws], whole: Draws) -> None:
    expected = tensors(whole)
    for name, tensor in expected.items():
        found = [tensors(part)[name] for part in parts]
        if name == "delta":
            assert all(torch.equal(of_part, tensor) for of_part in found)
        else:
            assert torch.equal(torch.cat(found), tensor)


def test_rows_of_processes_are_the_batch(cache: LatentCache) -> None:
    whole = draw_path_points(cache, CONFIG, step=3)
    assert len(whole.x0) == 6
    assert_joined([draw_path_points(cache, CONFIG, 3, slice(i, i + 2)) for i in (0, 2, 4)], whole)


def test_parts_are_the_batch(cache: LatentCache) -> None:
    whole = draw_path_points(cache, CONFIG, step=3)
    parts = whole.to(CPU).parts(3)
    assert [len(part.y) for part in parts] == [2, 2, 2]
    assert_joined(parts, whole)
    unguided = draw_path_points(cache, TrainingConfig(batch=6), step=3)
    assert all(part.guidance is None for part in unguided.to(CPU).parts(2))


def test_guidance_changes_no_other_draw(cache: LatentCache) -> None:
    guided, unguided = (
        tensors(draw_path_points(cache, CONFIG, 2)),
        tensors(draw_path_points(cache, TrainingConfig(batch=6), 2)),
    )
    assert guided.keys() - unguided.keys() == {"guidance"}
    assert all(torch.equal(guided[name], tensor) for name, tensor in unguided.items())


def test_ranges(cache: LatentCache) -> None:
    """Times and guidance are uniform per sample, Δ per step, and labels are dropped at their rate."""
    many = [draw_path_points(cache, replace(CONFIG, batch=10, label_drop=0.25), step) for step in range(400)]
    guidance = torch.cat([draws.guidance for draws in many if draws.guidance is not None])
    assert 1 <= guidance.min() < 1.02
    assert 3.98 < guidance.max() < 4
    assert float(guidance.mean()) == pytest.approx(2.5, abs=0.05)
    assert len(guidance.unique()) > 3900
    delta = torch.stack([draws.delta for draws in many])
    assert 0 < delta.min() < 0.002
    assert 0.118 < delta.max() <= 0.12
    assert float(torch.cat([draws.drop for draws in many]).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float(torch.cat([draws.t for draws in many]).mean()) == pytest.approx(0.5, abs=0.02)


def test_steps_and_seeds_differ(cache: LatentCache) -> None:
    one = draw_path_points(cache, CONFIG, 3)
    for other in (draw_path_points(cache, CONFIG, 4), draw_path_points(cache, replace(CONFIG, seed=1), 3)):
        same = {name for name, tensor in tensors(other).items() if torch.equal(tensor, tensors(one)[name])}
        assert same <= {"drop", "y"}


def test_starts(predictor: SiT) -> None:
    """Noise, labels of all classes alike, and guidance, which changes neither; nothing of any data."""
    program = trace(Schedule.parse("H1R1"), "guided")
    shape = predictor.config
    whole = draw_starts(program, shape, CONFIG, 3)
    assert whole.x0.shape == (6, 2, 4, 4)
    assert_joined([draw_starts(program, shape, CONFIG, 3, slice(i, i + 2)) for i in (0, 2, 4)], whole)
    assert_joined(whole.to(CPU).parts(3), whole)
    unguided = draw_starts(program, shape, TrainingConfig(batch=6), 3)
    assert unguided.guidance is None
    assert torch.equal(unguided.x0, whole.x0)
    assert torch.equal(unguided.y, whole.y)
    assert all(part.program is program for part in whole.parts(2))
    labels = torch.cat([draw_starts(program, shape, CONFIG, step).y for step in range(500)])
    assert labels.bincount().tolist() == pytest.approx([1000] * 3, rel=0.1)
    assert not torch.equal(draw_starts(program, shape, CONFIG, 4).x0, whole.x0)
