"""A bundle as a recipe would make it: its float32 graphs on ONNX Runtime, some of them in 8 bits."""

import os
from dataclasses import replace
from pathlib import Path

from flowturbo_trt.bundle.manifest import Engine, FileRecord
from flowturbo_trt.bundle.store import Bundle, sha256
from flowturbo_trt.calibration.precision.emulation import Layers
from flowturbo_trt.export.onnx_graph import load_graph, save_graph
from flowturbo_trt.export.quantization import quantize

FOLDER = "quantized"


def quantized_view(view: Bundle, layers: Layers, kind: str, folder: Path) -> Bundle:
    """Write Q/DQ graphs into an empty `folder` and return a bundle there with them as engines.

    `view` has the float32 graphs as engines (recording.float32); its files are linked to, not copied.
    """
    for name in {Path(file).parts[0] for file in view.manifest.files}:
        (folder / name).symlink_to(os.path.abspath(view.path / name))
    (folder / FOLDER).mkdir()
    engines, files = [], dict(view.manifest.files)
    for engine in view.manifest.engines:
        if engine.name in layers:
            engine = _quantized(view, engine, layers, kind, folder)
            files |= {file: _record(folder / file) for file in engine.files}
        engines.append(engine)
    return Bundle(folder, replace(view.manifest, engines=tuple(engines), files=files))


def _quantized(view: Bundle, engine: Engine, layers: Layers, kind: str, folder: Path) -> Engine:
    model = quantize(load_graph(view.file(engine.file)), layers[engine.name], kind)
    written = save_graph(model, folder / FOLDER / f"{engine.name.replace(' ', '.')}.{kind}.onnx")
    first, *data = (file.relative_to(folder).as_posix() for file in written)
    return replace(engine, precision=kind, file=first, data=tuple(data))


def _record(file: Path) -> FileRecord:
    return FileRecord(file.stat().st_size, sha256(file))
