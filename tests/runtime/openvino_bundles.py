"""The shared bundles as bundles for OpenVINO: the same graphs, described as its engines."""

from collections.abc import Callable
from typing import Any

from flowturbo_trt.runtime.backend_openvino import NAME


def as_openvino(precision: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of a manifest: its graphs as engines for OpenVINO alone, as `build` writes them."""

    def change(manifest: dict[str, Any]) -> None:
        engines = [engine for engine in manifest["engines"] if engine["backend"] == "onnxruntime"]
        for engine in engines:
            engine.update({"backend": NAME, "builder": NAME, "precision": precision} | changes)
        manifest["engines"] = engines

    return change
