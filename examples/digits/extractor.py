"""The digit classifier as a feature extractor for `evaluate`: one ONNX file beside the weights."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from flowturbo_trt.evaluation.quality.extractor import OUTPUTS
from flowturbo_trt.evaluation.quality.onnx_network import INPUT
from flowturbo_trt.export.onnx_graph import export_graph, save_graph

from .classifier import DigitClassifier, load_classifier
from .data import SIDE
from .loop import WEIGHTS

EXTRACTOR_FILE = WEIGHTS / "extractor.onnx"
# The modules of the classifier's body up to its second pooling: 64 channels on an 8×8 grid.
SPATIAL_DEPTH = 14
# As many of them, on as coarse a grid, as a covariance can be estimated of with 2,000 samples.
SPATIAL_CHANNELS = 8
SPATIAL_SIDE = 4


class DigitExtractor(nn.Module):
    """Images (N,32,32,3) uint8 → features (N,96), spatial (N,128), probabilities (N,10)."""

    def __init__(self, classifier: DigitClassifier) -> None:
        super().__init__()
        layers = list(classifier.body)
        self.early = _without_normalisation(layers[:SPATIAL_DEPTH])
        self.late = _without_normalisation(layers[SPATIAL_DEPTH:])
        self.head = classifier.head

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The three channels of a digit are equal.
        pixels = image[..., 0].unsqueeze(1).float() / 127.5 - 1
        early = self.early(pixels)
        features = self.late(early)
        spatial = F.adaptive_avg_pool2d(early[:, :SPATIAL_CHANNELS], SPATIAL_SIDE).flatten(1)
        return features, spatial, self.head(features).softmax(dim=1)


def _without_normalisation(layers: Sequence[nn.Module]) -> nn.Sequential:
    """Put each normalisation into the convolution before it, as it is once training is over."""
    fused: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            convolution = fused.pop()
            assert isinstance(convolution, nn.Conv2d)
            layer = fuse_conv_bn_eval(convolution, layer)
        fused.append(layer)
    return nn.Sequential(*fused)


def export_extractor(file: Path = EXTRACTOR_FILE) -> None:
    """Write the committed classifier as an extractor."""
    images = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8)
    model = export_graph(DigitExtractor(load_classifier()), {INPUT: images}, OUTPUTS[0])
    for value, name in zip(model.graph.outputs, OUTPUTS, strict=True):
        value.name = name
    save_graph(model, file)
