"""Train a velocity refiner: seeded, resumable, with an exponential moving average of its weights."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from flowturbo_trt.models.sit import SiT
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.training.data import DataError, LatentCache, step_generator
from flowturbo_trt.training.objective import refiner_objective

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "refiner.safetensors"
METRICS = "metrics.jsonl"
# Changing these between runs continues the same training; changing any other would not.
RESUMABLE = {"steps", "checkpoint_every"}


class TrainingError(FlowTurboError):
    """Training cannot start, resume or go on."""


@dataclass(frozen=True)
class TrainingConfig:
    """Hyper-parameters; the defaults are the paper's for class-conditional models."""

    steps: int = 30_000
    batch: int = 18
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    ema: float = 0.9999
    max_delta: float = 0.12
    label_drop: float = 0.1
    depth: int = 1
    precision: str = "fp32"
    checkpoint_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "depth", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.seed < 2**23:
            raise TrainingError(f"seed is {self.seed}, expected 0 to {2**23 - 1}")
        if not 0 < self.max_delta <= 1 or not 0 <= self.ema < 1 or not 0 <= self.label_drop <= 1:
            raise TrainingError("expected 0 < max_delta ≤ 1, 0 ≤ ema < 1 and 0 ≤ label_drop ≤ 1")
        if not self.learning_rate > 0 or self.weight_decay < 0:
            raise TrainingError("expected learning_rate > 0 and weight_decay ≥ 0")
        if self.precision not in ("fp32", "bf16"):
            raise TrainingError(f"precision is {self.precision!r}, expected fp32 or bf16 (autocast)")


def train_refiner(
    predictor: SiT,
    cache: LatentCache,
    config: TrainingConfig,
    folder: Path,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Path:
    """Train until `config.steps`, continuing what `folder` holds; return the EMA weights' file.

    `on_step(step, loss)` is called after every step, from the first new one.
    """
    _check_data(predictor, cache, config)
    run = _Run(predictor, config)
    run.resume(folder)
    folder.mkdir(parents=True, exist_ok=True)
    while run.step < config.steps:
        try:
            loss = run.advance(cache)
        except KeyboardInterrupt:
            run.save(folder)
            raise
        on_step(run.step, loss)
        if run.step % config.checkpoint_every == 0 or run.step == config.steps:
            run.save(folder)
    return folder / WEIGHTS


class _Run:
    """Everything that moves during training, so that saving and resuming cannot forget a part."""

    def __init__(self, predictor: SiT, config: TrainingConfig) -> None:
        self.config = config
        self.predictor = predictor.eval().requires_grad_(False)
        self.step = 0
        self.losses: list[dict[str, float]] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.refiner = SiT(replace(predictor.config, depth=config.depth), refines=True)
        self.optimizer = torch.optim.AdamW(
            self._trained().values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.average = {name: tensor.detach().clone() for name, tensor in self.refiner.state_dict().items()}

    def advance(self, cache: LatentCache) -> float:
        """Take one optimizer step and return its loss."""
        config = self.config
        x1, y = cache.batch(self.step, config.batch, config.seed)
        random = step_generator(config.seed, self.step, stream=2)
        x0 = torch.randn(x1.shape, generator=random)
        t = torch.rand(len(y), generator=random)
        # (0, max]: a step of length zero teaches nothing.
        delta = config.max_delta * (1 - torch.rand((), generator=random))
        drop = torch.rand(len(y), generator=random) < config.label_drop
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            objective = refiner_objective(self.predictor, self.refiner, x0, x1, y, t, delta, drop)
        loss = objective.loss.mean()
        if not math.isfinite(loss.item()):
            raise TrainingError(f"the loss is {loss.item()} at step {self.step}; the last checkpoint is kept")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self._update_average()
        self.losses.append({"step": self.step, "loss": loss.item()})
        return loss.item()

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.refiner.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def _update_average(self) -> None:
        # The ramp forgets the random start, which a constant decay would remember for 1/(1−decay) steps.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        for name, tensor in self.refiner.state_dict().items():
            self.average[name].lerp_(tensor, 1 - decay)

    def save(self, folder: Path) -> None:
        """Write the whole state and the EMA weights, each file whole or not at all."""
        state: dict[str, Tensor] = {f"weights/{k}": v for k, v in self.refiner.state_dict().items()}
        state |= {f"average/{k}": v for k, v in self.average.items()}
        for name, parameter in self._trained().items():
            moments = self.optimizer.state[parameter]
            state |= {f"adam/{name}/{key}": moments[key] for key in ("step", "exp_avg", "exp_avg_sq")}
        metadata = {"step": str(self.step), "config": json.dumps(asdict(self.config))}
        _replace(folder / CHECKPOINT, lambda path: save_file(state, path, metadata))
        _replace(folder / WEIGHTS, lambda path: save_file(self.average, path))
        with (folder / METRICS).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.losses)
        self.losses.clear()

    def resume(self, folder: Path) -> None:
        """Take up the state that `folder` holds, if any; refuse one of another configuration."""
        path = folder / CHECKPOINT
        if not path.is_file():
            return
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        self._check_same(json.loads(metadata["config"]), path)
        self.refiner.load_state_dict(_under("weights/", state))
        self.average = _under("average/", state)
        for name, parameter in self._trained().items():
            self.optimizer.state[parameter] = _under(f"adam/{name}/", state)
        self.step = int(metadata["step"])

    def _check_same(self, saved: dict[str, Any], path: Path) -> None:
        for name, value in asdict(self.config).items():
            if name not in RESUMABLE and saved.get(name) != value:
                raise TrainingError(
                    f"{path}: was trained with {name}={saved.get(name)}, now {value}; "
                    "use the same options or another folder"
                )


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    partial = path.with_name(path.name + ".partial")
    write(partial)
    os.replace(partial, path)


def _check_data(predictor: SiT, cache: LatentCache, config: TrainingConfig) -> None:
    shape = predictor.config
    expected = (shape.in_channels, shape.input_size, shape.input_size)
    if tuple(cache.mean.shape[1:]) != expected:
        raise DataError(f"latents are {tuple(cache.mean.shape[1:])}, the predictor reads {expected}")
    if not 0 <= int(cache.label.min()) <= int(cache.label.max()) < shape.num_classes:
        raise DataError(
            f"labels go to {int(cache.label.max())}, the predictor has {shape.num_classes} classes"
        )
    if len(cache) < config.batch:
        raise DataError(f"the cache holds {len(cache)} latents, fewer than one batch of {config.batch}")
