"""The contract of feature extractors, broken in every way, for ONNX and for torch."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor, nn

from flowturbo_trt.evaluation.quality.extractor import Extractor, ExtractorError, open_extractor
from flowturbo_trt.evaluation.quality.torch_network import TorchNetwork
from flowturbo_trt.tests.evaluation.quality.extractors import (
    features_of,
    random_images,
    spatial_of,
    write_extractor,
)


def test_onnx_extractor(tmp_path: Path) -> None:
    """Any number of images of any size; the hash is that of the file."""
    extractor = open_extractor(write_extractor(tmp_path / "x.onnx"), threads=1)
    assert extractor.size is None
    images = random_images(5, 0)
    outputs = extractor(images)
    np.testing.assert_allclose(outputs.features, features_of(images), rtol=1e-6)
    assert outputs.spatial is not None
    np.testing.assert_allclose(outputs.spatial, spatial_of(images), rtol=1e-5)
    assert outputs.probabilities is not None
    np.testing.assert_allclose(outputs.probabilities.sum(axis=1), 1, rtol=1e-6)
    assert all(values.dtype == np.float32 for values in vars(outputs).values())
    assert extractor(images[:1]).features.shape == (1, 12)
    assert len(extractor.sha256) == 64
    other = open_extractor(write_extractor(tmp_path / "y.onnx", scale=1), threads=1)
    assert other.sha256 != extractor.sha256


def test_dimensions_are_tried_on_two_images(tmp_path: Path) -> None:
    extractor = open_extractor(write_extractor(tmp_path / "x.onnx"), threads=1)
    assert extractor.dimensions(random_images(1, 0)) == {"features": 12, "spatial": 6, "probabilities": 3}
    with pytest.raises(ExtractorError, match="its features have 27 values, 12 before"):
        extractor(random_images(2, 0, side=3))


def test_outputs_beside_features_are_optional(tmp_path: Path) -> None:
    extractor = open_extractor(write_extractor(tmp_path / "x.onnx", outputs=["features"]), threads=1)
    assert extractor.dimensions(random_images(2, 0)) == {"features": 12}


@pytest.mark.parametrize(
    ("faults", "complaint"),
    [
        ({"dtype": TensorProto.FLOAT}, r"takes image tensor\(float\).*in uint8"),
        ({"shape": ("batch", "height", "width", 4)}, r"expected `image` \(N,H,W,3\)"),
        ({"shape": ("batch", "height", 3)}, r"expected `image` \(N,H,W,3\)"),
        ({"shape": (8, "height", "width", 3)}, "takes 8 images at a time and no other"),
        ({"shape": ("batch", 2, "width", 3)}, "both fixed, or both symbolic"),
        ({"name": "pixels"}, "expected one input `image`"),
        ({"outputs": ["spatial"]}, "gives spatial; expected an output `features`"),
    ],
)
def test_onnx_interface_is_checked_when_opened(
    tmp_path: Path, faults: dict[str, Any], complaint: str
) -> None:
    path = write_extractor(tmp_path / "x.onnx", **faults)
    with pytest.raises(ExtractorError, match=rf"x\.onnx: .*{complaint}"):
        open_extractor(path, threads=1)


def test_output_of_another_rank(tmp_path: Path) -> None:
    path = write_extractor(tmp_path / "x.onnx", outputs=["unflattened"])
    model = onnx.load(path)
    names = {"features": "flattened", "unflattened": "features"}
    for node in model.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    model.graph.output[0].name = "features"
    onnx.save(model, path)
    with pytest.raises(ExtractorError, match=r"its features are .*expected floats \(N,K\)"):
        open_extractor(path, threads=1)


def test_size_other_than_the_only_one(tmp_path: Path) -> None:
    path = write_extractor(tmp_path / "x.onnx", shape=("batch", 2, 2, 3))
    extractor = open_extractor(path, threads=1)
    assert extractor.size == (2, 2)
    with pytest.raises(ExtractorError, match="takes images of 2×2 only, these are 3×3"):
        extractor(random_images(2, 0, side=3))


def test_values_that_are_none(tmp_path: Path) -> None:
    broken = open_extractor(write_extractor(tmp_path / "x.onnx", scale=0), threads=1)
    with pytest.raises(ExtractorError, match="features hold NaN or infinite"):
        broken(random_images(2, 0))
    logits = open_extractor(write_extractor(tmp_path / "y.onnx", softmax=False), threads=1)
    with pytest.raises(ExtractorError, match=r"probabilities reach .* expected softmax within"):
        logits(random_images(2, 0))


class Scripted(nn.Module):
    """Pixels as features and their mean colour as probabilities."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        pixels = image.float() / 255
        return {"features": pixels.flatten(1), "probabilities": pixels.mean(dim=(1, 2)).softmax(1)}


