"""Flow-matching training of the digits' velocity predictor, a SiT on 4×8×8 latents."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from flowturbo_trt.models.sit import SiT, SiTConfig
from flowturbo_trt.training.data import LatentCache

from .data import CLASSES
from .loop import WEIGHTS, Progress, prepare, warmup_cosine

WEIGHTS_FILE = WEIGHTS / "predictor.safetensors"
CONFIG_FILE = WEIGHTS / "config.json"
CONFIG = SiTConfig(
    input_size=8,
    patch_size=2,
    in_channels=4,
    hidden_size=192,
    depth=6,
    num_heads=6,
    num_classes=CLASSES,
    learn_sigma=False,
)
# What the SiT's own fields do not say: how the model is meant to be guided and refined.
USE = {"guided_channels": "all", "refiner_depth": 1, "cfg_scale": 1.5}


@dataclass(frozen=True)
class PredictorTraining:
    steps: int = 3500
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 200
    label_drop: float = 0.1
    ema_decay: float = 0.999
    clip: float = 1.0
    save_every: int = 500
    seed: int = 4


class Trainer:
    """Everything that changes during training, so that a checkpoint of it resumes to the same result."""

    def __init__(self, training: PredictorTraining) -> None:
        self.training = training
        self.generator = prepare(training.seed)
        self.model = SiT(CONFIG).train()
        self.ema = SiT(CONFIG).requires_grad_(False)
        self.ema.load_state_dict(self.model.state_dict())
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=training.lr, betas=(0.9, 0.99), weight_decay=0.0)
        self.step = 0

    def advance(self, latents: LatentCache) -> float:
        """Take one optimiser step on a fresh batch and return its loss."""
        training = self.training
        x1, y = draw(latents, training.batch, self.generator)
        for group in self.optimizer.param_groups:
            group["lr"] = training.lr * warmup_cosine(self.step, training.steps, training.warmup)
        loss = flow_matching_loss(self.model, x1, y, training.label_drop, self.generator)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.clip)
        self.optimizer.step()
        # The ramp forgets the random initialisation that a fixed 0.999 would carry for long.
        decay = min(training.ema_decay, (1 + self.step) / (10 + self.step))
        weights = zip(self.ema.parameters(), self.model.parameters(), strict=True)
        for average, weight in weights:
            average.data.lerp_(weight.data, 1 - decay)
        self.step += 1
        return loss.item()

    def save(self, file: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
        }
        partial = file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(file)

    def load(self, file: Path) -> None:
        state = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step = state["step"]

    def save_weights(self) -> None:
        """Write the averaged weights in float16 and the configuration, ready to be sampled from."""
        weights = {name: value.half().contiguous() for name, value in self.ema.state_dict().items()}
        save_file(weights, WEIGHTS_FILE)
        CONFIG_FILE.write_text(json.dumps(dataclasses.asdict(CONFIG) | USE, indent=2) + "\n")


def draw(latents: LatentCache, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw latents x1 (B,4,8,8) = mean + std·noise and their labels (B)."""
    index = torch.randint(len(latents), (batch,), generator=generator)
    mean = latents.mean[index]
    return mean + latents.std[index] * torch.randn(mean.shape, generator=generator), latents.label[index]


def flow_matching_loss(
    model: SiT, x1: Tensor, y: Tensor, label_drop: float, generator: torch.Generator
) -> Tensor:
    """Return the mean of ‖model(x_t, t, y) − (x1 − x0)‖² for latents x1 (B,C,H,W) and labels y (B).

    x_t = t·x1 + (1−t)·x0 with noise x0 and t ~ U[0,1); labels become the null label with probability
    `label_drop`, which is what classifier-free guidance needs.
    """
    x0 = torch.randn(x1.shape, generator=generator)
    t = torch.rand(len(x1), generator=generator)
    dropped = torch.rand(len(x1), generator=generator) < label_drop
    t_ = t[:, None, None, None]
    v = model(t_ * x1 + (1 - t_) * x0, t, y.masked_fill(dropped, model.config.null_label))
    loss: Tensor = (v - (x1 - x0)).square().mean()
    return loss


def train_predictor(cache: Path, checkpoint: Path, training: PredictorTraining = PredictorTraining()) -> None:
    """Train on the latent cache; resume from `checkpoint` if it exists, and remove it when done."""
    latents = LatentCache.load(cache)
    trainer = Trainer(training)
    if checkpoint.exists():
        trainer.load(checkpoint)
    progress = Progress("predictor", training.steps)
    while trainer.step < training.steps:
        loss = trainer.advance(latents)
        progress.update(trainer.step - 1, loss)
        if trainer.step % training.save_every == 0:
            trainer.save(checkpoint)
            trainer.save_weights()
    trainer.save_weights()
    checkpoint.unlink(missing_ok=True)
