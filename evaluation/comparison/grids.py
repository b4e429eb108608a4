"""Images from the same noise, one row for each schedule, ready to stand in a page."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowturbo_trt.evaluation.comparison.findings import Shown

# How much differences are magnified: an eighth of the range becomes half of it.
MAGNIFICATION = 4


@dataclass(frozen=True)
class Strip:
    """The images of one schedule, as data: addresses, in the order of the noises."""

    name: str
    images: tuple[str, ...]


def sample_strips(shown: Shown, truth: str) -> list[Strip]:
    """Return a strip of images for every schedule, and last the one that `truth` names."""
    strips = [_strip(schedule, images) for schedule, images in shown.images.items()]
    return [*strips, _strip(truth, shown.truth)]


def difference_strips(shown: Shown) -> list[Strip]:
    """Return for every schedule how far each image is from the fine trajectory's, magnified and clipped."""
    return [_strip(schedule, difference(images, shown.truth)) for schedule, images in shown.images.items()]


def difference(images: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return MAGNIFICATION · |images − truth| of (n,H,W,3), at most 255."""
    distance = np.abs(images.astype(np.int16) - truth.astype(np.int16))
    magnified: NDArray[np.uint8] = np.minimum(MAGNIFICATION * distance, 255).astype(np.uint8)
    return magnified


def _strip(name: str, images: NDArray[np.uint8]) -> Strip:
    return Strip(name, tuple(map(data_address, images)))


def data_address(image: NDArray[np.uint8]) -> str:
    """Return an image (H,W,3) as a PNG within a data: address."""
    # Grey ones take a third of the bytes.
    grey = bool((image == image[..., :1]).all())
    out = io.BytesIO()
    Image.fromarray(image[..., 0] if grey else image).save(out, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
