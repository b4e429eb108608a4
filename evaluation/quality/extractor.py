"""Feature extractors from files: what turns images into the vectors that metrics compare."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.store import sha256
from flowturbo_trt.evaluation.quality.images import Pixels
from flowturbo_trt.sampling.errors import FlowTurboError

Features = NDArray[np.float32]
# What a network may give, the first always.
OUTPUTS = ("features", "spatial", "probabilities")
# A file's ending → the function (path, device, threads) → Network that opens it.
LOADERS = {
    ".onnx": "flowturbo_trt.evaluation.quality.onnx_network:open_onnx",
    ".pt": "flowturbo_trt.evaluation.quality.torch_network:open_torchscript",
    ".ts": "flowturbo_trt.evaluation.quality.torch_network:open_torchscript",
    ".pth": "flowturbo_trt.evaluation.quality.torch_network:open_inception",
}


class ExtractorError(FlowTurboError):
    """A feature extractor that cannot be opened, or does not keep the contract of `Extractor`."""


class Network(Protocol):
    """A network that was opened; `size` is the one (H,W) it takes, None for any."""

    @property
    def size(self) -> tuple[int, int] | None: ...
    @property
    def recognises_labels(self) -> bool:
        """Whether its probabilities are of the classes that samples are labelled with."""
        ...

    def __call__(self, images: Pixels) -> Mapping[str, NDArray[Any]]: ...


@dataclass(frozen=True)
class Outputs:
    """Of N images: features (N,K), and (N,S) spatial and (N,C) probabilities where the network has them."""

    features: Features
    spatial: Features | None = None
    probabilities: Features | None = None


class Extractor:
    """A network from a file, held to the contract of feature extractors.

    Input `image` (N,H,W,3) uint8, with any N. Outputs by name: `features` (N,K), for FID, KID, precision and
    recall; optionally `spatial` (N,S), for sFID, and `probabilities` (N,C), for the Inception Score and
    recognition: after softmax, in the order of the labels. All of them floating-point and finite.
    """

    def __init__(self, path: Path, network: Network) -> None:
        self.path = path
        self.sha256 = sha256(path)
        self.size = network.size
        self.recognises_labels = network.recognises_labels
        self._network = network
        self._dimensions: dict[str, int] = {}

    def __call__(self, images: Pixels) -> Outputs:
        """Run on images (N,H,W,3) uint8; raises ExtractorError for what breaks the contract."""
        if self.size is not None and images.shape[1:3] != self.size:
            raise ExtractorError(
                f"{self.path}: takes images of {self.size[0]}×{self.size[1]} only, these are "
                f"{images.shape[1]}×{images.shape[2]}; resize them, or export it with symbolic sides"
            )
        found = self._network(images)
        if "features" not in found:
            raise ExtractorError(
                f"{self.path}: gives {', '.join(found) or 'nothing'}; expected an output `features` (N,K)"
            )
        outputs = {name: self._checked(name, found[name], len(images)) for name in OUTPUTS if name in found}
        return Outputs(**outputs)

    def dimensions(self, images: Pixels) -> Mapping[str, int]:
        """Return the length of each output's vectors, tried on two of the images the first time."""
        if not self._dimensions:
            self(np.concatenate([images, images])[:2])
        return self._dimensions

    def _checked(self, name: str, values: NDArray[Any], count: int) -> Features:
        if values.ndim != 2 or len(values) != count or values.dtype.kind != "f":
            raise ExtractorError(
                f"{self.path}: its {name} are {values.dtype} {values.shape} for {count} images; expected "
                f"floats ({count}, K)"
            )
        if not np.isfinite(values).all():
            raise ExtractorError(
                f"{self.path}: its {name} hold NaN or infinite values; mend its weights or its arithmetic"
            )
        if name == "probabilities":
            self._check_probabilities(values)
        known = self._dimensions.setdefault(name, values.shape[1])
        if values.shape[1] != known:
            raise ExtractorError(f"{self.path}: its {name} have {values.shape[1]} values, {known} before")
        return values.astype(np.float32, copy=False)

    def _check_probabilities(self, values: NDArray[Any]) -> None:
        worst = float(np.abs(values.sum(axis=1, dtype=np.float64) - 1).max())
        if values.min() < 0 or worst > 1e-2:
            raise ExtractorError(
                f"{self.path}: its probabilities reach {values.min():.3g} and sum to 1 ± {worst:.3g}; "
                "expected softmax within the network"
            )


def open_extractor(path: Path, device: str = "cpu", threads: int = 0) -> Extractor:
    """Open an .onnx file, a TorchScript file (.pt, .ts) or the FID Inception weights (.pth).

    `device` is cpu, cuda or cuda:N; `threads` bounds the CPU's (0: all cores). Raises ExtractorError.
    """
    if not path.is_file():
        raise ExtractorError(f"{path}: no such file; give an extractor as {', '.join(LOADERS)}")
    if path.suffix not in LOADERS:
        raise ExtractorError(f"{path}: expected a file ending in {', '.join(LOADERS)}")
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (":" in device and (kind == "cpu" or not index.isdecimal())):
        raise ExtractorError(f"unknown device {device!r}; expected cpu, cuda or cuda:N")
    module, _, function = LOADERS[path.suffix].partition(":")
    load: Callable[[Path, str, int], Network] = getattr(importlib.import_module(module), function)
    return Extractor(path, load(path, device, threads))
