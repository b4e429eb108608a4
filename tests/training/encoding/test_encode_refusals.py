"""What cannot be encoded: other caches, places, options, encoders, images."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowturbo_trt.models.autoencoder import Encoder
from flowturbo_trt.models.checkpoints import Checkpoint
from flowturbo_trt.tests.training.caches import autoencoder, encoded, files_of
from flowturbo_trt.training.encode import EncodeOptions
from flowturbo_trt.training.image_encoder import EncodeError
from flowturbo_trt.training.pixels import read_pixels

Made = tuple[Encoder, Checkpoint]


def other_encoder(folder: Path) -> Made:
    encoder, checkpoint = autoencoder(folder)
    encoder.quant_conv.bias.data[0] += 1
    return encoder, checkpoint


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 32}, "size was 16, now 32"),
        ({"flip": True}, "flip was False, now True"),
        ({"dtype": "fp16"}, "dtype was fp32, now fp16"),
        ({"shard_size": 5}, "shard_size was 4, now 5"),
        ({"encoder": "other"}, "encoder weights was [0-9a-f]{12}, now [0-9a-f]{12}"),
        ({"scale": 0.5}, "scaling_factor was 0.3, now 0.5"),
        ({"shift": 0.5}, "shift_factor was 0.0, now 0.5"),
        ({"images": "one more"}, "number of images was 10, now 11"),
        ({"images": "renamed"}, "list of images was [0-9a-f]{12}, now [0-9a-f]{12}"),
        ({"images": "longer"}, "list of images was [0-9a-f]{12}, now [0-9a-f]{12}"),
        ({"images": "class"}, r"classes was \('ant', 'bee', 'cat'\), now \('ant', 'bee', 'dog'\)"),
    ],
)
def test_cache_of_something_else(
    pictures: Path,
    made: Made,
    out: Path,
    tmp_path: Path,
    changed: dict[str, Any],
    message: str,
    finished: bool,
) -> None:
    encoded(pictures, made, out)
    if not finished:
        (out / "cache.json").rename(out / "encoding.json")
    before = files_of(out)
    given = dict(changed)
    images = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    change_images(images, given.pop("images", ""))
    encoder = other_encoder(tmp_path / "vae") if given.pop("encoder", None) else autoencoder(tmp_path / "vae")
    encoder[0].scaling_factor = given.pop("scale", 0.3)
    encoder[0].shift_factor = given.pop("shift", 0.0)
    with pytest.raises(EncodeError, match=f"cache: holds another encoding: {message}; use the same images"):
        encoded(images, encoder, out, **given)
    assert files_of(out) == before


def change_images(root: Path, how: str) -> None:
    if how == "one more":
        shutil.copy(root / "ant" / "0.png", root / "ant" / "7.png")
    elif how == "renamed":
        (root / "ant" / "0.png").rename(root / "ant" / "00.png")
    elif how == "longer":
        with (root / "ant" / "0.png").open("ab") as file:
            file.write(b"x")
    elif how == "class":
        (root / "cat").rename(root / "dog")


def test_strict(pictures: Path, made: Made, out: Path) -> None:
    """Found in this run or left out by an earlier one."""
    for _ in range(2):
        with pytest.raises(EncodeError, match=r"bee/1\.png: image file is truncated.*without --strict"):
            encoded(pictures, made, out, strict=True)
        assert not (out / "cache.json").exists()
        encoded(pictures, made, out)
        (out / "cache.json").rename(out / "encoding.json")


def test_no_image_can_be_read(made: Made, out: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    for number in range(5):
        (tmp_path / "images" / "a" / f"{number}.png").write_text("no image")
    with pytest.raises(EncodeError, match=r"none of 5 images can be read; see .*skipped\.jsonl"):
        encoded(tmp_path / "images", made, out)
    assert len((out / "skipped.jsonl").read_text().splitlines()) == 5
    assert not (out / "cache.json").exists()


@pytest.mark.parametrize("obstacle", ["a file", "below a file", "other files", "among the images", "images"])
def test_places_that_are_refused(pictures: Path, made: Made, tmp_path: Path, obstacle: str) -> None:
    out = tmp_path / "out"
    messages = {
        "a file": r"out: cannot be written \(File exists\); give a folder you may write to",
        "below a file": r"out/below: cannot be written \(Not a directory\); give a folder you may write to",
        "other files": r"out: holds files that are no latent cache; give a new folder",
        "among the images": r"latents: lies among the images of",
        "images": r": lies among the images of",
    }
    if obstacle == "a file":
        out.write_text("mine")
    elif obstacle == "below a file":
        out.write_text("mine")
        out = out / "below"
    elif obstacle == "other files":
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    elif obstacle == "among the images":
        out = pictures / "ant" / "latents"
    else:
        out = pictures
    with pytest.raises(EncodeError, match=messages[obstacle]):
        encoded(pictures, made, out)
    mine = tmp_path / "out" / "thesis.txt" if obstacle == "other files" else tmp_path / "out"
    assert not mine.is_file() or mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("size", 0, "size is 0, expected at least 1"),
        ("batch", 0, "batch is 0, expected at least 1"),
        ("shard_size", -1, "shard_size is -1, expected at least 1"),
        ("workers", 0, "workers is 0, expected at least 1"),
        ("dtype", "bf16", "dtype is 'bf16', expected fp16 or fp32"),
    ],
)
def test_options_out_of_range(option: str, value: Any, message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        EncodeOptions(**{option: value})


def test_encoders_that_do_not_fit(pictures: Path, made: Made, out: Path, tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match="size is 17, expected a multiple of the encoder's 2"):
        encoded(pictures, made, out, size=17)
    with pytest.raises(EncodeError, match=r"safetensors: reads 4 channels, expected 1 \(grey\) or 3 \(RGB\)"):
        encoded(pictures, autoencoder(tmp_path / "vae", channels=4), out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("bias", "dtype", "message"),
    [
        (1e6, "fp16", r"ant/0\.png: its latent is not finite in fp16; use fp32"),
        (float("nan"), "fp32", r"ant/0\.png: its latent is not finite in fp32; the encoder is unusable"),
    ],
)
def test_latents_that_are_not_finite(
    pictures: Path, out: Path, tmp_path: Path, bias: float, dtype: str, message: str
) -> None:
    encoder, checkpoint = autoencoder(tmp_path / "vae")
    encoder.quant_conv.bias.data[0] = bias
    with pytest.raises(EncodeError, match=message):
        encoded(pictures, (encoder, checkpoint), out, dtype=dtype)
    if dtype == "fp16":
        assert encoded(pictures, (encoder, checkpoint), tmp_path / "fp32").cache.rows == 8


def test_the_image_at_fault_is_named(
    pictures: Path, made: Made, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is not in the first batch, nor the first of its own."""

    def read(path: Path, size: int, channels: int) -> Tensor:
        return read_pixels(path, size, channels) * (float("nan") if path.match("bee/0.png") else 1)

    monkeypatch.setattr("flowturbo_trt.training.image_encoder.read_pixels", read)
    with pytest.raises(EncodeError, match=r"bee/0\.png: its latent is not finite"):
        encoded(pictures, made, out, batch=2)


def test_out_of_memory(pictures: Path, made: Made, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Encoder, "forward", fail)
    with pytest.raises(
        EncodeError, match="cpu: out of memory for 3 images of 16 pixels; use a smaller batch"
    ):
        encoded(pictures, made, out)
