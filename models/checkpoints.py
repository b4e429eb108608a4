"""Checkpoints of SiT networks: read weights-only, checked, and turned into networks."""

import argparse
import hashlib
import json
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from flowturbo_trt.models.published import NAMED_MODELS as NAMED_MODELS
from flowturbo_trt.models.published import PUBLISHED_HEADS as PUBLISHED_HEADS
from flowturbo_trt.models.sit import SiT, SiTConfig
from flowturbo_trt.sampling.errors import FlowTurboError

# The sets of weights a file may hold beside other things, the preferred first.
SETS = ("ema", "model", "state_dict")
# What a configuration file may say beside the predictor's shape: about its use (export/use.py), and about
# the refiner what its checkpoint does not tell.
EXTRA_FIELDS = {"guided_channels", "cfg_scale", "refiner_depth", "refiner_heads", "schedules"}
# Where a safetensors file's header has the network's configuration, as JSON of SiTConfig's fields.
CONFIG_KEY = "flowturbo_trt.config"


class CheckpointError(FlowTurboError):
    """A checkpoint cannot be read, or is not of the network it was given as."""


class ConfigError(FlowTurboError):
    """A model configuration is incomplete, unknown or contradicts the checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one file; `chosen` says which of its SETS they are, or bare.

    `config` is what the file's header says of the network, which is nothing in most.
    """

    path: Path
    weights: Mapping[str, Tensor]
    chosen: str
    sha256: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def provenance(self) -> dict[str, str]:
        return {"file": self.path.name, "sha256": self.sha256, "weights": self.chosen}


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a `.pt` or `.safetensors` file without running any code in it; EMA weights are preferred.

    Raises CheckpointError for a file that is missing, truncated, holds no state dict, or has NaN or
    infinite values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file; give a .pt or .safetensors file")
    content, config = _read(path)
    chosen = next((name for name in SETS if isinstance(content.get(name), Mapping)), "bare")
    state = content if chosen == "bare" else content[chosen]
    strays = [key for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if not state or strays:
        found = f"{strays[0]!r}, which is a {type(state[strays[0]]).__name__}" if strays else "nothing"
        raise CheckpointError(f"{path}: expected a state dict of tensors, found {found}")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values; the checkpoint is unusable")
    return Checkpoint(path, state, chosen, file_sha256(path), config)


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return what a file holds, and the configuration in its header."""
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        # Published checkpoints carry their training arguments; a Namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped where the format allows it: large checkpoints then are not copied into memory.
            mapped = zipfile.is_zipfile(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path}: refused, it holds more than tensors and plain data, or is damaged ({reason}); "
            "save its state dict alone"
        ) from error
    # The restricted unpickler raises whatever damaged bytes lead it to.
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path}: cannot be read as a checkpoint, truncated? ({reason})") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a state dict, found a {type(content).__name__}")
    return content, {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        config: dict[str, Any] = json.loads((file.metadata() or {}).get(CONFIG_KEY, "{}"))
    return tensors, config


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a model configuration (JSON, field names of SiTConfig plus EXTRA_FIELDS)."""
    try:
        given = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a JSON configuration ({error})") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: expected a JSON object of configuration fields")
    known = {field.name for field in fields(SiTConfig)} | EXTRA_FIELDS
    if unknown := sorted(set(given) - known):
        raise ConfigError(f"{path}: unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return given


def named_config(name: str) -> dict[str, Any]:
    """Return what a published model's name tells, e.g. `SiT-XL/2`."""
    if name not in NAMED_MODELS:
        raise ConfigError(f"unknown model {name!r}; known are {', '.join(NAMED_MODELS)}")
    return dict(NAMED_MODELS[name])


def given_config(model: str | None, config: str | Path | None) -> dict[str, Any]:
    """Join what a published model's name and a configuration file tell; a contradiction is an error."""
    named = named_config(model) if model else {}
    read = read_config(config) if config else {}
    for name in sorted(named.keys() & read.keys()):
        if named[name] != read[name]:
            raise ConfigError(
                f"{name} is {named[name]} in {model}, {read[name]} in {config}; give one of them"
            )
    return named | read


def inspect_shape(checkpoint: Checkpoint, *, refines: bool) -> dict[str, Any]:
    """Return the SiTConfig fields that the tensors tell: all but `num_heads`."""
    weights = checkpoint.weights
    try:
        width, channels, patch, _ = weights["x_embedder.proj.weight"].shape
        tokens = weights["pos_embed"].shape[1]
        outputs = weights["final_layer.linear.weight"].shape[0] // patch**2
        classes = weights["y_embedder.embedding_table.weight"].shape[0] - 1
    except KeyError as error:
        raise CheckpointError(f"{checkpoint.path}: not a SiT checkpoint ({error} is missing)") from error
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: not a SiT checkpoint (a tensor's shape: {error})"
        ) from error
    latent_channels = channels // 2 if refines else channels
    grid = math.isqrt(tokens)
    if grid * grid != tokens or outputs not in (latent_channels, 2 * latent_channels):
        kind = "refiner" if refines else "predictor"
        raise CheckpointError(
            f"{checkpoint.path}: not a SiT {kind}: it reads {channels} channels, emits {outputs} and has "
            f"{tokens} positions"
        )
    blocks = {match[1] for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))}
    return {
        "input_size": grid * patch,
        "patch_size": patch,
        "in_channels": latent_channels,
        "hidden_size": width,
        "depth": len(blocks),
        "num_classes": classes,
        "learn_sigma": outputs == 2 * latent_channels,
    }


