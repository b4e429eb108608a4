"""Train a velocity refiner: seeded, resumable, with an exponential moving average of its weights."""

import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
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
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


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
        if self.seed < 0:
            raise TrainingError(f"seed is {self.seed}, expected at least 0")
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
    sources: Mapping[str, str] | None = None,
) -> Path:
    """Train until `config.steps`, continuing what `folder` holds; return the EMA weights' file.

    `sources` names predictor and data, by hash, so that a run is not resumed with others.

    `on_step(step, loss)` is called after every step, from the first new one. An interrupt (Ctrl-C, or
    KeyboardInterrupt from `on_step`) saves the steps taken before it goes on.
    """
    _check_data(predictor, cache, config)
    run = _Run(predictor, config, sources or {})
    run.resume(folder)
    _check_writable(folder)
    if run.step > config.steps:
        raise TrainingError(f"{folder}: has {run.step} steps already, more than the {config.steps} asked for")
    while run.step < config.steps:
        try:
            loss = run.advance(cache)
            on_step(run.step, loss)
        except KeyboardInterrupt:
            run.save(folder)
            raise
        if run.step % config.checkpoint_every == 0 or run.step == config.steps:
            run.save(folder)
    return folder / WEIGHTS


class _Run:
    """Everything that moves during training, so that saving and resuming cannot forget a part."""

    def __init__(self, predictor: SiT, config: TrainingConfig, sources: Mapping[str, str]) -> None:
        self.config = config
        self.identity = {**asdict(predictor.config), **asdict(config), **sources}
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
        with _interrupts_held():
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
        """Write the EMA weights, the metrics and the whole state; one that fails keeps the state before."""
        if self.step == 0:
            return
        try:
            with _interrupts_held():
                _replace(folder / WEIGHTS, lambda path: save_file(self.average, path))
                with (folder / METRICS).open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in self.losses)
                # Last: what it does not know of was not saved, and `resume` takes it back.
                _replace(folder / CHECKPOINT, self._write_state)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{folder}: step {self.step} cannot be saved ({error}); the last checkpoint is kept"
            ) from error
        self.losses.clear()

    def _write_state(self, path: Path) -> None:
        state: dict[str, Tensor] = {f"weights/{k}": v for k, v in self.refiner.state_dict().items()}
        state |= {f"average/{k}": v for k, v in self.average.items()}
        for name, parameter in self._trained().items():
            moments = self.optimizer.state[parameter]
            state |= {f"adam/{name}/{key}": moments[key] for key in MOMENTS}
        save_file(state, path, {"step": str(self.step), "config": json.dumps(self.identity)})

    def resume(self, folder: Path) -> None:
        """Take up the state that `folder` holds, if any; refuse one that is of another run or damaged."""
        path = folder / CHECKPOINT
        if not path.is_file() and (folder / WEIGHTS).exists():
            raise TrainingError(f"{folder}: holds {WEIGHTS} but no {CHECKPOINT}; train into another folder")
        try:
            if path.is_file():
                self._read_state(path)
            metrics = folder / METRICS
            if metrics.is_file():
                rows = metrics.read_text().splitlines(keepends=True)
                _replace(metrics, lambda partial: partial.write_text("".join(rows[: self.step])))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"{path}: cannot be resumed, truncated or of another model? ({reason}); "
                "move it away to start anew"
            ) from error

    def _read_state(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        self._check_same(json.loads(metadata["config"]), path)
        self.refiner.load_state_dict({name: state[f"weights/{name}"] for name in self.average})
        self.average = {name: state[f"average/{name}"] for name in self.average}
        for name, parameter in self._trained().items():
            self.optimizer.state[parameter] = {key: state[f"adam/{name}/{key}"] for key in MOMENTS}
        self.step = int(metadata["step"])

    def _check_same(self, saved: dict[str, Any], path: Path) -> None:
        for name, value in self.identity.items():
            if name not in RESUMABLE and saved.get(name) != value:
                raise TrainingError(
                    f"{path}: was trained with {name}={saved.get(name)}, now {value}; "
                    "use the same options or another folder"
                )


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Put Ctrl-C off until the block has ended, so that it tears neither a step nor a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread only.
        yield
        return
    held: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if held and callable(previous):
        # Called, not raised anew: the system would run the handler on whatever stack is set aside for
        # signals, and a fault handler's (pytest enables one) is a few kilobytes, too few for some CPUs.
        previous(signal.SIGINT, None)
    elif held:
        signal.raise_signal(signal.SIGINT)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(path.name + ".partial")
    write(partial)
    os.replace(partial, path)


def _check_writable(folder: Path) -> None:
    """Fail before the training, not at its first checkpoint."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / METRICS).open("a").close()
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written ({error}); give another folder") from error


def _check_data(predictor: SiT, cache: LatentCache, config: TrainingConfig) -> None:
    shape = predictor.config
    expected = (shape.in_channels, shape.input_size, shape.input_size)
    if tuple(cache.mean.shape[1:]) != expected:
        raise DataError(f"latents are {tuple(cache.mean.shape[1:])}, the predictor reads {expected}")
    if len(cache) < config.batch:
        raise DataError(f"the cache holds {len(cache)} latents, fewer than one batch of {config.batch}")
    if not 0 <= int(cache.label.min()) <= int(cache.label.max()) < shape.num_classes:
        raise DataError(
            f"labels go from {int(cache.label.min())} to {int(cache.label.max())}, the predictor has "
            f"{shape.num_classes} classes"
        )
