"""The FID Inception against what is known of it: its file's names and shapes, its blocks, its resizing."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowturbo_trt.evaluation.quality.extractor import ExtractorError, open_extractor
from flowturbo_trt.evaluation.quality.inception import (
    Block,
    InceptionV3,
    load_inception,
    resize_like_tensorflow,
)
from flowturbo_trt.models.checkpoints import CheckpointError
from flowturbo_trt.tests.evaluation.quality.extractors import random_images

# Convolutions by name, as inputs outputs height width.
STEM = "1a_3x3 3 32 3 3, 2a_3x3 32 32 3 3, 2b_3x3 32 64 3 3, 3b_1x1 64 80 1 1, 4a_3x3 80 192 3 3"
GRID_35 = (
    "1x1 I 64 1 1, 5x5_1 I 48 1 1, 5x5_2 48 64 5 5, 3x3dbl_1 I 64 1 1, 3x3dbl_2 64 96 3 3, "
    "3x3dbl_3 96 96 3 3, _pool I P 1 1"
)
REDUCE_35 = "3x3 I 384 3 3, 3x3dbl_1 I 64 1 1, 3x3dbl_2 64 96 3 3, 3x3dbl_3 96 96 3 3"
GRID_17 = (
    "1x1 768 192 1 1, 7x7_1 768 P 1 1, 7x7_2 P P 1 7, 7x7_3 P 192 7 1, 7x7dbl_1 768 P 1 1, "
    "7x7dbl_2 P P 7 1, 7x7dbl_3 P P 1 7, 7x7dbl_4 P P 7 1, 7x7dbl_5 P 192 1 7, _pool 768 192 1 1"
)
REDUCE_17 = (
    "3x3_1 768 192 1 1, 3x3_2 192 320 3 3, 7x7x3_1 768 192 1 1, 7x7x3_2 192 192 1 7, "
    "7x7x3_3 192 192 7 1, 7x7x3_4 192 192 3 3"
)
GRID_8 = (
    "1x1 I 320 1 1, 3x3_1 I 384 1 1, 3x3_2a 384 384 1 3, 3x3_2b 384 384 3 1, 3x3dbl_1 I 448 1 1, "
    "3x3dbl_2 448 384 3 3, 3x3dbl_3a 384 384 1 3, 3x3dbl_3b 384 384 3 1, _pool I 192 1 1"
)
# Block → its convolutions, the channels it is given (I) and its own width (P).
BLOCKS = {
    "5b": (GRID_35, 192, 32),
    "5c": (GRID_35, 256, 64),
    "5d": (GRID_35, 288, 64),
    "6a": (REDUCE_35, 288, 0),
    "6b": (GRID_17, 768, 128),
    "6c": (GRID_17, 768, 160),
    "6d": (GRID_17, 768, 160),
    "6e": (GRID_17, 768, 192),
    "7a": (REDUCE_17, 768, 0),
    "7b": (GRID_8, 1280, 0),
    "7c": (GRID_8, 2048, 0),
}
# torchvision's Inception v3 without its auxiliary head has 23,834,568; eight classes more.
PARAMETERS = 23_834_568 + 8 * 2049


def expected_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}

    def add(name: str, inputs: str, outputs: str, *kernel: str) -> None:
        shapes[f"{name}.conv.weight"] = (int(outputs), int(inputs), *map(int, kernel))
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (int(outputs),)

    for line in STEM.split(", "):
        name, *numbers = line.split()
        add(f"Conv2d_{name}", *numbers)
    for block, (text, inputs, width) in BLOCKS.items():
        for line in text.split(", "):
            name, *numbers = line.split()
            values = [{"I": str(inputs), "P": str(width)}.get(number, number) for number in numbers]
            add(f"Mixed_{block}.branch{name}", *values)
    return shapes


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    """The network with random weights, and normalisations that change something."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        network = InceptionV3()
    network = network.to_empty(device="cpu").eval().requires_grad_(False)
    for name, value in network.state_dict().items():
        if name.endswith("conv.weight"):
            value.normal_(0, math.sqrt(2 / value[0].numel()), generator=generator)
        elif name.endswith(("bn.weight", "running_var")):
            value.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith(("bn.bias", "running_mean")):
            value.normal_(0, 0.1, generator=generator)
        elif name.startswith("fc"):
            value.normal_(0, 0.05, generator=generator)
    return network


