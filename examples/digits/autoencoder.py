"""A small KL autoencoder for the digits: 1×32×32 images to 4×8×8 latents and back."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from .data import SIDE, Augmentation, augment, load_split
from .loop import WEIGHTS, Progress, prepare, warmup_cosine

DIRECTORY = WEIGHTS / "autoencoder"
# Light: what it produces is still a plausible digit of the same hand.
LIGHT = Augmentation(rotation=8, shift=1, zoom=0.06, elastic=0.5)


@dataclass(frozen=True)
class AutoencoderTraining:
    steps: int = 1600
    batch: int = 32
    lr: float = 2e-3
    warmup: int = 100
    # Per latent value, beside an error per pixel: enough to keep the latents smooth and near Gaussian.
    kl_weight: float = 1e-3
    seed: int = 1


def new_autoencoder() -> AutoencoderKL:
    """Return the untrained autoencoder; its `scaling_factor` is set once its latents are known."""
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=SIDE,
        scaling_factor=1.0,
    )


def load_autoencoder(directory: Path = DIRECTORY) -> AutoencoderKL:
    """Load the trained autoencoder in float32, for inference."""
    autoencoder = AutoencoderKL.from_pretrained(directory, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    return autoencoder.eval().requires_grad_(False)


def train_autoencoder(training: AutoencoderTraining = AutoencoderTraining()) -> None:
    """Train on the generator split and save a diffusers directory with float16 weights."""
    generator = prepare(training.seed)
    images = load_split("generator").images
    autoencoder = new_autoencoder().train()
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=training.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, training.steps, training.warmup)
    )
    progress = Progress("autoencoder", training.steps)
    for step in range(training.steps):
        index = torch.randint(len(images), (training.batch,), generator=generator)
        loss = reconstruction_loss(autoencoder, augment(images[index], LIGHT, generator), training.kl_weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.update(step, loss.item())
    autoencoder.eval()
    autoencoder.register_to_config(scaling_factor=latent_scale(autoencoder, images))
    autoencoder.half().save_pretrained(DIRECTORY)


def reconstruction_loss(autoencoder: AutoencoderKL, images: Tensor, kl_weight: float) -> Tensor:
    """Return L1 + L2 per pixel plus the weighted KL per latent value, for images (N,1,32,32)."""
    posterior = autoencoder.encode(images).latent_dist
    decoded = autoencoder.decode(posterior.sample()).sample
    error = F.l1_loss(decoded, images) + F.mse_loss(decoded, images)
    loss: Tensor = error + kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
    return loss


@torch.no_grad()
def latent_scale(autoencoder: AutoencoderKL, images: Tensor) -> float:
    """Return 1/std of the posterior means of `images`: the factor that gives latents unit variance."""
    means = torch.cat([autoencoder.encode(part).latent_dist.mean for part in images.split(250)])
    return round(1 / means.std().item(), 4)
