"""Recipes for the tests' networks, with scales from what the layers really read."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.parity.recording import open_reference, record
from flowturbo_trt.export.onnx_graph import load_graph
from flowturbo_trt.export.quantization import (
    LARGEST,
    QuantizedLinear,
    Recipe,
    linear_layers,
    save_recipe,
)

Arrays = Mapping[str, NDArray[Any]]


def random_inputs(graph: Path) -> dict[str, NDArray[np.float32]]:
    """Return normal numbers for a graph of float32 inputs, three rows."""
    random = np.random.default_rng(5)
    return {
        str(given.name): random.standard_normal((3, *map(int, given.shape[1:])), dtype=np.float32)
        for given in load_graph(graph).graph.inputs
        if given.shape is not None
    }


def quantized_layers(
    graph: Path, arrays: Arrays, kind: str = "int8", *, smooth: bool = True
) -> dict[str, QuantizedLinear]:
    """Return every linear layer of the blocks of a graph, with the range that it reads on some arrays."""
    model = load_graph(graph)
    nodes = {name: node for name, node in linear_layers(model).items() if name.startswith("blocks.")}
    for name, node in nodes.items():
        read = node.inputs[0]
        assert read is not None
        copy = ir.node("Identity", [read])
        copy.outputs[0].name, copy.outputs[0].dtype, copy.outputs[0].shape = name, read.dtype, read.shape
        model.graph.append(copy)
        model.graph.outputs.append(copy.outputs[0])
    content = ir.serde.serialize_model(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(list(nodes), {each.name: arrays[each.name] for each in session.get_inputs()})
    layers = {}
    for name, values in zip(nodes, found, strict=True):
        maxima = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0) + 1e-6
        s = np.sqrt(maxima) if smooth else np.ones_like(maxima)
        scale = float((maxima / s).max() / LARGEST[kind])
        layers[name] = QuantizedLinear(scale, tuple(map(float, s)) if smooth else ())
    return layers


def recipe_for(bundle: Path, kind: str = "int8", networks: tuple[str, ...] = ("predictor guided",)) -> Recipe:
    """Return a recipe for networks of a bundle, of its default schedule's trajectories."""
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    recording = record(open_reference(opened, 1), manifest, manifest.default_schedule, "guided", 4, 0)
    layers = {}
    for name in networks:
        network, variant = name.split()
        calls = [call.inputs for call in recording.calls_of(network, variant)]
        arrays = {given: np.concatenate([call[given] for call in calls]) for given in calls[0]}
        (file,) = (bundle / graph.file for graph in manifest.graphs if graph.name == name)
        layers[name] = quantized_layers(file, arrays, kind)
    sources = {name: source["sha256"] for name, source in manifest.sources.items()}
    return Recipe(
        kind,
        layers,
        {name: sha256 for name, sha256 in sources.items() if name != "decoder"},
        passed=True,
        findings={"budgets": {manifest.default_schedule: 0.01}},
        guided_channels=manifest.model.guidance.channels,
        schedules=tuple(manifest.programs),
        timed=("onnxruntime",),
    )


def saved(recipe: Recipe, path: Path, **changes: Any) -> Path:
    """Write a recipe, changed, and return the path."""
    save_recipe(replace(recipe, **changes), path)
    return path
