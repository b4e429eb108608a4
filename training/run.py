"""A training run in memory: everything that moves from step to step, and one step."""

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from flowturbo_trt.models.sit import SiT
from flowturbo_trt.training.config import TrainingConfig, TrainingError
from flowturbo_trt.training.distributed import Group
from flowturbo_trt.training.initial import initial_refiner
from flowturbo_trt.training.interrupts import interrupts_held
from flowturbo_trt.training.lessons import Lessons
from flowturbo_trt.training.records import Row

# What AdamW keeps of a parameter.
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Run:
    """Everything that moves during training, so that saving and resuming cannot forget a part.

    What is random, the data's order included, is a function of the seed and the step (training/draws.py):
    it has no state. Weights, their average and the optimizer's moments are float32 in any precision.
    `unsaved` are the rows since the last checkpoint, `identity` is what a checkpoint must have been
    trained with to be this run's.
    """

    def __init__(
        self,
        predictor: SiT,
        config: TrainingConfig,
        group: Group,
        lessons: Lessons,
        guided_channels: int,
        sources: Mapping[str, str],
        start: SiT | None = None,
    ) -> None:
        self.config = config
        self.group = group
        self._lessons = lessons
        self.guided_channels = guided_channels
        self.identity = {**asdict(predictor.config), **asdict(config), **lessons.provenance, **sources}
        if config.guided:
            self.identity["guided_channels"] = guided_channels
        self._rows = group.rows(config)
        self.step = 0
        self.unsaved: list[Row] = []
        refiner = initial_refiner(predictor, config, start)
        self.predictor = predictor.to(group.device).eval().requires_grad_(False)
        self.refiner = refiner.to(group.device)
        self.average = copy.deepcopy(self.refiner).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self._trained().values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._shared = group.share(self.refiner)

    def advance(self) -> Row:
        """Take one optimizer step; raises TrainingError, and leaves the weights, where it is not finite."""
        self.optimizer.zero_grad()
        with self.group.waiting():
            loss = self.group.mean(self._accumulate_gradients()).item()
            gradients = [p.grad for p in self._trained().values() if p.grad is not None]
            norm = get_total_norm(gradients)
            row = Row(self.step + 1, loss, self.config.learning_rate_at(self.step), norm.item())
        for name, value in (("loss", row.loss), ("gradient's norm", row.gradient_norm)):
            if not math.isfinite(value):
                raise TrainingError(f"the {name} is {value} at step {self.step}; the last checkpoint is kept")
        if self.config.clip:
            clip_grads_with_norm_(self._trained().values(), self.config.clip, norm)
        with interrupts_held():
            for of_group in self.optimizer.param_groups:
                of_group["lr"] = row.learning_rate
            self.optimizer.step()
            self.step += 1
            self._update_average()
            if self.group.leads:
                self.unsaved.append(row)
        return row

    def _accumulate_gradients(self) -> Tensor:
        """Leave the gradient of the batch's mean loss, and return this process's mean loss."""
        config, group = self.config, self.group
        draws = self._lessons.draw(self.step, self._rows).to(group.device)
        parts = draws.parts(config.accumulate)
        total = torch.zeros((), device=group.device)
        for part in parts:
            with group.last_part(self._shared, part is parts[-1]):
                with self.autocast():
                    losses = self._lessons.loss(self.predictor, self._shared, part)
                # Parts are of equal size: the mean of their means is the batch's.
                loss = losses.mean() / len(parts)
                loss.backward()
                total += loss.detach()
        return total

    def autocast(self) -> torch.autocast:
        """Return the context that networks are evaluated in."""
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.group.device.type, torch.bfloat16, enabled=enabled)

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.refiner.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def _update_average(self) -> None:
        # The ramp forgets the random start, which a constant decay would remember for 1/(1−decay) steps.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        average = self.average.state_dict()
        for name, tensor in self.refiner.state_dict().items():
            average[name].lerp_(tensor, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Return everything but the step, in host memory."""
        state: dict[str, Tensor] = {f"weights/{k}": v for k, v in self.refiner.state_dict().items()}
        state |= {f"average/{k}": v for k, v in self.average.state_dict().items()}
        for name, parameter in self._trained().items():
            moments = self.optimizer.state[parameter]
            state |= {f"adam/{name}/{key}": moments[key] for key in MOMENTS}
        return {name: tensor.cpu() for name, tensor in state.items()}

    def load_state(self, state: Mapping[str, Tensor], step: int) -> None:
        """Take up a state; raises KeyError or RuntimeError for that of another network."""
        for kind, network in (("weights", self.refiner), ("average", self.average)):
            network.load_state_dict({name: state[f"{kind}/{name}"] for name in network.state_dict()})
        for name, parameter in self._trained().items():
            moments = {key: state[f"adam/{name}/{key}"] for key in MOMENTS}
            for key, moment in moments.items():
                if key != "step":
                    moments[key] = moment.to(parameter.device)
            self.optimizer.state[parameter] = moments
        self.step = step
