"""Checkpoints: the layouts that load, what is read from them, and which weights are taken."""

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flowturbo_trt.models.checkpoints import (
    CONFIG_KEY,
    NAMED_MODELS,
    PUBLISHED_HEADS,
    Checkpoint,
    CheckpointError,
    ConfigError,
    inspect_shape,
    load_checkpoint,
    load_predictor,
    load_refiner,
    named_config,
    read_config,
    resolve_config,
)
from flowturbo_trt.models.sit import SiT, SiTConfig

Weights = dict[str, Tensor]


@pytest.fixture
def weights(golden_predictor: SiT) -> Weights:
    return {name: tensor.clone() for name, tensor in golden_predictor.state_dict().items()}


@pytest.fixture
def other(weights: Weights) -> Weights:
    """Weights of the same network that are not the same numbers."""
    return {name: tensor + 1 for name, tensor in weights.items()}


def torch_file(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def assert_holds(checkpoint: Checkpoint, weights: Weights) -> None:
    assert checkpoint.weights.keys() == weights.keys()
    assert all(torch.equal(checkpoint.weights[name], tensor) for name, tensor in weights.items())


def test_bare_state_dict(tmp_path: Path, weights: Weights) -> None:
    checkpoint = load_checkpoint(torch_file(tmp_path / "p.pt", weights))
    assert checkpoint.chosen == "bare"
    assert_holds(checkpoint, weights)


def test_safetensors(tmp_path: Path, weights: Weights) -> None:
    save_file(weights, tmp_path / "p.safetensors")
    checkpoint = load_checkpoint(tmp_path / "p.safetensors")
    assert checkpoint.chosen == "bare"
    assert_holds(checkpoint, weights)


def test_file_of_older_torch(tmp_path: Path, weights: Weights) -> None:
    torch.save(weights, tmp_path / "p.pt", _use_new_zipfile_serialization=False)
    assert_holds(load_checkpoint(tmp_path / "p.pt"), weights)


@pytest.mark.parametrize("name", ["model", "ema", "state_dict"])
def test_one_set_of_weights_among_other_things(tmp_path: Path, weights: Weights, name: str) -> None:
    checkpoint = load_checkpoint(torch_file(tmp_path / "p.pt", {"epoch": 3, name: weights}))
    assert checkpoint.chosen == name
    assert_holds(checkpoint, weights)


def test_published_layout_prefers_the_average(tmp_path: Path, weights: Weights, other: Weights) -> None:
    content = {
        "model": other,
        "ema": weights,
        "opt": {"state": {0: {"step": 1, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]},
        "args": argparse.Namespace(model="SiT-XL/2", lr=1e-4, ckpt=None, classes=[1, 2]),
    }
    checkpoint = load_checkpoint(torch_file(tmp_path / "p.pt", content))
    assert checkpoint.chosen == "ema"
    assert_holds(checkpoint, weights)


def test_provenance(tmp_path: Path, weights: Weights) -> None:
    path = torch_file(tmp_path / "p.pt", {"ema": weights})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = {"file": "p.pt", "sha256": sha256, "weights": "ema"}
    assert load_checkpoint(str(path)).provenance() == expected


def test_shape_is_read_from_the_checkpoint(golden_folder: Path, golden_config: dict[str, Any]) -> None:
    told = inspect_shape(load_checkpoint(golden_folder / "predictor.pt"), refines=False)
    expected = {name: value for name, value in golden_config.items() if name in told}
    assert told == expected
    assert set(told) | {"num_heads"} == {
        *asdict(resolve_config(load_checkpoint(golden_folder / "predictor.pt"), golden_config, refines=False))
    }


def test_shape_of_a_refiner(golden_folder: Path, golden_config: dict[str, Any]) -> None:
    told = inspect_shape(load_checkpoint(golden_folder / "refiner.pt"), refines=True)
    assert (told["in_channels"], told["depth"], told["learn_sigma"]) == (4, 1, True)
    assert told["input_size"] == golden_config["input_size"]


@pytest.mark.parametrize("width", sorted(PUBLISHED_HEADS))
def test_published_widths_need_no_configuration(width: int) -> None:
    """A refiner's embedding has twice the channels; heads follow from the published width."""
    config = SiTConfig(8, 4, 4, width, 1, PUBLISHED_HEADS[width], 10)
    with torch.device("meta"):
        predictor = Checkpoint(Path("p"), SiT(config).state_dict(), "bare", "")
        refiner = Checkpoint(Path("r"), SiT(config, refines=True).state_dict(), "bare", "")
    loaded = load_predictor(predictor, {})
    assert loaded.config == config
    assert load_refiner(refiner, loaded.config).config == config


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_networks_of_one_and_odd_channels(learn_sigma: bool) -> None:
    for channels in (1, 3):
        config = SiTConfig(4, 2, channels, 16, 2, 2, 3, learn_sigma)
        predictor = Checkpoint(Path("p"), SiT(config).state_dict(), "bare", "")
        assert load_predictor(predictor, {"num_heads": 2}).config == config
        refiner = Checkpoint(Path("r"), SiT(config, refines=True).state_dict(), "bare", "")
        assert load_refiner(refiner, config).config == config


def test_predictor_without_learn_sigma_says_so() -> None:
    """It emits the channels it reads, as a refiner does."""
    config = SiTConfig(4, 2, 4, 16, 2, 2, 3, learn_sigma=False)
    checkpoint = Checkpoint(Path("p"), SiT(config).state_dict(), "bare", "")
    for told in ({"learn_sigma": False}, {"in_channels": 4}, asdict(config)):
        assert load_predictor(checkpoint, {"num_heads": 2, **told}).config == config


def test_refiner_of_another_width_and_depth() -> None:
    """Its file says how many attention heads it has, or the configuration does."""
    predictor = SiTConfig(8, 2, 4, 16, 2, 2, 3)
    small = SiTConfig(8, 4, 4, 8, 3, 4, 3)
    weights = SiT(small, refines=True).state_dict()
    told = Checkpoint(Path("r"), weights, "bare", "", {"num_heads": 4})
    assert load_refiner(told, predictor).config == small
    assert load_refiner(told, predictor, 4).config == small
    silent = Checkpoint(Path("r"), weights, "bare", "")
    assert load_refiner(silent, predictor, 4).config == small
    with pytest.raises(ConfigError, match=r"r: the number of attention heads .* of width 8 .* refiner_heads"):
        load_refiner(silent, predictor)
    with pytest.raises(ConfigError, match="r: its num_heads is 4, the configuration's refiner_heads is 2"):
        load_refiner(told, predictor, 2)


def test_refiner_of_the_predictors_width_has_its_heads() -> None:
    config = SiTConfig(8, 2, 4, 16, 2, 8, 3)
    checkpoint = Checkpoint(Path("r"), SiT(config, refines=True).state_dict(), "bare", "")
    assert load_refiner(checkpoint, config).config == config


def test_heads_of_a_refiner_that_cannot_be() -> None:
    predictor = SiTConfig(8, 2, 4, 16, 2, 2, 3)
    weights = SiT(predictor, refines=True).state_dict()
    for heads in (3, 0, "two"):
        with pytest.raises(ConfigError, match=r"num_heads is .*, expected a divisor of the width 16"):
            load_refiner(Checkpoint(Path("r"), weights, "bare", "", {"num_heads": heads}), predictor)


def test_configuration_in_the_header(tmp_path: Path, weights: Weights) -> None:
    """Under this project's own key; what others write into a header is theirs."""
    path = tmp_path / "r.safetensors"
    save_file(weights, path, {CONFIG_KEY: json.dumps({"num_heads": 4}), "config": "theirs"})
    assert load_checkpoint(path).config == {"num_heads": 4}
    save_file(weights, path, {"config": "theirs"})
    assert load_checkpoint(path).config == {}
    save_file(weights, path, {CONFIG_KEY: "{"})
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("convert", [Tensor.half, Tensor.bfloat16, Tensor.double])
def test_networks_are_float32_and_fixed(weights: Weights, convert: Callable[[Tensor], Tensor]) -> None:
    converted = {name: convert(tensor) for name, tensor in weights.items()}
    network = load_predictor(Checkpoint(Path("p"), converted, "bare", ""), {"num_heads": 4})
    assert not network.training
    for parameter in network.parameters():
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, converted[name].float())


def test_loading_computes_the_frequencies(golden_predictor: SiT) -> None:
    """No checkpoint holds them, and networks are built without memory."""
    frequencies = golden_predictor.t_embedder.frequencies
    assert frequencies.device.type == "cpu"
    k = torch.arange(128, dtype=torch.float64)
    torch.testing.assert_close(frequencies.double(), 10_000 ** (-k / 128), rtol=1e-6, atol=0)


def test_golden_configuration_is_read(golden_folder: Path, golden_config: dict[str, Any]) -> None:
    assert read_config(golden_folder / "config.json") == golden_config


def test_every_field_of_the_network_may_be_configured(tmp_path: Path, golden_predictor: SiT) -> None:
    fields = asdict(golden_predictor.config) | {"guided_channels": "all", "schedules": ["H8"]}
    (tmp_path / "c.json").write_text(json.dumps(fields))
    assert read_config(tmp_path / "c.json") == fields


def test_names_of_published_models() -> None:
    assert named_config("SiT-XL/2") == {
        "depth": 28,
        "hidden_size": 1152,
        "num_heads": 16,
        "patch_size": 2,
    }
    assert len(NAMED_MODELS) == 12
    assert named_config("SiT-B/4") is not NAMED_MODELS["SiT-B/4"]
