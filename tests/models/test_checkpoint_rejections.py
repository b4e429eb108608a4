"""Checkpoints that must not load: one test per cause, one error class, one line."""

import argparse
import os
import pickle
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flowturbo_trt.models.checkpoints import (
    Checkpoint,
    CheckpointError,
    ConfigError,
    load_checkpoint,
    load_predictor,
    load_refiner,
    named_config,
    read_config,
)
from flowturbo_trt.models.sit import SiT, SiTConfig
from flowturbo_trt.sampling.errors import FlowTurboError

Weights = dict[str, Tensor]
HEADS = {"num_heads": 4}


@pytest.fixture
def weights(golden_predictor: SiT) -> Weights:
    return {name: tensor.clone() for name, tensor in golden_predictor.state_dict().items()}


@pytest.fixture
def refiner_weights(golden_refiner: SiT) -> Weights:
    return {name: tensor.clone() for name, tensor in golden_refiner.state_dict().items()}


def checkpoint(weights: Mapping[str, Tensor]) -> Checkpoint:
    return Checkpoint(Path("given.pt"), weights, "bare", "")


def assert_unreadable(path: Path, message: str) -> None:
    """Loading fails with one line that names the file."""
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert isinstance(caught.value, FlowTurboError)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.pt", "missing.safetensors", ""])
def test_missing_file(tmp_path: Path, name: str) -> None:
    assert_unreadable(tmp_path / name, "no such checkpoint file; give a .pt or .safetensors file")


Save = Callable[[Weights, Path], None]


def save_zip(weights: Weights, path: Path) -> None:
    torch.save(weights, path)


def save_legacy(weights: Weights, path: Path) -> None:
    torch.save(weights, path, _use_new_zipfile_serialization=False)


def save_safetensors(weights: Weights, path: Path) -> None:
    save_file(weights, path)


FORMATS = [(save_zip, ".pt"), (save_legacy, ".pt"), (save_safetensors, ".safetensors")]


