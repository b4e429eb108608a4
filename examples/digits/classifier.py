"""A small digit classifier, trained apart from the generator: it judges samples and gives features."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .data import CLASSES, Augmentation, augment, load_split
from .loop import WEIGHTS, Progress, prepare, warmup_cosine

WEIGHTS_FILE = WEIGHTS / "classifier.safetensors"
FEATURES = 96
STRONG = Augmentation(rotation=15, shift=2, zoom=0.15, elastic=1.0)


@dataclass(frozen=True)
class ClassifierTraining:
    steps: int = 2000
    batch: int = 100
    lr: float = 3e-3
    warmup: int = 100
    seed: int = 2


class DigitClassifier(nn.Module):
    """Images (N,1,32,32) in [-1,1] → ten logits (N,10); the pooled last layer is the feature vector."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(1, 24),
            *_convolution(24, 32),
            nn.MaxPool2d(2),
            *_convolution(32, 48),
            *_convolution(48, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 64),
            *_convolution(64, FEATURES),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the feature vectors (N,96) of pixels (N,32,32) or (N,32,32,3), for a Fréchet distance."""
        return self._in_parts(images, self.body)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the most likely digit (N,) of pixels (N,32,32) or (N,32,32,3)."""
        labels: NDArray[np.int64] = self._in_parts(images, self).argmax(axis=1)
        return labels

    @torch.no_grad()
    def _in_parts(self, images: NDArray[np.uint8], network: nn.Module) -> NDArray[np.float32]:
        # The three channels of a digit are equal; their mean would only add rounding.
        grey = images[..., 0] if images.ndim == 4 else images
        pixels = torch.from_numpy(np.ascontiguousarray(grey))[:, None].float() / 127.5 - 1
        outputs: NDArray[np.float32] = torch.cat([network(part) for part in pixels.split(250)]).numpy()
        return outputs


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


def load_classifier(file: Path = WEIGHTS_FILE) -> DigitClassifier:
    """Load the trained classifier in float32, for inference."""
    classifier = DigitClassifier()
    classifier.load_state_dict(load_file(file))
    return classifier.eval().requires_grad_(False)


def train_classifier(training: ClassifierTraining = ClassifierTraining()) -> None:
    """Train on the classifier split, never on the generator's, and save float16 weights."""
    generator = prepare(training.seed)
    digits = load_split("classifier")
    classifier = DigitClassifier().train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=training.lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, training.steps, training.warmup)
    )
    progress = Progress("classifier", training.steps)
    for step in range(training.steps):
        index = torch.randint(len(digits.images), (training.batch,), generator=generator)
        images = degrade(augment(digits.images[index], STRONG, generator), generator)
        loss = F.cross_entropy(classifier(images), digits.labels[index], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.update(step, loss.item())
    save_file({name: _half(value) for name, value in classifier.state_dict().items()}, WEIGHTS_FILE)


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, fade and add noise by random amounts, so that a decoder's small errors are familiar."""
    N = len(images)
    blurred = F.avg_pool2d(F.pad(images, [1] * 4, value=-1.0), kernel_size=3, stride=1)
    mix = torch.rand(N, 1, 1, 1, generator=generator) * 0.7
    contrast = 1 - torch.rand(N, 1, 1, 1, generator=generator) * 0.3
    noise = (
        torch.randn(images.shape, generator=generator) * torch.rand(N, 1, 1, 1, generator=generator) * 0.15
    )
    return (((images * (1 - mix) + blurred * mix + 1) * contrast - 1) + noise).clamp(-1, 1)


def _half(value: Tensor) -> Tensor:
    return value.half().contiguous() if value.is_floating_point() else value
