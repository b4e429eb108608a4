"""Files and lists that commands read and write."""

from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from flowturbo_trt.commands.files import (
    FileError,
    IntegerList,
    check_outputs,
    count_up,
    grid,
    load_array,
    save_array,
    save_arrays,
    write_images,
)


def integers(value: Any) -> list[int]:
    return IntegerList().convert(value, None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", [3]),
        ("0-9", list(range(10))),
        ("1,2,5-9", [1, 2, 5, 6, 7, 8, 9]),
        ("7,7,7", [7, 7, 7]),
        ("4-4", [4]),
        ("3, 1-2", [3, 1, 2]),
        ("18446744073709551615", [2**64 - 1]),
        # As a configuration file gives them.
        (5, [5]),
        ([3, 1], [3, 1]),
        (["0-2", 7], [0, 1, 2, 7]),
    ],
)
def test_integers(text: Any, expected: list[int]) -> None:
    assert integers(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", ",", "1,", "a", "1-", "-1", "-", "1--2", "1.5", "1-2-3", "0x1", "5-1", "1 2", 1.5, True, [[1]]],
)
def test_no_integers(text: Any) -> None:
    with pytest.raises(click.BadParameter, match="is not a list of integers like 1,2,5-9"):
        integers(text)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.uint64])
def test_integers_of_a_file(tmp_path: Path, dtype: Any) -> None:
    np.save(tmp_path / "y.npy", np.array([4, 0, 2], dtype=dtype))
    found = integers(str(tmp_path / "y.npy"))
    assert found == [4, 0, 2]
    assert {type(number) for number in found} == {int}


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2), int), np.zeros(3), np.array(3), np.array(["a"]), np.array([], int)]
)
def test_file_of_something_else(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "y.npy", array)
    with pytest.raises(click.BadParameter, match=r"y\.npy holds .* of shape .*, expected a list of integers"):
        integers(str(tmp_path / "y.npy"))


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY\x01\x00", b"no array"])
def test_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "y.npy").write_bytes(content)
    with pytest.raises(click.BadParameter, match=r"y\.npy: cannot be read as a \.npy file"):
        integers(str(tmp_path / "y.npy"))


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FileError, match="cannot be read"):
        load_array(tmp_path / "y.npy")


def test_several_arrays_are_none(tmp_path: Path) -> None:
    save_arrays(tmp_path / "z.npy", {"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(FileError, match="holds several arrays"):
        load_array(tmp_path / "z.npy")


@pytest.mark.parametrize(
    ("seeds", "expected"), [([0], [0, 1, 2]), ([40], [40, 41, 42]), ([3, 1, 2], [3, 1, 2]), ([1, 2], [1, 2])]
)
def test_single_seed_counts_up(seeds: list[int], expected: list[int]) -> None:
    assert count_up(seeds, 3) == expected


def numbered(n: int) -> Any:
    """Images (n,2,3,3) of which each pixel is different."""
    return np.arange(1, n * 18 + 1, dtype=np.uint8).reshape(n, 2, 3, 3)


def test_grid() -> None:
    images = numbered(5)
    laid = grid(images, 2)
    assert laid.shape == (3 * 2, 2 * 3, 3)
    np.testing.assert_array_equal(laid[:2, :3], images[0])
    np.testing.assert_array_equal(laid[:2, 3:], images[1])
    np.testing.assert_array_equal(laid[2:4, :3], images[2])
    np.testing.assert_array_equal(laid[4:, :3], images[4])
    np.testing.assert_array_equal(laid[4:, 3:], 0)


@pytest.mark.parametrize(
    ("n", "columns", "size"),
    [(1, None, (3, 2)), (4, None, (6, 4)), (5, None, (9, 4)), (5, 5, (15, 2)), (5, 1, (3, 10))],
)
def test_picture(tmp_path: Path, n: int, columns: int | None, size: tuple[int, int]) -> None:
    """A square unless columns are given; PNG loses nothing."""
    write_images(numbered(n), tmp_path / "x.png", columns)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == size
        np.testing.assert_array_equal(np.asarray(picture), grid(numbered(n), size[0] // 3))


def test_images_as_an_array(tmp_path: Path) -> None:
    write_images(numbered(5), tmp_path / "x.npy", None)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), numbered(5))


def test_names_stay_as_given(tmp_path: Path) -> None:
    save_array(tmp_path / "latents", np.zeros(2))
    save_arrays(tmp_path / "trajectory.bin", {"a": np.ones(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latents", "trajectory.bin"]


def test_outputs_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "older.png").write_bytes(b"")
    check_outputs([tmp_path / "older.png", tmp_path / "x.npz"], tmp_path / "older.png")
    check_outputs([Path("x.npy")], None)


@pytest.mark.parametrize("name", ["x.jpg", "x", "x.PNG", "png"])
def test_pictures_of_another_kind(tmp_path: Path, name: str) -> None:
    with pytest.raises(click.UsageError, match=r"expected a name ending in \.png or \.npy"):
        check_outputs([tmp_path / name], tmp_path / name)


def test_no_output_or_one_twice(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="nothing to write; give --out, --output-latents or --traj"):
        check_outputs([], None)
    with pytest.raises(click.UsageError, match=r"two outputs would be written to .*x\.npy"):
        check_outputs([tmp_path / "x.npy", tmp_path / "y.npy", tmp_path / "x.npy"], tmp_path / "x.npy")


@pytest.mark.parametrize("where", ["missing/x.png", "file/x.png", "folder.png"])
def test_outputs_that_cannot_be_written(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(FileError, match="cannot be written; give a file in a folder you may write to"):
        check_outputs([tmp_path / where], tmp_path / where)