@pytest.fixture(scope="module")
def weights(network: InceptionV3) -> dict[str, Tensor]:
    """What the published file holds: no counters of batches."""
    return {name: v for name, v in network.state_dict().items() if not name.endswith("num_batches_tracked")}


def test_names_and_shapes(network: InceptionV3, weights: dict[str, Tensor]) -> None:
    assert {name: tuple(value.shape) for name, value in weights.items()} == expected_shapes()
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS == 23_850_960


def slow_resize(image: np.ndarray, side: int) -> np.ndarray:
    """TensorFlow's formula, pixel by pixel: in_y = y · H/side, between ⌊in_y⌋ and the next row."""
    H, W = image.shape[1:]
    out = np.zeros((len(image), side, side))
    for y in range(side):
        for x in range(side):
            at_y, at_x = y * H / side, x * W / side
            top, left = int(at_y), int(at_x)
            bottom, right = min(top + 1, H - 1), min(left + 1, W - 1)
            dy, dx = at_y - top, at_x - left
            upper = image[:, top, left] * (1 - dx) + image[:, top, right] * dx
            lower = image[:, bottom, left] * (1 - dx) + image[:, bottom, right] * dx
            out[:, y, x] = upper * (1 - dy) + lower * dy
    return out


@pytest.mark.parametrize(("height", "width", "side"), [(8, 8, 30), (31, 5, 12), (12, 12, 12), (1, 3, 4)])
def test_resize(height: int, width: int, side: int) -> None:
    image = np.random.default_rng(0).uniform(0, 255, (2, height, width))
    found = resize_like_tensorflow(torch.from_numpy(image)[None].float(), side)
    np.testing.assert_allclose(found[0].numpy(), slow_resize(image, side), atol=2e-3)


def test_resize_is_not_torchs() -> None:
    """The first pixel is the first pixel: no half-pixel centres."""
    image = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert resize_like_tensorflow(image, 8)[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]


def manual(network: InceptionV3, name: str, x: Tensor) -> Tensor:
    """A block written out with the convolutions' names."""
    block = getattr(network, f"Mixed_{name}")

    def run(*names: str, of: Tensor = x) -> Tensor:
        for each in names:
            of = getattr(block, f"branch{each}")(of)
        return of

    def mean(values: Tensor) -> Tensor:
        sums = F.avg_pool2d(values, 3, 1, 1, divisor_override=1)
        counts = F.avg_pool2d(torch.ones_like(values), 3, 1, 1, divisor_override=1)
        return sums / counts

    pooled = F.max_pool2d(x, 3, 2)
    match name[0], name[1]:
        case "5", _:
            parts = [run("1x1"), run("5x5_1", "5x5_2"), run("3x3dbl_1", "3x3dbl_2", "3x3dbl_3")]
            return torch.cat([*parts, run("_pool", of=mean(x))], 1)
        case "6", "a":
            return torch.cat([run("3x3"), run("3x3dbl_1", "3x3dbl_2", "3x3dbl_3"), pooled], 1)
        case "6", _:
            double = run("7x7dbl_1", "7x7dbl_2", "7x7dbl_3", "7x7dbl_4", "7x7dbl_5")
            return torch.cat(
                [run("1x1"), run("7x7_1", "7x7_2", "7x7_3"), double, run("_pool", of=mean(x))], 1
            )
        case "7", "a":
            other = run("7x7x3_1", "7x7x3_2", "7x7x3_3", "7x7x3_4")
            return torch.cat([run("3x3_1", "3x3_2"), other, pooled], 1)
        case _:
            single, double = run("3x3_1"), run("3x3dbl_1", "3x3dbl_2")
            last = mean(x) if name == "7b" else F.max_pool2d(x, 3, 1, 1)
            pairs = [run("3x3_2a", of=single), run("3x3_2b", of=single)]
            pairs += [run("3x3dbl_3a", of=double), run("3x3dbl_3b", of=double)]
            return torch.cat([run("1x1"), *pairs, run("_pool", of=last)], 1)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(network: InceptionV3, name: str) -> None:
    """Branches in order, means that leave the padding out, and one maximum, in the last block."""
    block = getattr(network, f"Mixed_{name}")
    assert isinstance(block, Block)
    x = torch.rand(1, BLOCKS[name][1], 5, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(block(x), manual(network, name, x))


def test_convolution_is_normalised_and_cut_at_zero(network: InceptionV3) -> None:
    layer = network.Conv2d_1a_3x3
    x = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(2))
    y = F.conv2d(x, layer.conv.weight, stride=2)
    parts = [v[None, :, None, None] for v in (layer.bn.running_mean, layer.bn.running_var)]
    scale, shift = (v[None, :, None, None] for v in (layer.bn.weight, layer.bn.bias))
    y = (y - parts[0]) / torch.sqrt(parts[1] + 1e-3) * scale + shift
    torch.testing.assert_close(layer(x), y.clamp(min=0))


