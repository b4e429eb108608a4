"""Sets of images: what is read, in which order and memory, and what is refused by name."""

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowturbo_trt.evaluation.quality.images import ImageSetError, open_images, regroup
from flowturbo_trt.generation.options import GenerationOptions, make_plan
from flowturbo_trt.generation.plan import GenerationError
from flowturbo_trt.generation.run import generate_images
from flowturbo_trt.tests.evaluation.quality.extractors import random_images


def read(path: Path, size: int = 4, rows: list[int] | None = None) -> np.ndarray:
    images = open_images(path)
    batches = list(images.batches(size, None if rows is None else np.array(rows)))
    assert all(batch.dtype == np.uint8 for batch in batches)
    assert all(len(batch) == size for batch in batches[:-1])
    assert 0 < len(batches[-1]) <= size
    whole = np.concatenate(batches)
    assert images.size == whole.shape[1:3]
    if rows is None:
        assert len(images) == len(whole)
    return whole


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures in subfolders, with files beside them that are none."""
    for index, image in enumerate(random_images(7, 0, side=5)):
        place = tmp_path / f"class{index % 2}"
        place.mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{index}.png")
    (tmp_path / "class0" / "labels.txt").write_text("0")
    (tmp_path / "class0" / ".hidden.png").write_bytes(b"notes of a file manager")
    return tmp_path


def test_folder_in_order_of_names(folder: Path) -> None:
    expected = random_images(7, 0, side=5)[[0, 2, 4, 6, 1, 3, 5]]
    np.testing.assert_array_equal(read(folder), expected)
    np.testing.assert_array_equal(read(folder, 2, [1, 4, 6]), expected[[1, 4, 6]])
    assert open_images(folder).labels is None


def test_grey_and_opaque_pictures_become_rgb(tmp_path: Path) -> None:
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    Image.fromarray(grey).save(tmp_path / "1.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "2.png")
    Image.fromarray(grey).convert("RGBA").save(tmp_path / "3.png")
    for image in read(tmp_path):
        np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp", ".tif", ".ppm", ".PNG"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (6, 4), (0, 0, 0)).save(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(read(tmp_path), np.zeros((1, 4, 6, 3), np.uint8))


def save_transparent(path: Path) -> None:
    Image.new("RGBA", (5, 5), (9, 9, 9, 254)).save(path)


def save_transparent_palette(path: Path) -> None:
    Image.new("P", (5, 5)).save(path, transparency=0)


def save_deep(path: Path) -> None:
    Image.fromarray(np.full((5, 5), 40_000, np.uint16)).save(path)


def save_smaller(path: Path) -> None:
    Image.new("RGB", (4, 5)).save(path)


def save_truncated(path: Path) -> None:
    Image.fromarray(random_images(1, 1, side=5)[0]).save(path)
    path.write_bytes(path.read_bytes()[:60])


def save_altered(path: Path) -> None:
    Image.fromarray(random_images(1, 1, side=5)[0]).save(path)
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)


def save_text(path: Path) -> None:
    path.write_text("no picture")


@pytest.mark.parametrize(
    ("save", "complaint"),
    [
        (save_transparent, "is transparent in part"),
        (save_transparent_palette, "its pixels are P with transparency"),
        (save_deep, "its pixels are I;16"),
        (save_smaller, r"is 5×4, 0.png 5×5"),
        (save_truncated, "cannot be decoded"),
        (save_altered, "cannot be decoded"),
        (save_text, "cannot be decoded"),
    ],
)
def test_unreadable_picture_is_named(folder: Path, save: object, complaint: str) -> None:
    assert callable(save)
    save(folder / "class1" / "9.png")
    with pytest.raises(ImageSetError, match=rf"class1/9\.png: .*{complaint}"):
        read(folder)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match="holds no images"):
        open_images(tmp_path)
    with pytest.raises(ImageSetError, match="no such file or folder"):
        open_images(tmp_path / "nowhere")
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(ImageSetError, match=r"x\.png: is a single file"):
        open_images(tmp_path / "x.png")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: object) -> None:
    """ADM's sample files: arr_0 images, arr_1 classes."""
    assert callable(save)
    images = random_images(11, 2)
    save(tmp_path / "x.npz", images, np.arange(11))
    np.testing.assert_array_equal(read(tmp_path / "x.npz"), images)
    np.testing.assert_array_equal(read(tmp_path / "x.npz", 2, [0, 7, 10]), images[[0, 7, 10]])
    labels = open_images(tmp_path / "x.npz").labels
    assert labels is not None
    np.testing.assert_array_equal(labels, np.arange(11))


