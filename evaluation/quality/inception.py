"""The Inception v3 of 2015 that FID is defined on, with its own resizing, for weights in a file.

Facts from the public evaluators: torchvision's parameter names (pytorch-fid, torch-fidelity); average pools
that leave the padding out and one maximum pool, the resizing and scaling within TensorFlow's graph
(torch-fidelity); spatial features and logits without bias (guided-diffusion's evaluator). The tests hold
it to these facts with random weights; it has not been run with the published ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowturbo_trt.evaluation.quality.extractor import ExtractorError
from flowturbo_trt.models.checkpoints import load_checkpoint

SIDE = 299
FEATURES = 2048
CLASSES = 1008
# TensorFlow's mixed_6 is the block Mixed_6d; sFID takes the first channels of its first branch.
SPATIAL_BLOCK = "Mixed_6d"
SPATIAL_CHANNELS = 7
_NORM_EPSILON = 1e-3

Pool = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Unit:
    """A convolution by name; one of stride 1 keeps the image's size."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1

    def made(self, inputs: int) -> "Convolution":
        height, width = self.kernel
        padding = (height // 2, width // 2) if self.stride == 1 else (0, 0)
        return Convolution(inputs, self.channels, self.kernel, self.stride, padding)


# One after another; the last may be several units side by side.
Chain = tuple[Unit | tuple[Unit, ...], ...]


class Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=_NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Block(nn.Module):
    """Chains side by side, and a pool last; their channels are joined in that order."""

    def __init__(self, inputs: int, chains: Sequence[Chain], pool: Pool, pooled: int | None) -> None:
        super().__init__()
        self._pool = pool
        self._chains: list[list[list[Convolution]]] = []
        self.channels = 0
        for chain in chains:
            channels = inputs
            steps = []
            for step in chain:
                units = step if isinstance(step, tuple) else (step,)
                # As attributes of the block: that is how a file names them.
                steps.append([self._add(unit, channels) for unit in units])
                channels = sum(unit.channels for unit in units)
            self._chains.append(steps)
            self.channels += channels
        self._projects = pooled is not None
        if pooled is not None:
            self._add(Unit("branch_pool", pooled), inputs)
        self.channels += pooled or inputs

    def _add(self, unit: Unit, inputs: int) -> Convolution:
        made = unit.made(inputs)
        self.add_module(unit.name, made)
        return made

    def forward(self, x: Tensor) -> Tensor:
        branches = []
        for chain in self._chains:
            y = x
            for step in chain:
                y = torch.cat([unit(y) for unit in step], dim=1)
            branches.append(y)
        pooled = self._pool(x)
        branches.append(self.get_submodule("branch_pool")(pooled) if self._projects else pooled)
        return torch.cat(branches, dim=1)


def _mean_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _largest_of_nine(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


def _block_35(inputs: int, pooled: int) -> Block:
    chains: list[Chain] = [
        (Unit("branch1x1", 64),),
        (Unit("branch5x5_1", 48), Unit("branch5x5_2", 64, (5, 5))),
        (
            Unit("branch3x3dbl_1", 64),
            Unit("branch3x3dbl_2", 96, (3, 3)),
            Unit("branch3x3dbl_3", 96, (3, 3)),
        ),
    ]
    return Block(inputs, chains, _mean_pool, pooled)


def _block_35_to_17(inputs: int) -> Block:
    chains: list[Chain] = [
        (Unit("branch3x3", 384, (3, 3), stride=2),),
        (
            Unit("branch3x3dbl_1", 64),
            Unit("branch3x3dbl_2", 96, (3, 3)),
            Unit("branch3x3dbl_3", 96, (3, 3), stride=2),
        ),
    ]
    return Block(inputs, chains, _halve, None)


def _block_17(inputs: int, width: int) -> Block:
    row, column = (1, 7), (7, 1)
    chains: list[Chain] = [
        (Unit("branch1x1", 192),),
        (
            Unit("branch7x7_1", width),
            Unit("branch7x7_2", width, row),
            Unit("branch7x7_3", 192, column),
        ),
        (
            Unit("branch7x7dbl_1", width),
            Unit("branch7x7dbl_2", width, column),
            Unit("branch7x7dbl_3", width, row),
            Unit("branch7x7dbl_4", width, column),
            Unit("branch7x7dbl_5", 192, row),
        ),
    ]
    return Block(inputs, chains, _mean_pool, 192)


def _block_17_to_8(inputs: int) -> Block:
    chains: list[Chain] = [
        (Unit("branch3x3_1", 192), Unit("branch3x3_2", 320, (3, 3), stride=2)),
        (
            Unit("branch7x7x3_1", 192),
            Unit("branch7x7x3_2", 192, (1, 7)),
            Unit("branch7x7x3_3", 192, (7, 1)),
            Unit("branch7x7x3_4", 192, (3, 3), stride=2),
        ),
    ]
    return Block(inputs, chains, _halve, None)


def _block_8(inputs: int, pool: Pool) -> Block:
    def both(name: str) -> tuple[Unit, Unit]:
        return Unit(f"{name}a", 384, (1, 3)), Unit(f"{name}b", 384, (3, 1))

    chains: list[Chain] = [
        (Unit("branch1x1", 320),),
        (Unit("branch3x3_1", 384), both("branch3x3_2")),
        (Unit("branch3x3dbl_1", 448), Unit("branch3x3dbl_2", 384, (3, 3)), both("branch3x3dbl_3")),
    ]
    return Block(inputs, chains, pool, 192)


class InceptionV3(nn.Module):
    """Images (N,H,W,3) uint8 → features (N,2048), spatial (N,2023), probabilities (N,1008), all float32."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        makers: dict[str, Callable[[int], Block]] = {
            "Mixed_5b": lambda inputs: _block_35(inputs, 32),
            "Mixed_5c": lambda inputs: _block_35(inputs, 64),
            "Mixed_5d": lambda inputs: _block_35(inputs, 64),
            "Mixed_6a": _block_35_to_17,
            "Mixed_6b": lambda inputs: _block_17(inputs, 128),
            "Mixed_6c": lambda inputs: _block_17(inputs, 160),
            "Mixed_6d": lambda inputs: _block_17(inputs, 160),
            "Mixed_6e": lambda inputs: _block_17(inputs, 192),
            "Mixed_7a": _block_17_to_8,
            "Mixed_7b": lambda inputs: _block_8(inputs, _mean_pool),
            "Mixed_7c": lambda inputs: _block_8(inputs, _largest_of_nine),
        }
        self._blocks: dict[str, Block] = {}
        channels = 192
        for name, make in makers.items():
            block = make(channels)
            self.add_module(name, block)
            self._blocks[name] = block
            channels = block.channels
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = resize_like_tensorflow(images.permute(0, 3, 1, 2).float(), SIDE)
        x = (x - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halve(x)))
        x = _halve(x)
        outputs = {}
        for name, block in self._blocks.items():
            x = block(x)
            if name == SPATIAL_BLOCK:
                # Published means of spatial features are in TensorFlow's order, channels last.
                outputs["spatial"] = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        outputs["features"] = x.mean(dim=(2, 3))
        # The evaluators leave out the bias of the last layer.
        outputs["probabilities"] = F.linear(outputs["features"], self.fc.weight).softmax(dim=1)
        return outputs


def resize_like_tensorflow(images: Tensor, side: int) -> Tensor:
    """Resize images (N,C,H,W) to (N,C,side,side) as TensorFlow 1 does: corners aligned at the top left only.

    Pixel i of the result lies at i · H/side, bilinearly between two rows; no smoothing when it shrinks.
    """
    return _stretch(_stretch(images, 3, side), 2, side)


def _stretch(images: Tensor, axis: int, side: int) -> Tensor:
    length = images.shape[axis]
    # Positions in float32, as TensorFlow computes them.
    scale = torch.tensor(length / side, dtype=torch.float32, device=images.device)
    at = torch.arange(side, dtype=torch.float32, device=images.device) * scale
    low = at.long()
    high = (low + 1).clamp(max=length - 1)
    weight = (at - low).view(-1, *(1,) * (3 - axis))
    first = images.index_select(axis, low)
    return first + (images.index_select(axis, high) - first) * weight


def load_inception(path: Path) -> InceptionV3:
    """Load `pt_inception-2015-12-05-6726825d.pth`, or another file of that layout.

    Raises ExtractorError for weights of another network and CheckpointError for an unreadable file.
    """
    with torch.device("meta"):
        module = InceptionV3()
    weights = {
        name: value for name, value in load_checkpoint(path).weights.items() if not name.endswith(_COUNTERS)
    }
    expected = {name: value for name, value in module.state_dict().items() if not name.endswith(_COUNTERS)}
    if odd := sorted(weights.keys() ^ expected.keys()):
        trouble = f"has no {odd[0]}" if odd[0] in expected else f"has {odd[0]}"
        raise ExtractorError(f"{path}: {trouble}; expected the weights of the FID Inception v3 (2015-12-05)")
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            raise ExtractorError(
                f"{path}: {name} is {tuple(value.shape)}; the FID Inception v3 has "
                f"{tuple(expected[name].shape)}"
            )
    module.to_empty(device="cpu").load_state_dict(weights, strict=False)
    return module.requires_grad_(False).eval()


# How many batches a normalisation saw in training: of no use here, and not in every file.
_COUNTERS = ".num_batches_tracked"