def resolve_config(checkpoint: Checkpoint, given: Mapping[str, Any], *, refines: bool) -> SiTConfig:
    """Join what the checkpoint tells with what the user gave; a contradiction is an error."""
    told = inspect_shape(checkpoint, refines=refines)
    # Emitting what it reads is what a refiner with learn_sigma does, and a predictor without.
    ambiguous = not refines and not told["learn_sigma"] and told["in_channels"] % 2 == 0
    if ambiguous and not {"in_channels", "learn_sigma"} & set(given):
        raise CheckpointError(
            f"{checkpoint.path}: reads and emits {told['in_channels']} channels, as a refiner does; if it is "
            "a predictor without learn_sigma, say so with --config"
        )
    for name, value in told.items():
        if name in given and given[name] != value:
            raise ConfigError(
                f"{checkpoint.path}: its {name} is {value}, the configuration says {given[name]}; "
                "give the configuration of this checkpoint"
            )
    heads = given.get("num_heads", PUBLISHED_HEADS.get(told["hidden_size"]))
    if heads is None:
        raise ConfigError(
            f"{checkpoint.path}: the number of attention heads cannot be read from a checkpoint of width "
            f"{told['hidden_size']}; give it with --config (num_heads) or --model"
        )
    if not isinstance(heads, int) or heads < 1 or told["hidden_size"] % heads:
        raise ConfigError(f"num_heads is {heads!r}, expected a divisor of the width {told['hidden_size']}")
    return SiTConfig(num_heads=heads, **told)


def load_predictor(checkpoint: Checkpoint, given: Mapping[str, Any]) -> SiT:
    """Build the predictor a checkpoint holds, in float32 and evaluation mode."""
    return _load(checkpoint, resolve_config(checkpoint, given, refines=False), refines=False)


def load_refiner(checkpoint: Checkpoint, predictor: SiTConfig, heads: int | None = None) -> SiT:
    """Build the refiner a checkpoint holds and check that it belongs to this predictor.

    Its depth, width and patch size are its own. Attention heads are those of the file's header, else
    `heads`, else the predictor's where the width is the same, else the published ones of the width.
    """
    embedding = checkpoint.weights.get("x_embedder.proj.weight")
    channels = 0 if embedding is None or embedding.ndim != 4 else embedding.shape[1]
    if channels != 2 * predictor.in_channels:
        raise CheckpointError(
            f"{checkpoint.path}: not a refiner for this predictor: it reads {channels} channels, expected "
            f"{2 * predictor.in_channels} (latent and velocity)"
        )
    told = inspect_shape(checkpoint, refines=True)
    for name in ("input_size", "in_channels", "num_classes"):
        if told[name] != getattr(predictor, name):
            raise CheckpointError(
                f"{checkpoint.path}: a refiner for another predictor: its {name} is {told[name]}, the "
                f"predictor's is {getattr(predictor, name)}"
            )
    given = {"num_heads": _refiner_heads(checkpoint, told["hidden_size"], predictor, heads)}
    return _load(checkpoint, resolve_config(checkpoint, given, refines=True), refines=True)


def _refiner_heads(checkpoint: Checkpoint, width: int, predictor: SiTConfig, given: int | None) -> Any:
    told = checkpoint.config.get("num_heads", given)
    if given not in (None, told):
        raise ConfigError(
            f"{checkpoint.path}: its num_heads is {told}, the configuration's refiner_heads is {given}; "
            "leave refiner_heads out"
        )
    heads = PUBLISHED_HEADS.get(width) if told is None else told
    if told is None and width == predictor.hidden_size:
        heads = predictor.num_heads
    if heads is None:
        raise ConfigError(
            f"{checkpoint.path}: the number of attention heads cannot be read from a refiner of width "
            f"{width} (the predictor's is {predictor.hidden_size}); give it as refiner_heads with --config"
        )
    return heads


def _load(checkpoint: Checkpoint, config: SiTConfig, *, refines: bool) -> SiT:
    # Built without memory of its own: the parameters become the checkpoint's tensors.
    with torch.device("meta"):
        network = SiT(config, refines=refines)
    weights = {name: tensor.float() for name, tensor in checkpoint.weights.items()}
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    for name, shape in expected.items():
        if name not in weights:
            raise CheckpointError(f"{checkpoint.path}: {name} is missing")
        if weights[name].shape != shape:
            found = tuple(weights[name].shape)
            raise CheckpointError(f"{checkpoint.path}: {name} is {found}, expected {tuple(shape)}")
    if unexpected := sorted(set(weights) - set(expected)):
        raise CheckpointError(f"{checkpoint.path}: unexpected tensor {unexpected[0]}")
    network.load_state_dict(weights, assign=True)
    network.t_embedder.reset_frequencies()
    return network.requires_grad_(False).eval()