def test_npy_and_one_channel(tmp_path: Path) -> None:
    images = random_images(5, 3)
    np.save(tmp_path / "x.npy", images)
    np.testing.assert_array_equal(read(tmp_path / "x.npy"), images)
    np.savez(tmp_path / "grey.npz", arr_0=images[..., :1], arr_1=np.arange(4))
    np.testing.assert_array_equal(read(tmp_path / "grey.npz"), np.repeat(images[..., :1], 3, axis=3))
    # Another number of something than of images is no list of labels.
    assert open_images(tmp_path / "grey.npz").labels is None


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_arrays_are_not_read_whole(tmp_path: Path, name: str) -> None:
    """48 MB of images pass in blocks of some megabytes."""
    images = np.zeros((1024, 128, 128, 3), np.uint8)
    if name == "x.npz":
        np.savez_compressed(tmp_path / name, images)
    else:
        np.save(tmp_path / name, images)
    size = images.nbytes
    del images
    tracemalloc.start()
    try:
        count = sum(len(batch) for batch in open_images(tmp_path / name).batches(16))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 1024
    assert peak < size / 2


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.array([{}, 1], dtype=object), "Python objects, which are refused"),
        (np.zeros((2, 4, 4, 3)), r"holds float64 of shape \(2, 4, 4, 3\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"expected images \(N,H,W,3\)"),
        (np.zeros((2, 4, 4), np.uint8), r"expected images \(N,H,W,3\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), "holds no images"),
        (np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8)), "not one after another"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray, complaint: str) -> None:
    for path in (tmp_path / "x.npz", tmp_path / "x.npy"):
        np.savez(path, array) if path.suffix == ".npz" else np.save(path, array)
        with pytest.raises(ImageSetError, match=complaint):
            open_images(path)


def test_damaged_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", random_images(50, 4, side=8))
    content = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageSetError, match=r"cut\.npz: cannot be read"):
        open_images(tmp_path / "cut.npz")
    altered = bytearray(content)
    altered[len(content) // 2] ^= 0xFF
    (tmp_path / "altered.npz").write_bytes(altered)
    with pytest.raises(ImageSetError, match=r"altered\.npz: cannot be read.*CRC"):
        read(tmp_path / "altered.npz")
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("arr_0.npy", zipfile.ZipFile(tmp_path / "good.npz").read("arr_0.npy")[:-9])
    with pytest.raises(ImageSetError, match=r"short\.npz: .*truncated"):
        open_images(tmp_path / "short.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ImageSetError, match=r"has no arr_0.*it holds x"):
        open_images(tmp_path / "other.npz")


@pytest.mark.parametrize("format", ["npz", "png"])
def test_generated_images(tiny_bundle: Path, tmp_path: Path, format: str) -> None:
    """A folder of `generate` is read by its plan, which knows the labels, and never by halves."""
    out = tmp_path / "out"
    options = GenerationOptions(num=7, schedule="H1", format=format, shard_size=3)
    plan = make_plan(tiny_bundle, options)
    generate_images(plan, tiny_bundle, out)
    if format == "npz":
        expected = np.concatenate([np.load(shard)["arr_0"] for shard in sorted(out.rglob("*.npz"))])
    else:
        expected = np.stack([np.asarray(Image.open(file)) for file in sorted(out.rglob("*.png"))])
    assert len(expected) == 7
    np.testing.assert_array_equal(read(out), expected)
    np.testing.assert_array_equal(read(out, 2, [0, 3, 6]), expected[[0, 3, 6]])
    labels = open_images(out).labels
    assert labels is not None
    assert labels.tolist() == [plan.label_of(index) for index in range(7)]
    max(out.rglob(f"*.{format}")).unlink()
    with pytest.raises(GenerationError, match="of 7 images are missing"):
        open_images(out)


@pytest.mark.parametrize("block", [1, 3, 10])
@pytest.mark.parametrize("size", [1, 4, 20])
def test_regroup(block: int, size: int) -> None:
    images = random_images(10, 6)
    blocks = [images[start : start + block] for start in range(0, 10, block)]
    for rows in (None, [0], [9], [2, 3, 7], list(range(10))):
        chosen = images if rows is None else images[rows]
        batches = list(regroup(blocks, size, None if rows is None else np.array(rows)))
        np.testing.assert_array_equal(np.concatenate(batches), chosen)
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
