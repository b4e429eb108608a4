"""What the GPU scripts build."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.benchmarks.gpu import bundles
from flowturbo_trt.benchmarks.gpu.bundles import (
    TINY_SHAPE,
    Wanted,
    Weights,
    build_bundle,
    digits_weights,
    random_weights,
)
from flowturbo_trt.benchmarks.gpu.cases import TINY
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.models.checkpoints import load_checkpoint

WANTED = Wanted("onnxruntime", "fp16", (1, 3), ("H1P1R1",))


def test_random_weights_are_written_once(tmp_path: Path) -> None:
    weights = random_weights(tmp_path / "new", TINY)
    assert json.loads(weights.config.read_text()) == TINY_SHAPE
    found = load_checkpoint(weights.predictor).weights
    assert all(tensor.any() for tensor in found.values())
    assert load_checkpoint(weights.refiner).weights.keys() == found.keys()
    assert (weights.decoder / "config.json").is_file()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert random_weights(tmp_path / "new", TINY) == weights
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written


def test_digits_are_the_committed_ones() -> None:
    weights = digits_weights()
    assert all(
        path.exists() for path in (weights.predictor, weights.refiner, weights.decoder, weights.config)
    )


def test_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[BuildOptions] = []
    monkeypatch.setattr(bundles, "build", lambda options, out, **given: asked.append(options))
    wanted = replace(
        WANTED,
        backend="tensorrt-rtx",
        variants=("guided", "unguided"),
        conditioning="fused",
        targets=("8.9",),
    )
    build_bundle(Weights(Path("p"), Path("r"), Path("d"), Path("c")), tmp_path / "out", wanted)
    expected: dict[str, Any] = {
        "predictor": Path("p"),
        "refiner": Path("r"),
        "decoder": Path("d"),
        "config": Path("c"),
        "batches": (1, 3),
        "backends": ("tensorrt-rtx",),
        "precisions": ("fp16",),
        "variants": ("guided", "unguided"),
        "schedules": ("H1P1R1",),
        "targets": ("8.9",),
        "conditioning": "fused",
    }
    assert {name: getattr(asked[0], name) for name in expected} == expected


def test_graphs_come_from_a_sibling(
    tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str]
) -> None:
    """A precision more costs no export, and leaves the sibling as it was."""
    assert tiny_options.refiner is not None
    assert tiny_options.decoder is not None
    assert tiny_options.config is not None
    weights = Weights(tiny_options.predictor, tiny_options.refiner, tiny_options.decoder, tiny_options.config)
    first = build_bundle(weights, tmp_path / "fp32", replace(WANTED, precision="fp32"))
    exported = len(instant_export)
    before = {file: (first.path / file).read_bytes() for file in first.manifest.files}
    second = build_bundle(weights, tmp_path / "fp16", WANTED, first.path)
    assert len(instant_export) == exported > 0
    assert {engine.precision for engine in second.manifest.engines} == {"fp16"}
    assert {file: (first.path / file).read_bytes() for file in before} == before
    assert np.all([engine.batches == (1, 3) for engine in second.manifest.engines if engine.variant])
