"""Checkpoints and bundles that the tests of several packages share; each is built once a session."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import make_request

if TYPE_CHECKING:
    from flowturbo_trt.export.options import BuildOptions
    from flowturbo_trt.models.sit import SiT

Array = NDArray[np.float32]

SCHEDULES = ("H1P5R3", "H2P2R2", "H1P1R1", "H1P0R2", "H2P3R0")
TINY_CONFIG = {
    "input_size": 4,
    "patch_size": 2,
    "in_channels": 2,
    "hidden_size": 16,
    "depth": 1,
    "num_heads": 2,
    "num_classes": 3,
}


def latents(
    pipeline: Pipeline, labels: Any, schedule: str | None = None, **given: Any
) -> NDArray[np.float32]:
    """Generate latents without decoding them; seeds, guidance and noise as for calling the pipeline."""
    arguments = {"seeds": None, "guidance": None, "noise": None} | given
    request = make_request(pipeline.manifest.model, {"label": labels}, **arguments)
    return pipeline.generate(request, schedule, decode=False).latents


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest's JSON data in place."""
    file = bundle / "manifest.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    change(data)
    file.write_text(json.dumps(data), encoding="utf-8")


def changed_copy(bundle: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Copy a bundle into a folder and change the copy's manifest."""
    copy = Path(shutil.copytree(bundle, folder / "changed"))
    edit_manifest(copy, change)
    return copy


def save_autoencoder(folder: Path, latent_channels: int, channels: int, spread: float) -> Path:
    """Save a random autoencoder that enlarges latents 2 times; `spread` stretches its grey output."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16],
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        scaling_factor=0.3,
    )
    autoencoder.decoder.conv_out.weight.data *= spread
    autoencoder.save_pretrained(folder)
    return folder


def random_network(config: dict[str, Any], *, refines: bool) -> "SiT":
    """Build a network whose output depends on every input: untrained ones are zero."""
    import torch

    from flowturbo_trt.models.sit import SiT, SiTConfig

    torch.manual_seed(2 if refines else 1)
    network = SiT(SiTConfig(**config), refines=refines)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def golden_options(golden_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> "BuildOptions":
    """The golden networks, guided in 3 of 4 channels, with a decoder to 16×16 RGB."""
    from flowturbo_trt.export.options import BuildOptions

    return BuildOptions(
        predictor=golden_folder / "predictor.pt",
        refiner=golden_folder / "refiner.pt",
        decoder=save_autoencoder(tmp_path_factory.mktemp("golden") / "autoencoder", 4, 3, spread=4),
        config=golden_folder / "config.json",
        batches=(1, 2),
        variants=("guided", "unguided"),
    )


@pytest.fixture(scope="session")
def tiny_options(tmp_path_factory: pytest.TempPathFactory) -> "BuildOptions":
    """Networks of one block, guided in all channels, with a one-channel decoder to 8×8."""
    from safetensors.torch import save_file

    from flowturbo_trt.export.options import BuildOptions

    folder = tmp_path_factory.mktemp("tiny")
    for name in ("predictor", "refiner"):
        network = random_network(TINY_CONFIG, refines=name == "refiner")
        save_file(dict(network.state_dict()), folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG | {"guided_channels": "all", "cfg_scale": 2}))
    return BuildOptions(
        predictor=folder / "predictor.safetensors",
        refiner=folder / "refiner.safetensors",
        decoder=save_autoencoder(folder / "autoencoder", 2, 1, spread=4),
        config=folder / "config.json",
        batches=(1, 3),
        schedules=("H1P1R1", "H2"),
    )


@pytest.fixture(scope="session")
def golden_bundle(golden_options: "BuildOptions", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden networks for ONNX Runtime, and for TensorRT-RTX where it can be installed."""
    import importlib.util

    from flowturbo_trt.export.build import build

    found = importlib.util.find_spec("tensorrt_rtx") is not None
    backends = ("onnxruntime", "tensorrt-rtx") if found else ("onnxruntime",)
    out = tmp_path_factory.mktemp("bundles") / "golden"
    return build(replace(golden_options, backends=backends), out).path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_options: "BuildOptions", tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flowturbo_trt.export.build import build

    return build(tiny_options, tmp_path_factory.mktemp("bundles") / "tiny").path


@pytest.fixture(scope="session")
def golden_fused_bundle(golden_options: "BuildOptions", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden networks for ONNX Runtime, with the conditioning part of every evaluation."""
    from flowturbo_trt.export.build import build

    out = tmp_path_factory.mktemp("bundles") / "golden-fused"
    return build(replace(golden_options, conditioning="fused"), out).path


@pytest.fixture(scope="session")
def tiny_fused_bundle(tiny_options: "BuildOptions", tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flowturbo_trt.export.build import build

    out = tmp_path_factory.mktemp("bundles") / "tiny-fused"
    return build(replace(tiny_options, conditioning="fused"), out).path


@pytest.fixture(scope="session")
def golden_pipeline(golden_bundle: Path) -> Pipeline:
    # One thread: more only get into each other's way in networks of this size.
    return Pipeline.load(golden_bundle, threads=1)


@pytest.fixture(scope="session")
def golden_fused_pipeline(golden_fused_bundle: Path) -> Pipeline:
    return Pipeline.load(golden_fused_bundle, threads=1)


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_bundle: Path) -> Pipeline:
    return Pipeline.load(tiny_bundle, threads=1)


@pytest.fixture
def tiny_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


@pytest.fixture
def instant_export(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let `build` take the tiny networks' graphs from `tiny_bundle`; lists what was exported."""
    from flowturbo_trt.bundle.store import Bundle
    from flowturbo_trt.export.graphs import Exportable

    graphs = {(graph.network, graph.variant): graph for graph in Bundle.open(tiny_bundle).manifest.graphs}
    exported: list[str] = []

    def export_one(item: Exportable, folder: Path) -> list[Path]:
        graph = graphs[item.network, item.variant]
        exported.append(item.file)
        return [Path(shutil.copy(tiny_bundle / graph.file, folder))]

    monkeypatch.setattr("flowturbo_trt.export.build.export_one", export_one)
    return exported
