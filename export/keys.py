"""Content keys: everything a piece of a build depends on, part by part.

Two pieces with equal keys are interchangeable, so a finished one is taken instead of made again. The
parts are kept apart, because they are also the answer to why something was built anew.
"""

import hashlib
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

from flowturbo_trt.bundle.environment import versions
from flowturbo_trt.bundle.manifest import FileRecord
from flowturbo_trt.export.compile import Compiler, EngineRequest
from flowturbo_trt.export.graphs import Exportable

Key = dict[str, str]

# What decides the bytes of an exported graph, beside this project's own code.
EXPORTERS = ("torch", "onnx-ir", "onnxscript", "diffusers")
# Our packages whose code ends up in graphs and engines.
PACKAGES = ("models", "export")


def graph_key(item: Exportable, weights: dict[str, str]) -> Key:
    """Return a graph's key; `weights` is the provenance of its network's checkpoint."""
    found = versions()
    return {
        "weights": f"{weights['sha256']} {weights['weights']}",
        "shape": digest(item.shape),
        "interface": digest([asdict(tensor) for tensor in (*item.inputs, item.output)]),
        "exporter": ", ".join(f"{name} {found[name]}" for name in EXPORTERS if name in found),
        "flowturbo_trt": f"{found['flowturbo_trt']} {code_hash()[:12]}",
    }


def engine_key(request: EngineRequest, graph: dict[str, FileRecord], backend: str, compiler: Compiler) -> Key:
    """Return an engine's key; `graph` are the files of the float32 graph it is compiled from."""
    found = versions()
    key = {
        "graph": digest({name: record.sha256 for name, record in graph.items()}),
        "backend": backend,
        "builder": compiler.builder,
        "precision": request.precision,
        "targets": ",".join(compiler.targets),
        # Writes the graph in its precision, which is the engine or what it is compiled from.
        "exporter": f"onnx-ir {found['onnx-ir']}",
        "flowturbo_trt": f"{found['flowturbo_trt']} {code_hash()[:12]}",
    }
    if request.quantization is not None:
        layers = {name: asdict(layer) for name, layer in request.quantization.layers.items()}
        key |= {"base": request.base, "recipe": digest(layers)}
    if compiler.fixes_batches:
        key |= {"batches": ",".join(map(str, request.batches))}
    return key


def difference(old: Key, new: Key) -> str:
    """Say which parts of two keys differ, with the values where people can read them."""
    changes = []
    for part in sorted(old.keys() | new.keys()):
        before, after = old.get(part, "absent"), new.get(part, "absent")
        if before != after:
            readable = max(len(before), len(after)) <= 60
            changes.append(f"{part} {before or 'none'} → {after or 'none'}" if readable else part)
    return ", ".join(changes)


def count_differences(a: Key, b: Key) -> int:
    return sum(a.get(part) != b.get(part) for part in a.keys() | b.keys())


def digest(value: object) -> str:
    """Return a hash of JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@cache
def code_hash() -> str:
    """Return a hash of the code that makes graphs and engines: a fixed bug must not live on in a cache."""
    root = Path(__file__).resolve().parents[1]
    files = sorted(file for package in PACKAGES for file in (root / package).glob("*.py"))
    return digest({file.relative_to(root).as_posix(): file.read_text(encoding="utf-8") for file in files})
