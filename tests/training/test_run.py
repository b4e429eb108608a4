"""One step: parts of a batch, clipping, warm-up, precision, and numbers that are not finite."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowturbo_trt.models.sit import SiT
from flowturbo_trt.training.config import TrainingConfig, TrainingError
from flowturbo_trt.training.data import LatentCache
from flowturbo_trt.training.lessons import choose_lessons
from flowturbo_trt.training.run import Run
from flowturbo_trt.training.train_refiner import ALONE

CONFIG = TrainingConfig(steps=4, batch=6, learning_rate=1e-2)


def new_run(predictor: SiT, config: TrainingConfig, source: LatentCache | None) -> Run:
    lessons = choose_lessons(None if config.on_policy else source, predictor.config, config, 2)
    return Run(predictor, config, ALONE, lessons, guided_channels=2, sources={})


def gradients(run: Run) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in run.refiner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("on_policy", ["", "H1P1R2"])
@pytest.mark.parametrize("guidance_high", [1.0, 3.0])
@pytest.mark.parametrize("accumulate", [2, 3])
def test_parts_of_a_batch_give_its_gradient(
    predictor: SiT, cache: LatentCache, accumulate: int, guidance_high: float, on_policy: str
) -> None:
    config = replace(CONFIG, guidance_high=guidance_high, on_policy=on_policy)
    whole, parts = (new_run(predictor, replace(config, accumulate=count), cache) for count in (1, accumulate))
    first, second = whole.advance(), parts.advance()
    assert second.loss == pytest.approx(first.loss, rel=1e-5)
    assert second.gradient_norm == pytest.approx(first.gradient_norm, rel=1e-5)
    for name, expected in gradients(whole).items():
        torch.testing.assert_close(gradients(parts)[name], expected, rtol=1e-4, atol=1e-7)


def test_batch_that_has_no_equal_parts(predictor: SiT, cache: LatentCache) -> None:
    with pytest.raises(
        TrainingError, match=r"batch is 6, expected a multiple of 4 \(processes 1 × accumulate 4"
    ):
        new_run(predictor, replace(CONFIG, accumulate=4), cache)


def test_guidance_changes_what_is_learnt(predictor: SiT, cache: LatentCache) -> None:
    paper, guided = (
        new_run(predictor, CONFIG, cache),
        new_run(predictor, replace(CONFIG, guidance_high=4), cache),
    )
    assert paper.advance().loss != guided.advance().loss


def test_clipping(predictor: SiT, cache: LatentCache) -> None:
    """The gradient's norm is recorded as it was, and is at most `clip` after."""
    free, clipped = new_run(predictor, CONFIG, cache), new_run(predictor, replace(CONFIG, clip=1e-3), cache)
    row = free.advance()
    assert clipped.advance() == row
    assert row.gradient_norm > 2e-3
    for run, expected in ((free, row.gradient_norm), (clipped, 1e-3)):
        norm = torch.stack([gradient.norm() for gradient in gradients(run).values()]).norm()
        assert float(norm) == pytest.approx(expected, rel=1e-3)
    loose = new_run(predictor, replace(CONFIG, clip=1e3), cache)
    loose.advance()
    assert all(torch.equal(tensor, gradients(free)[name]) for name, tensor in gradients(loose).items())


def test_warm_up_scales_the_first_steps(predictor: SiT, cache: LatentCache) -> None:
    """Adam's first update is the learning rate in size, whatever the gradient's."""
    for warmup, expected in ((0, 1e-2), (5, 2e-3)):
        run = new_run(predictor, replace(CONFIG, warmup=warmup), cache)
        before = run.refiner.final_layer.linear.bias.detach().clone()
        assert run.advance().learning_rate == pytest.approx(expected)
        moved = (run.refiner.final_layer.linear.bias - before).abs().max()
        assert moved.item() == pytest.approx(expected, rel=1e-2)


def test_state_is_float32_in_both_precisions(predictor: SiT, cache: LatentCache) -> None:
    run = new_run(predictor, replace(CONFIG, precision="bf16"), cache)
    run.advance()
    assert {tensor.dtype for tensor in run.state().values()} == {torch.float32}
    exact = new_run(predictor, CONFIG, cache)
    exact.advance()
    assert not torch.equal(
        run.state()["adam/final_layer.linear.bias/exp_avg"], gradients(exact)["final_layer.linear.bias"]
    )


@pytest.mark.parametrize(("name", "value"), [("loss", float("nan")), ("gradient's norm", float("inf"))])
def test_numbers_that_are_not_finite_touch_no_weights(
    predictor: SiT, cache: LatentCache, name: str, value: float
) -> None:
    run = new_run(predictor, CONFIG, cache)
    run.advance()
    before = {key: tensor.clone() for key, tensor in run.state().items()}
    if name == "loss":
        cache.mean.mul_(value)
    else:
        run.refiner.final_layer.linear.bias.register_hook(lambda gradient: gradient * value)
    with pytest.raises(TrainingError, match=f"the {name} is .* at step 1; the last checkpoint is kept"):
        run.advance()
    assert run.step == 1
    assert all(torch.equal(tensor, before[key]) for key, tensor in run.state().items())
