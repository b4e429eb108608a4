"""Images during training: the averaged refiner in a schedule, always from the same noise and labels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowturbo_trt.export.networks import with_guidance
from flowturbo_trt.export.use import DEFAULT_GUIDANCE
from flowturbo_trt.models.sit import SiTConfig
from flowturbo_trt.sampling import reference
from flowturbo_trt.sampling.noise import standard_normal
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.training.config import TrainingError
from flowturbo_trt.training.records import EventFiles, Row
from flowturbo_trt.training.run import Run

if TYPE_CHECKING:
    # Diffusers takes seconds to import, which a training without previews does not need.
    from flowturbo_trt.models.autoencoder import Decoder

PREVIEWS = "previews"
# Images sampled at a time, whatever their number: they share the device with the training.
ROWS = 8


@dataclass(frozen=True)
class Previews:
    """What to draw: `images` images every `every` steps, of seeds and labels that count up from 0.

    `write` puts images (N,H,W,3) uint8 into a file.
    """

    decoder: "Decoder"
    write: Callable[[NDArray[np.uint8], Path], None]
    every: int = 1000
    schedule: str = "H1P5R3"
    guidance: float = DEFAULT_GUIDANCE
    images: int = 16

    def __post_init__(self) -> None:
        if self.every < 1 or self.images < 1:
            raise TrainingError(
                f"previews are {self.images} images every {self.every} steps, expected at least 1 each"
            )
        Schedule.parse(self.schedule)

    def check(self, predictor: SiTConfig) -> None:
        """Raise TrainingError unless the decoder is for the predictor's latents."""
        if self.decoder.latent_channels != predictor.in_channels:
            raise TrainingError(
                f"the decoder has {self.decoder.latent_channels} latent channels, the predictor "
                f"{predictor.in_channels}; give the decoder of this model"
            )


class Artist:
    """Draws the previews of a run with its own networks."""

    def __init__(self, previews: Previews, run: Run, folder: Path, events: EventFiles | None = None) -> None:
        shape = run.predictor.config
        self._previews = previews
        self._run = run
        self._folder = folder / PREVIEWS
        self._events = events
        self._program = trace(Schedule.parse(previews.schedule), "guided")
        self._decoder = previews.decoder.to(run.group.device)
        self._labels = torch.arange(previews.images) % shape.num_classes
        latent = (shape.in_channels, shape.input_size, shape.input_size)
        self._noise = torch.tensor(np.stack([standard_normal(i, latent) for i in range(previews.images)]))
        self._networks = {
            variant: {
                "predictor": with_guidance(run.predictor, variant, run.guided_channels, "fused"),
                "refiner": with_guidance(run.average, variant, run.guided_channels, "fused"),
            }
            for variant in {variant for _, variant in self._program.evaluations()}
        }

    def observe(self, row: Row) -> None:
        """Draw after every so many steps, into the file of the step and for TensorBoard."""
        if row.step % self._previews.every:
            return
        images = self.draw()
        path = self._folder / f"step-{row.step:08}.png"
        try:
            self._folder.mkdir(exist_ok=True)
            self._previews.write(images, path)
        except OSError as error:
            raise TrainingError(f"{path}: cannot be written ({error})") from error
        if self._events is not None:
            self._events.add_images(images, row.step)

    def draw(self) -> NDArray[np.uint8]:
        """Sample the images (N,H,W,3) with the run's networks as they are."""
        parts = zip(self._noise.split(ROWS), self._labels.split(ROWS), strict=True)
        with torch.inference_mode():
            return np.concatenate([self._sample(noise, labels) for noise, labels in parts])

    def _sample(self, noise: Tensor, labels: Tensor) -> NDArray[np.uint8]:
        device = self._run.group.device
        labels = labels.to(device)
        guidance = torch.full((len(labels),), self._previews.guidance, device=device)
        fields = {
            variant: _Field(networks, labels, {"guidance": guidance} if variant == "guided" else {})
            for variant, networks in self._networks.items()
        }
        start: Any = noise.to(device)
        with self._run.autocast():
            *_, (x, _) = reference.run(self._program, fields, start)
        state: Any = x
        images: NDArray[np.uint8] = self._decoder(state).cpu().numpy()
        return images


class _Field:
    """Predictor and refiner of one variant with labels and guidance bound (sampling.steps.Field)."""

    def __init__(
        self, networks: Mapping[str, nn.Module], labels: Tensor, guidance: Mapping[str, Tensor]
    ) -> None:
        self._networks = networks
        self._labels = labels
        self._guidance = guidance

    def predict(self, x: Tensor, t: float) -> Tensor:
        return self._call("predictor", x, t)

    def refine(self, x: Tensor, v: Tensor, t: float) -> Tensor:
        return self._call("refiner", x, t, velocity=v)

    def _call(self, network: str, x: Tensor, t: float, **given: Tensor) -> Tensor:
        time = torch.full((len(x),), t, device=x.device)
        module = self._networks[network]
        velocity: Tensor = module(state=x, time=time, label=self._labels, **self._guidance, **given)
        # Sums of velocities are float32 whatever the networks compute in.
        return velocity.float()
