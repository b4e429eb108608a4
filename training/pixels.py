"""From image files to pixels as the encoder reads them: decoded, upright, cropped to a square."""

import errno
import stat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from flowturbo_trt.training.source import DataError

# What the system says of one file alone; anything else (a disk that fails) concerns them all.
_OF_THE_FILE = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}


class ImageError(DataError):
    """A file is no image that can be used: the reason, without the file's name."""


def read_pixels(path: Path, size: int, channels: int) -> Tensor:
    """Return an image file's pixels (channels,size,size) float32 in [-1,1], with 1 channel or 3.

    The first frame, turned as its EXIF orientation says, transparency on white, then `center_crop`.
    Raises ImageError for a file that cannot be used, and OSError where not the file is at fault.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ImageError("is not a regular file")
        with Image.open(path) as opened:
            image = center_crop(_upright(opened, "L" if channels == 1 else "RGB"), size)
    except ImageError:
        raise
    except OSError as error:
        # Pillow's own errors have no number.
        if error.errno is None or error.errno in _OF_THE_FILE or path.is_symlink():
            raise ImageError(_reason(error, path)) from error
        raise
    # Damaged bytes make Pillow raise whatever they lead it to.
    except Exception as error:
        raise ImageError(_reason(error, path)) from error
    pixels = torch.from_numpy(np.array(image)).view(size, size, channels)
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the short side to `size` and cut the middle square out, as ADM does (Dhariwal & Nichol, 2021).

    Halved with a BOX filter while the short side is at least twice `size`, then BICUBIC. Raises
    ImageError for an image so narrow that it could not be scaled in memory.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    # The limit that Pillow has for what it decodes.
    if Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        raise ImageError(f"{image.width}×{image.height} pixels: too narrow to be scaled to {width}×{height}")
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _upright(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in `mode` (L or RGB), 8 bits a channel, turned as it is meant to be seen."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(levels: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert 16-bit levels; Pillow would clip them to 255."""
    if levels.dtype.kind == "f" or levels.min() < 0 or levels.max() > 65535:
        raise ImageError(
            f"pixels of {levels.dtype} from {levels.min():g} to {levels.max():g}, expected 8 or 16 bits"
        )
    return np.rint(levels / 257).astype(np.uint8)


def _reason(error: Exception, path: Path) -> str:
    """Put an error into one line without the path, which is reported beside it."""
    if isinstance(error, UnidentifiedImageError):
        return "is empty" if path.stat().st_size == 0 else "is no image that Pillow knows"
    text = " ".join(str(error).replace(str(path), "").split()).strip(" :'")
    return text or type(error).__name__
