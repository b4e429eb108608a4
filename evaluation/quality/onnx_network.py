"""A feature extractor that ONNX Runtime runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from flowturbo_trt.evaluation.quality.extractor import OUTPUTS, ExtractorError, Network
from flowturbo_trt.evaluation.quality.images import Pixels
from flowturbo_trt.runtime.onnxruntime_session import check_provider, session_options

INPUT = "image"
_FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")


def open_onnx(path: Path, device: str, threads: int) -> Network:
    """Open an ONNX file; raises ExtractorError, and BackendError where the device cannot be used."""
    kind, _, index = device.partition(":")
    check_provider(kind)
    providers: list[tuple[str, dict[str, str]]] = [("CPUExecutionProvider", {})]
    if kind == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": index or "0"}))
    try:
        session = onnxruntime.InferenceSession(path, session_options(threads), providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        reason = " ".join(str(error).split())[:300]
        raise ExtractorError(f"{path}: ONNX Runtime cannot load it ({reason})") from error
    # ONNX Runtime falls back to the CPU with no more than a log line.
    if providers[0][0] not in session.get_providers():
        raise ExtractorError(f"{path}: ONNX Runtime could not start its {providers[0][0]}; use --device cpu")
    return OnnxNetwork(path, session)


class OnnxNetwork:
    """A session whose interface was checked; see Extractor for what it has to be."""

    recognises_labels = True

    def __init__(self, path: Path, session: Any) -> None:
        self._path = path
        self._session = session
        self.size = self._check_input()
        self._outputs = self._check_outputs()

    def __call__(self, images: Pixels) -> Mapping[str, NDArray[Any]]:
        try:
            values = self._session.run(self._outputs, {INPUT: images})
        except Exception as error:  # see open_onnx
            reason = " ".join(str(error).split())[:300]
            raise ExtractorError(f"{self._path}: failed on images {images.shape} ({reason})") from error
        return dict(zip(self._outputs, values, strict=True))

    def _check_input(self) -> tuple[int, int] | None:
        """Return the only size it takes, None if both are symbolic."""
        inputs = self._session.get_inputs()
        found = ", ".join(f"{node.name} {node.type} {node.shape}" for node in inputs) or "nothing"
        if len(inputs) != 1 or inputs[0].name != INPUT:
            raise ExtractorError(
                f"{self._path}: takes {found}; expected one input `{INPUT}` (N,H,W,3) in uint8"
            )
        shape = inputs[0].shape
        if inputs[0].type != "tensor(uint8)" or len(shape) != 4 or shape[3] not in (3, None):
            raise ExtractorError(f"{self._path}: takes {found}; expected `{INPUT}` (N,H,W,3) in uint8")
        batch, *size = shape[:3]
        if isinstance(batch, int):
            raise ExtractorError(
                f"{self._path}: takes {batch} images at a time and no other number; export it with a "
                "symbolic batch"
            )
        fixed = [isinstance(side, int) for side in size]
        if any(fixed) and not all(fixed):
            raise ExtractorError(
                f"{self._path}: takes {found}; expected height and width both fixed, or both symbolic"
            )
        return (size[0], size[1]) if all(fixed) else None

    def _check_outputs(self) -> list[str]:
        """Return the names to ask for."""
        outputs = {node.name: node for node in self._session.get_outputs() if node.name in OUTPUTS}
        if "features" not in outputs:
            there = ", ".join(node.name for node in self._session.get_outputs())
            raise ExtractorError(f"{self._path}: gives {there}; expected an output `features` (N,K)")
        for name, node in outputs.items():
            if len(node.shape) != 2 or node.type not in _FLOATS:
                raise ExtractorError(
                    f"{self._path}: its {name} are {node.type} {node.shape}; expected floats (N,K)"
                )
        return list(outputs)