def test_outputs(network: InceptionV3) -> None:
    """Spatial: seven channels of Mixed_6d on 17×17, channels last. Probabilities: without the bias."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name], seen[f"{name} input"] = output, inputs[0]

        return network.get_submodule(name).register_forward_hook(hook)

    hooks = [keep(name) for name in ("Conv2d_1a_3x3", "Mixed_6d", "Mixed_7c")]
    images = torch.from_numpy(random_images(2, 3, side=20))
    outputs = network(images)
    for hook in hooks:
        hook.remove()  # type: ignore[attr-defined]
    scaled = (resize_like_tensorflow(images.permute(0, 3, 1, 2).float(), 299) - 128) / 128
    torch.testing.assert_close(seen["Conv2d_1a_3x3 input"], scaled)
    assert seen["Mixed_6d"].shape == (2, 768, 17, 17)
    torch.testing.assert_close(
        outputs["spatial"].view(2, 17, 17, 7), seen["Mixed_6d"][:, :7].permute(0, 2, 3, 1)
    )
    assert seen["Mixed_7c"].shape == (2, 2048, 8, 8)
    torch.testing.assert_close(outputs["features"], seen["Mixed_7c"].flatten(2).mean(2))
    logits = outputs["features"] @ network.fc.weight.T
    torch.testing.assert_close(outputs["probabilities"], logits.softmax(1))


def test_file(network: InceptionV3, weights: dict[str, Tensor], tmp_path: Path) -> None:
    """With and without counters of batches; opened as an extractor, the same network."""
    torch.save(weights, tmp_path / "bare.pth")
    extractor = open_extractor(tmp_path / "bare.pth", threads=1)
    assert not extractor.recognises_labels
    assert extractor.size is None
    images = random_images(2, 4, side=10)
    expected = network(torch.from_numpy(images))
    assert extractor.dimensions(images) == {"features": 2048, "spatial": 2023, "probabilities": 1008}
    np.testing.assert_allclose(extractor(images).features, expected["features"], rtol=1e-4, atol=1e-4)
    torch.save(network.state_dict(), tmp_path / "counted.pth")
    counted = load_inception(tmp_path / "counted.pth").state_dict()
    assert all(torch.equal(counted[name], value) for name, value in weights.items())


def test_other_weights(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    few = {name: value for name, value in weights.items() if name.startswith(("Conv2d_1a", "fc"))}
    torch.save(few, path)
    with pytest.raises(ExtractorError, match=r"x\.pth: has no Conv2d_2a_3x3\.bn\.bias; expected"):
        load_inception(path)
    torch.save({**weights, "AuxLogits.fc.bias": torch.zeros(1000)}, path)
    with pytest.raises(ExtractorError, match=r"has AuxLogits\.fc\.bias; expected"):
        load_inception(path)
    torch.save({**weights, "fc.bias": torch.zeros(1000)}, path)
    with pytest.raises(ExtractorError, match=r"fc\.bias is \(1000,\); the FID Inception v3 has \(1008,\)"):
        load_inception(path)
    path.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"x\.pth: cannot be read|refused"):
        load_inception(path)
