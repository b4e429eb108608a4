"""Feature extractors that torch runs: TorchScript files and the FID Inception network."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowturbo_trt.evaluation.quality.extractor import ExtractorError, Network
from flowturbo_trt.evaluation.quality.images import Pixels
from flowturbo_trt.evaluation.quality.inception import InceptionV3, load_inception

# Images that pass a network at once on a CPU: more are no faster there, and Inception's first layers take
# 18 MB each.
PART = 8


class TorchNetwork:
    """A torch module from images (N,H,W,3) uint8 to a tensor of features, or to tensors by name."""

    size = None

    def __init__(
        self, path: Path, module: Callable[[Tensor], object], device: str, *, recognises_labels: bool
    ) -> None:
        self.recognises_labels = recognises_labels
        self._path = path
        self._module = module
        self._device = torch.device(device)

    def __call__(self, images: Pixels) -> Mapping[str, NDArray[Any]]:
        part = PART if self._device.type == "cpu" else len(images)
        parts = [self._run(images[start : start + part]) for start in range(0, len(images), part)]
        return {name: np.concatenate([outputs[name] for outputs in parts]) for name in parts[0]}

    @torch.inference_mode()
    def _run(self, images: Pixels) -> dict[str, NDArray[Any]]:
        try:
            found = self._module(torch.tensor(images, device=self._device))
        except Exception as error:  # whatever the module's code raises
            reason = " ".join(str(error).split())[-300:]
            raise ExtractorError(f"{self._path}: failed on images {images.shape} ({reason})") from error
        outputs = {"features": found} if isinstance(found, Tensor) else found
        if not isinstance(outputs, Mapping) or not all(isinstance(v, Tensor) for v in outputs.values()):
            raise ExtractorError(
                f"{self._path}: gives a {type(found).__name__}; expected a tensor of features (N,K), or a "
                "dictionary of tensors by name"
            )
        return {str(name): _array(value) for name, value in outputs.items()}


def _array(value: Tensor) -> NDArray[Any]:
    # NumPy has no bfloat16.
    return (value.float() if value.is_floating_point() else value).cpu().numpy()


def open_torchscript(path: Path, device: str, threads: int) -> Network:
    """Open a TorchScript file; raises ExtractorError."""
    _prepare(device, threads)
    try:
        with warnings.catch_warnings():
            # TorchScript is no longer developed, but extractors are distributed as such files.
            warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
            module = torch.jit.load(str(path), map_location=device)
    except Exception as error:  # what damaged bytes lead it to
        reason = str(error).strip().split("\n")[0][:300]
        raise ExtractorError(f"{path}: is no TorchScript file, or is damaged ({reason})") from error
    return TorchNetwork(path, module.eval(), device, recognises_labels=True)


def open_inception(path: Path, device: str, threads: int) -> Network:
    """Open the FID Inception weights; raises ExtractorError and CheckpointError."""
    _prepare(device, threads)
    module: InceptionV3 = load_inception(path).to(device)
    # Its 1008 outputs are not in the order of ImageNet's labels.
    return TorchNetwork(path, module, device, recognises_labels=False)


def _prepare(device: str, threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)
    index = torch.device(device).index or 0
    if device != "cpu" and index >= torch.cuda.device_count():
        raise ExtractorError(
            f"device {device}: torch sees {torch.cuda.device_count()} GPUs; use --device cpu, or install a "
            "torch with CUDA"
        )