class Alone(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return (image.float() / 255).flatten(1)


class Tupled(nn.Module):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return image.float(), image.float()


def script(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.jit.script(module).save(str(path))
    return path


def test_torchscript(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    images = random_images(21, 1)
    extractor = open_extractor(script(Scripted(), tmp_path / "x.pt"), threads=1)
    outputs = extractor(images)
    np.testing.assert_allclose(outputs.features, features_of(images), rtol=1e-6)
    assert extractor.dimensions(images) == {"features": 12, "probabilities": 3}
    alone = open_extractor(script(Alone(), tmp_path / "y.ts"), threads=1)
    np.testing.assert_allclose(alone(images).features, features_of(images), rtol=1e-6)
    # Images straight from a file's bytes may not be written to.
    images.flags.writeable = False
    alone(images)
    assert not recwarn.list


def test_torchscript_of_another_shape(tmp_path: Path) -> None:
    extractor = open_extractor(script(Tupled(), tmp_path / "x.pt"), threads=1)
    with pytest.raises(ExtractorError, match="gives a tuple; expected a tensor of features"):
        extractor(random_images(2, 0))


class Network:
    """Gives whatever it is told to."""

    size = None
    recognises_labels = True

    def __init__(self, **outputs: NDArray[Any]) -> None:
        self._outputs = outputs

    def __call__(self, images: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        return self._outputs


@pytest.mark.parametrize(
    ("features", "complaint"),
    [
        (np.zeros((2, 3, 1), np.float32), r"float32 \(2, 3, 1\) for 2 images"),
        (np.zeros((1, 3), np.float32), r"float32 \(1, 3\) for 2 images"),
        (np.zeros((2, 3), np.int64), r"int64 \(2, 3\) for 2 images"),
    ],
)
def test_outputs_are_checked_at_each_call(tmp_path: Path, features: NDArray[Any], complaint: str) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(ExtractorError, match=complaint):
        Extractor(tmp_path / "x.bin", Network(features=features))(random_images(2, 0))


def test_a_fixed_batch_shows_on_a_single_image(tmp_path: Path) -> None:
    """It is tried on two, however few there are."""
    (tmp_path / "x.bin").write_bytes(b"x")
    extractor = Extractor(tmp_path / "x.bin", Network(features=np.zeros((1, 3), np.float32)))
    with pytest.raises(ExtractorError, match="for 2 images"):
        extractor.dimensions(random_images(1, 0))


def test_module_that_fails(tmp_path: Path) -> None:
    def fail(images: Tensor) -> Tensor:
        raise RuntimeError("out of\nideas")

    network = TorchNetwork(tmp_path / "x.pt", fail, "cpu", recognises_labels=True)
    with pytest.raises(ExtractorError, match=r"failed on images \(2, 2, 2, 3\) \(out of ideas\)"):
        network(random_images(2, 0))


@pytest.mark.parametrize("name", ["x.onnx", "x.pt"])
def test_damaged_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(os.urandom(64))
    with pytest.raises(ExtractorError, match=rf"x\{name[1:]}: .*(cannot load it|is no TorchScript)"):
        open_extractor(tmp_path / name)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ExtractorError, match="no such file"):
        open_extractor(tmp_path / "x.onnx")
    (tmp_path / "x.h5").touch()
    with pytest.raises(ExtractorError, match=r"expected a file ending in \.onnx, \.pt"):
        open_extractor(tmp_path / "x.h5")
    for device in ("tpu", "cuda:x", "cpu:0", "cuda:"):
        with pytest.raises(ExtractorError, match="expected cpu, cuda or cuda:N"):
            open_extractor(write_extractor(tmp_path / "x.onnx"), device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExtractorError, match="torch sees 0 GPUs"):
        open_extractor(script(Alone(), tmp_path / "x.pt"), "cuda")
