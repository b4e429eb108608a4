"""Plans for the fakes of TensorRT, and bundles that hold them."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Engine, Tensor
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend
from flowturbo_trt.tests.bundles import edit_manifest


@dataclass(frozen=True)
class FakePlan:
    """What a fake plan holds; `profiles` are (least, usual, largest) batches.

    `layers` are those that the inspector tells, or the text itself that it gives.
    """

    name: str
    version: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    profiles: tuple[tuple[int, int, int], ...]
    layers: tuple[Any, ...] | str = ()

    def information(self) -> str:
        if isinstance(self.layers, str):
            return self.layers
        return json.dumps({"Layers": self.layers, "Bindings": []})

    def serialize(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, content: bytes) -> "FakePlan | None":
        try:
            data = json.loads(content)
        except ValueError:
            return None
        tensors = {
            side: tuple(Tensor(t["name"], t["dtype"], tuple(t["shape"])) for t in data[side])
            for side in ("inputs", "outputs")
        }
        return cls(**data | tensors | {"profiles": tuple(map(tuple, data["profiles"]))})


def half_precision_layers(engine: Engine) -> tuple[Any, ...]:
    """Return what the inspector tells of a network that computes in float16 inside."""
    inner = {"Name": "product", "Datatype": "Half", "Format": "kLINEAR"}
    outer = [{"Name": tensor.name, "Datatype": "Float"} for tensor in engine.outputs]
    return ({"Name": "first", "Inputs": [inner], "Outputs": [inner]}, {"Name": "last", "Outputs": outer})


def plan_of(engine: Engine, version: str) -> FakePlan:
    """Return the plan that agrees with an engine's entry in the manifest."""
    profiles = tuple((batch, batch, batch) for batch in engine.batches)
    layers = half_precision_layers(engine)
    return FakePlan(engine.name, version, engine.inputs, engine.outputs, profiles, layers)


def by_onnxruntime(bundle: Path) -> Callable[[str, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    """Return what computes fake plans (fake_tensorrt.Compute) with the float32 engines of their bundle."""
    opened = Bundle.open(bundle)
    backend = OnnxRuntimeBackend(opened, 1)

    def compute(name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        network, _, variant = name.partition(" ")
        (output,) = opened.manifest.engine(network, variant or None, "onnxruntime").outputs
        return {output.name: backend.evaluate(network, variant or None, inputs)}

    return compute


def with_fake_plans(
    bundle: Path,
    folder: Path,
    backend: str,
    builder: str,
    change: Callable[[FakePlan], FakePlan | bytes] = lambda plan: plan,
    **entries: Any,
) -> Path:
    """Copy a bundle into a folder; beside ONNX Runtime's engines it has fake plans of one backend.

    `builder` is `module version` and, where engines are bound to one, ` for GPU, driver`. `change` gives
    what is written in place of a plan, `entries` replace those of the engines in the manifest.
    """
    copy = Path(shutil.copytree(bundle, folder / "fake"))
    manifest = Bundle.open(bundle).manifest
    version = builder.partition(" for ")[0].rpartition(" ")[2]
    engines, files = [], {}
    for engine in (e for e in manifest.engines if e.backend == "onnxruntime"):
        described = {**asdict(engine), "data": [], "batches": engine.batches or manifest.batches}
        plan = change(plan_of(Engine(**{**vars(engine), "batches": described["batches"]}), version))
        content = plan if isinstance(plan, bytes) else plan.serialize()
        file = f"engines/{backend}/{engine.name.replace(' ', '.')}.fp16.plan"
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).write_bytes(content)
        files[file] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        own = {"backend": backend, "precision": "fp16", "file": file, "builder": builder, "targets": []}
        engines.append(described | own | entries)

    def add(data: dict[str, Any]) -> None:
        data["engines"] = [e for e in data["engines"] if e["backend"] == "onnxruntime"] + engines
        data["files"].update(files)

    edit_manifest(copy, add)
    return copy
