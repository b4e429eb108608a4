"""Pixels of image files: the ADM crop against the definition of resampling, and every mode."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from flowturbo_trt.tests.training.caches import noise, saved_image
from flowturbo_trt.training.pixels import center_crop, read_pixels

Levels = NDArray[np.uint8]


def levels_of(path: Path, size: int, channels: int = 3) -> Levels:
    """Return what is read of a file as levels (size,size,K), after checking that it is levels."""
    pixels = read_pixels(path, size, channels)
    assert pixels.shape == (channels, size, size)
    assert pixels.dtype == torch.float32
    levels = (pixels.double().permute(1, 2, 0).numpy() + 1) * 127.5
    np.testing.assert_allclose(levels, levels.round(), atol=1e-4)
    return levels.round().astype(np.uint8)


# Resampling by its definition: a filter as wide as the pixels of the coarser image, weights of sum 1.


def box(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel with a = −1/2."""
    x = np.abs(x)
    inner, outer = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def resampled_rows(
    image: NDArray[np.float64], count: int, kernel: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    step = len(image) / count
    wide = max(step, 1.0)
    centres = (np.arange(count) + 0.5) * step
    weights = kernel((np.arange(len(image))[None] + 0.5 - centres[:, None]) / wide)
    weights /= weights.sum(axis=1, keepdims=True)
    # Every pass ends in 8 bits, halves rounded up.
    return np.floor(np.tensordot(weights, image, axes=1) + 0.5).clip(0, 255)


def resampled(image: NDArray[np.float64], height: int, width: int, kernel: Any) -> NDArray[np.float64]:
    across = resampled_rows(image.swapaxes(0, 1), width, kernel).swapaxes(0, 1)
    return resampled_rows(across, height, kernel)


def adm_crop(levels: Levels, size: int) -> NDArray[np.float64]:
    """Halve while the short side is at least twice `size`, scale it to `size`, cut out the middle."""
    image = levels.astype(np.float64)
    while min(image.shape[:2]) >= 2 * size:
        image = resampled(image, image.shape[0] // 2, image.shape[1] // 2, box)
    scale = size / min(image.shape[:2])
    H, W = round(image.shape[0] * scale), round(image.shape[1] * scale)
    image = resampled(image, H, W, cubic)
    return image[(H - size) // 2 :, (W - size) // 2 :][:size, :size]


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (16, 16, 16),
        (37, 16, 16),
        (16, 53, 16),
        (31, 45, 16),
        (32, 45, 16),
        (64, 64, 16),
        (67, 129, 16),
        (7, 5, 16),
        (5, 31, 16),
        (100, 33, 8),
        (41, 40, 24),
    ],
)
def test_crop_is_adms(tmp_path: Path, height: int, width: int, size: int) -> None:
    """To the rounding of Pillow's 8-bit filters, on noise, where any other filter is tens of levels off."""
    levels = noise(height, width)
    found = levels_of(saved_image(tmp_path / "image.png", levels), size)
    difference = np.abs(found.astype(float) - adm_crop(levels, size))
    assert difference.max() <= 1


def test_crop_keeps_what_has_the_size(tmp_path: Path) -> None:
    """The middle of the long side, exactly; of an odd rest the smaller half is left of it."""
    levels = noise(16, 21)
    found = levels_of(saved_image(tmp_path / "image.png", levels), 16)
    np.testing.assert_array_equal(found, levels[:, 2:18])


def test_crop_halves_with_means() -> None:
    levels = noise(32, 32, channels=1)
    found = np.asarray(center_crop(Image.fromarray(levels), 16)).astype(float)
    means = levels.reshape(16, 2, 16, 2).mean(axis=(1, 3))
    # Rounded once across and once down.
    assert np.abs(found - means).max() <= 1


def test_levels_go_from_minus_one_to_one(tmp_path: Path) -> None:
    levels = np.zeros((2, 2, 3), dtype=np.uint8)
    levels[0, 1] = (255, 128, 51)
    pixels = read_pixels(saved_image(tmp_path / "image.png", levels), 2, 3)
    assert pixels[:, 0, 0].tolist() == [-1, -1, -1]
    expected = [(level / 255 - 0.5) / 0.5 for level in (255, 128, 51)]
    torch.testing.assert_close(pixels[:, 0, 1], torch.tensor(expected), rtol=0, atol=1e-6)


TURNED: dict[int, Callable[[Levels], Levels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_images_are_seen_upright(tmp_path: Path, orientation: int) -> None:
    """Of a wide image it decides which square is cut out."""
    levels = noise(8, 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = levels_of(saved_image(tmp_path / "image.png", levels, exif=exif), 8)
    np.testing.assert_array_equal(found, TURNED[orientation](levels[:, 6:14]))


def grey(levels: Levels) -> NDArray[np.float64]:
    """ITU-R 601 luma."""
    return np.rint(levels @ np.array([0.299, 0.587, 0.114]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "LA", "RGBA", "PA"])
def test_modes(tmp_path: Path, mode: str, channels: int) -> None:
    """What Pillow can save in a mode is read as the colours it shows."""
    image = Image.fromarray(noise(8, 8)).convert("RGB").convert(mode if mode != "PA" else "P")
    shown = np.asarray(image.convert("RGB"))
    if mode == "PA":
        image = image.convert("PA")
    file = tmp_path / ("image.tif" if mode in ("CMYK", "YCbCr", "PA") else "image.png")
    image.save(file)
    with Image.open(file) as opened:
        assert opened.mode == mode
    found = levels_of(file, 8, channels).astype(float)
    expected = shown.astype(float) if channels == 3 else grey(shown)[..., None]
    assert np.abs(found - expected).max() <= 1


def test_greys_are_repeated(tmp_path: Path) -> None:
    levels = noise(8, 8, channels=1)
    found = levels_of(saved_image(tmp_path / "image.png", levels), 8)
    np.testing.assert_array_equal(found, np.repeat(levels[..., None], 3, axis=-1))


def test_transparency_is_white(tmp_path: Path) -> None:
    """Colours under transparent pixels are not meant to be seen."""
    levels = noise(4, 4, channels=4)
    levels[0, :, 3] = (0, 255, 51, 204)
    found = levels_of(saved_image(tmp_path / "image.png", levels), 4)
    alpha = levels[..., 3:] / 255
    expected = levels[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(found - expected).max() <= 1
    assert found[0, 0].tolist() == [255, 255, 255]


def test_transparent_entry_of_a_palette(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "image.png", transparency=1)
    found = levels_of(tmp_path / "image.png", 2)
    assert found[0].tolist() == [[10, 20, 30], [255, 255, 255]]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits(tmp_path: Path, suffix: str) -> None:
    """All 65,536 levels over the whole range, where a plain conversion would show white."""
    levels = (np.arange(64).reshape(8, 8) * 1040).astype(np.uint16)
    file = tmp_path / f"image.{suffix}"
    if suffix == "pgm":
        file.write_bytes(b"P5 8 8 65535\n" + levels.astype(">u2").tobytes())
    else:
        Image.fromarray(levels).save(file)
    found = levels_of(file, 8, channels=1)[..., 0]
    np.testing.assert_array_equal(found, np.rint(levels / 257))