@pytest.mark.parametrize(("save", "suffix"), FORMATS)
def test_truncated_file(tmp_path: Path, weights: Weights, save: Save, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    save({"pos_embed": weights["pos_embed"], "b": torch.ones(300)}, path)
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 50, 200, len(whole) // 2, len(whole) - 200, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert_unreadable(path, r"truncated\?|is damaged")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_arbitrary_bytes(tmp_path: Path, suffix: str) -> None:
    """The unpickler may fail in any way on them."""
    bytes_of = random.Random(0)
    path = tmp_path / f"p{suffix}"
    for _ in range(100):
        path.write_bytes(bytes_of.randbytes(bytes_of.randrange(1, 60)))
        assert_unreadable(path, r"truncated\?|is damaged|expected a state dict")


class Payload:
    """Unpickling this makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["alone", "beside the weights", "in the arguments"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, weights: Weights, where: str, zipped: bool) -> None:
    made = tmp_path / "made"
    payload = Payload(made)
    content = {
        "alone": payload,
        "beside the weights": {"ema": weights, "extra": payload},
        "in the arguments": {"ema": weights, "args": argparse.Namespace(lr=payload)},
    }[where]
    torch.save(content, tmp_path / "p.pt", _use_new_zipfile_serialization=zipped)
    assert_unreadable(tmp_path / "p.pt", "refused, it holds more than tensors and plain data")
    assert not made.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_plain_pickle_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "p.pt").write_bytes(pickle.dumps(Payload(tmp_path / "made")))
    assert_unreadable(tmp_path / "p.pt", "refused")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "expected a state dict, found a list"),
        (torch.ones(2), "expected a state dict, found a Tensor"),
        ({}, "expected a state dict of tensors, found nothing"),
        ({"model": {}}, "expected a state dict of tensors, found nothing"),
        ({"a": torch.ones(2), "lr": 0.1}, "found 'lr', which is a float"),
        ({"ema": {"a": {"b": torch.ones(2)}}}, "found 'a', which is a dict"),
        ({"a": torch.ones(2), None: None}, "found None, which is a NoneType"),
        ({0: torch.ones(2)}, "expected a state dict of tensors, found 0"),
    ],
)
def test_content_that_is_no_state_dict(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "p.pt")
    assert_unreadable(tmp_path / "p.pt", message)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_that_are_not_finite(
    tmp_path: Path, weights: Weights, value: float, dtype: torch.dtype
) -> None:
    bias = weights["blocks.2.mlp.fc1.bias"].to(dtype)
    bias[7] = value
    torch.save({"ema": weights | {"blocks.2.mlp.fc1.bias": bias}}, tmp_path / "p.pt")
    assert_unreadable(tmp_path / "p.pt", r"blocks\.2\.mlp\.fc1\.bias holds NaN or infinite values")


@pytest.mark.parametrize(
    "name", ["pos_embed", "x_embedder.proj.weight", "blocks.1.attn.qkv.bias", "t_embedder.mlp.0.weight"]
)
def test_missing_tensor(weights: Weights, name: str) -> None:
    del weights[name]
    with pytest.raises(CheckpointError, match=rf"{name}'? is missing"):
        load_predictor(checkpoint(weights), HEADS)


def test_missing_block(weights: Weights) -> None:
    without = {name: tensor for name, tensor in weights.items() if not name.startswith("blocks.1.")}
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.qkv\.weight is missing"):
        load_predictor(checkpoint(without), HEADS)


@pytest.mark.parametrize("name", ["blocks.0.extra", "blocks.first.bias", "decoder.weight"])
def test_unexpected_tensor(weights: Weights, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"unexpected tensor {name}"):
        load_predictor(checkpoint(weights | {name: torch.ones(1)}), HEADS)


def test_tensor_of_another_shape(weights: Weights) -> None:
    weights["blocks.1.mlp.fc2.bias"] = torch.ones(95)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.fc2\.bias is \(95,\), expected \(96,\)"):
        load_predictor(checkpoint(weights), HEADS)


@pytest.mark.parametrize(
    "name", ["pos_embed", "x_embedder.proj.weight", "final_layer.linear.weight", "y_embedder"]
)
def test_tensor_without_axes(refiner_weights: Weights, golden_predictor: SiT, name: str) -> None:
    key = next(key for key in refiner_weights if key.startswith(name))
    damaged = checkpoint(refiner_weights | {key: torch.tensor(1.0)})
    with pytest.raises(CheckpointError, match=r"^given\.pt: not a (SiT checkpoint|refiner)"):
        load_refiner(damaged, golden_predictor.config)
    with pytest.raises(CheckpointError, match=r"^given\.pt: not a SiT checkpoint"):
        load_predictor(damaged, HEADS)


def test_another_model_altogether(golden_predictor: SiT) -> None:
    weights = {"conv.weight": torch.ones(3)}
    with pytest.raises(CheckpointError, match=r"not a SiT checkpoint \('x_embedder"):
        load_predictor(checkpoint(weights), {})
    with pytest.raises(CheckpointError, match="not a refiner for this predictor"):
        load_refiner(checkpoint(weights), golden_predictor.config)


@pytest.mark.parametrize(
    ("field", "value", "actual"),
    [
        ("num_classes", 1000, 10),
        ("input_size", 32, 8),
        ("patch_size", 4, 2),
        ("in_channels", 16, 4),
        ("hidden_size", 384, 96),
        ("depth", 12, 3),
        ("learn_sigma", False, True),
    ],
)
def test_configuration_of_another_network(weights: Weights, field: str, value: Any, actual: Any) -> None:
    with pytest.raises(ConfigError, match=f"its {field} is {actual}, the configuration says {value}"):
        load_predictor(checkpoint(weights), HEADS | {field: value})


def test_name_of_another_network(weights: Weights) -> None:
    with pytest.raises(ConfigError, match="the configuration says"):
        load_predictor(checkpoint(weights), named_config("SiT-S/2"))


def test_heads_that_nothing_tells(weights: Weights) -> None:
    with pytest.raises(ConfigError, match=r"heads cannot be read .* width 96; give it with --config"):
        load_predictor(checkpoint(weights), {})


@pytest.mark.parametrize("heads", [0, -4, 5, "4", 4.0])
def test_heads_that_do_not_divide_the_width(weights: Weights, heads: Any) -> None:
    with pytest.raises(ConfigError, match=f"num_heads is {heads!r}, expected a divisor of the width 96"):
        load_predictor(checkpoint(weights), {"num_heads": heads})


def test_predictor_given_as_refiner(weights: Weights, golden_predictor: SiT) -> None:
    with pytest.raises(CheckpointError, match=r"not a refiner for this predictor: it reads 4 .* expected 8"):
        load_refiner(checkpoint(weights), golden_predictor.config)


def test_refiner_given_as_predictor(refiner_weights: Weights, golden_config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="reads and emits 8 channels, as a refiner does"):
        load_predictor(checkpoint(refiner_weights), HEADS)
    with pytest.raises(ConfigError, match="its in_channels is 8, the configuration says 4"):
        load_predictor(checkpoint(refiner_weights), golden_config | {"depth": 1})


def test_refiner_without_learn_sigma_given_as_predictor() -> None:
    refiner = SiT(SiTConfig(4, 2, 4, 16, 1, 2, 3, learn_sigma=False), refines=True)
    with pytest.raises(CheckpointError, match="not a SiT predictor: it reads 8 channels, emits 4"):
        load_predictor(checkpoint(refiner.state_dict()), {"num_heads": 2})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 1000}, "a refiner for another predictor: its num_classes is 10, .* is 1000"),
        ({"input_size": 16}, "a refiner for another predictor: its input_size is 8, .* is 16"),
        ({"in_channels": 16}, "not a refiner for this predictor: it reads 8 channels, expected 32"),
    ],
)
def test_refiner_of_another_predictor(
    refiner_weights: Weights, golden_predictor: SiT, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_refiner(checkpoint(refiner_weights), replace(golden_predictor.config, **change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"depht": 12}', "unknown field 'depht'; known are cfg_scale, depth"),
        ("[1]", "expected a JSON object"),
        ("{", "cannot be read as a JSON configuration"),
        ("", "cannot be read as a JSON configuration"),
    ],
)
def test_configuration_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "c.json")


def test_configuration_file_that_is_missing_or_binary(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as a JSON configuration"):
        read_config(tmp_path / "c.json")
    (tmp_path / "c.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as a JSON configuration"):
        read_config(tmp_path / "c.json")


def test_unknown_model_name() -> None:
    with pytest.raises(ConfigError, match="unknown model 'SiT-XXL/2'; known are SiT-S/2"):
        named_config("SiT-XXL/2")
