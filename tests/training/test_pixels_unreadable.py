"""Files that are no images, or none that can be used: each with its reason."""

import errno
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flowturbo_trt.tests.training.caches import noise, saved_image
from flowturbo_trt.training.pixels import ImageError, read_pixels


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def cut(kind: str) -> bytes:
    whole = encoded(Image.fromarray(noise(60, 60)), kind)
    return whole[: len(whole) // 2]


def flipped_byte() -> bytes:
    whole = bytearray(encoded(Image.fromarray(noise(60, 60)), "PNG"))
    whole[len(whole) // 2] ^= 255
    return bytes(whole)


def of_type(levels: NDArray[Any]) -> bytes:
    return encoded(Image.fromarray(levels), "TIFF")


UNREADABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "text": (lambda: b"no image at all", "is no image that Pillow knows"),
    "nothing": (lambda: b"", "is empty"),
    "cut JPEG": (lambda: cut("JPEG"), "image file is truncated"),
    "cut PNG": (lambda: cut("PNG"), "truncated"),
    "cut WebP": (lambda: cut("WEBP"), "could not create decoder|decode"),
    "cut TIFF": (lambda: cut("TIFF"), "."),
    "altered PNG": (flipped_byte, "broken"),
    "header only": (lambda: cut("PNG")[:40], "."),
    "floats": (lambda: of_type(np.ones((9, 9), dtype=np.float32)), "pixels of float32 from 1 to 1, expected"),
    "wide integers": (lambda: of_type(np.full((9, 9), 70000, dtype=np.int32)), "int32 from 70000 to 70000"),
    "negative": (lambda: of_type(np.full((9, 9), -1, dtype=np.int32)), "int32 from -1 to -1, expected 8 or"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_files_that_are_no_images(tmp_path: Path, kind: str) -> None:
    make, message = UNREADABLE[kind]
    (tmp_path / "image.png").write_bytes(make())
    with pytest.raises(ImageError, match=message) as caught:
        read_pixels(tmp_path / "image.png", 8, 3)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by its header, before its pixels take memory."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    saved_image(tmp_path / "image.png", noise(50, 50))
    with pytest.raises(ImageError, match=r"Image size \(2500 pixels\) exceeds limit of 2000 pixels"):
        read_pixels(tmp_path / "image.png", 8, 3)
    saved_image(tmp_path / "image.png", noise(40, 40))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        assert read_pixels(tmp_path / "image.png", 8, 3).shape == (3, 8, 8)


def test_image_that_grows_beyond_memory(tmp_path: Path) -> None:
    saved_image(tmp_path / "image.png", noise(1, 9000))
    with pytest.raises(ImageError, match=r"9000×1 pixels: too narrow to be scaled to 2304000×256"):
        read_pixels(tmp_path / "image.png", 256, 3)


def test_things_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("nowhere.png")
    for name, message in {
        "folder.png": "is not a regular file",
        "pipe.png": "is not a regular file",
        "link.png": "No such file",
    }.items():
        with pytest.raises(ImageError, match=message):
            read_pixels(tmp_path / name, 8, 3)


def test_what_is_not_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails would leave every image out, and is an error; an image not ours to read is not."""
    saved_image(tmp_path / "image.png", noise(8, 8))

    def fail_with(number: int) -> Callable[..., Any]:
        def fail(*arguments: Any) -> Any:
            raise OSError(number, os.strerror(number))

        return fail

    monkeypatch.setattr(Image, "open", fail_with(errno.EACCES))
    with pytest.raises(ImageError, match="Permission denied"):
        read_pixels(tmp_path / "image.png", 8, 3)
    for number in (errno.EIO, errno.EMFILE, errno.ESTALE):
        monkeypatch.setattr(Image, "open", fail_with(number))
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            read_pixels(tmp_path / "image.png", 8, 3)
        assert not isinstance(caught.value, ImageError)
    with pytest.raises(FileNotFoundError):
        read_pixels(tmp_path / "gone.png", 8, 3)
