"""What a training leaves in its folder, looked at by several tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from flowturbo_trt.export.networks import Guided
from flowturbo_trt.models.sit import SiT
from flowturbo_trt.sampling.noise import standard_normal


def checkpoint_steps(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


def newest(folder: Path) -> Path:
    """Return the checkpoint that a run is resumed from."""
    return folder / "checkpoints" / f"step-{checkpoint_steps(folder)[-1]:08}.safetensors"


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """Return the raw weights of the newest checkpoint, as the optimizer left them."""
    state = load_file(newest(folder))
    return {name.removeprefix("weights/"): t for name, t in state.items() if name.startswith("weights/")}


def rows_recorded(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_recorded(folder: Path) -> list[int]:
    return [row["step"] for row in rows_recorded(folder)]


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_run(folder: Path, whole: Path) -> None:
    """Every tensor of the state and the result, and every row of the metrics, are equal."""
    found, expected = load_file(newest(folder)), load_file(newest(whole))
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    for name in ("refiner.safetensors", "metrics.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


@torch.inference_mode()
def h1r1(predictor: SiT, refiner: SiT, count: int, guidance: float) -> Tensor:
    """Sample latents of seeds and labels from 0 with H1R1 written out, guided in all channels."""
    config = predictor.config
    latent = (config.in_channels, config.input_size, config.input_size)
    x = torch.tensor(np.stack([standard_normal(seed, latent) for seed in range(count)]))
    label, s = torch.arange(count) % config.num_classes, torch.full((count,), guidance)
    v, r = Guided(predictor, config.in_channels), Guided(refiner, config.in_channels)
    zero, half, one = (torch.full((count,), t) for t in (0.0, 0.5, 1.0))
    d0 = v(x, zero, label, s)
    d1 = v(x + d0[:, 0] / 2, half, label, s)
    x = x + (d0 + d1)[:, 0] / 4
    d2 = r(x, half, label, s, d1) + d1
    d3 = r(x + d2[:, 0] / 2, one, label, s, d1) + d2
    end: Tensor = x + (d2 + d3)[:, 0] / 4
    return end
