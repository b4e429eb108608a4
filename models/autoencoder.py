"""The two halves of an autoencoder: images to latents and back, through diffusers' AutoencoderKL."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor, nn

from flowturbo_trt.models.checkpoints import Checkpoint, CheckpointError, load_checkpoint

# The autoencoder of Stable Diffusion 1 and 2, which SiT uses; a single weights file does not say its shape.
STABLE_DIFFUSION_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 256,
    "scaling_factor": 0.18215,
}
RENAMED_LAYERS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Encoder(nn.Module):
    """Images (B,K,f·H,f·W) float32 in [-1,1] → mean and std (B,C,H,W) of the latents a flow model sees."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        config = autoencoder.config
        self.channels: int = config.in_channels
        self.latent_channels: int = config.latent_channels
        self.scaling_factor: float = config.scaling_factor
        self.shift_factor: float = getattr(config, "shift_factor", None) or 0.0
        self.downsampling = 2 ** (len(config.block_out_channels) - 1)
        self.quant_conv = autoencoder.quant_conv or nn.Identity()
        self.encoder = autoencoder.encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        # The bounds of diffusers' posterior, and of the original code's.
        std = torch.exp(0.5 * log_variance.clamp(-30, 20))
        return (mean - self.shift_factor) * self.scaling_factor, std * self.scaling_factor

    def weights_sha256(self) -> str:
        """Return a hash of the weights in float32, whatever file or layout they were read from."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.float().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()


class Decoder(nn.Module):
    """Latents (B,C,H,W) float32 → images (B,f·H,f·W,3) uint8; one-channel decoders repeat to RGB."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        config = autoencoder.config
        # What an AutoencoderKL of this shape is made with; the private entries are about files.
        self.config = {name: value for name, value in config.items() if not name.startswith("_")}
        self.latent_channels: int = config.latent_channels
        self.scaling_factor: float = config.scaling_factor
        self.shift_factor: float = getattr(config, "shift_factor", None) or 0.0
        self.upsampling = 2 ** (len(config.block_out_channels) - 1)
        self.post_quant_conv = autoencoder.post_quant_conv or nn.Identity()
        self.decoder = autoencoder.decoder

    def forward(self, state: Tensor) -> Tensor:
        return to_uint8(self.pixels(state))

    def pixels(self, state: Tensor) -> Tensor:
        """Return the decoder's raw output (B,K,f·H,f·W), nominally in [-1, 1]."""
        latents = state / self.scaling_factor + self.shift_factor
        pixels: Tensor = self.decoder(self.post_quant_conv(latents))
        return pixels


def to_uint8(pixels: Tensor) -> Tensor:
    """Convert (B,K,H,W) in [-1,1] to RGB uint8 (B,H,W,3) as bundle/FORMAT.md says: ⌊clip(127.5·p + 128)⌋."""
    levels = (127.5 * pixels + 128).clamp(0, 255).permute(0, 2, 3, 1)
    if levels.shape[-1] == 1:
        levels = levels.repeat(1, 1, 1, 3)
    # The cast truncates. It comes last because TensorRT takes uint8 only as a network's output.
    return levels.to(torch.uint8)


def load_autoencoder(path: str | Path) -> tuple[AutoencoderKL, Checkpoint]:
    """Load a diffusers directory, or one weights file in diffusers' or the original (LDM) layout.

    Beside a single file a `config.json` is used when there; otherwise the file must be the Stable
    Diffusion autoencoder. Raises CheckpointError.
    """
    path = Path(path)
    weights_file = _weights_in(path) if path.is_dir() else path
    checkpoint = load_checkpoint(weights_file)
    autoencoder = _build(weights_file.parent / "config.json", in_folder=path.is_dir())
    weights = dict(checkpoint.weights)
    if any(".mid.block_1." in name for name in weights):
        weights = convert_ldm_vae_checkpoint(weights, autoencoder.config)
    weights = {_current_name(name): tensor for name, tensor in weights.items()}
    try:
        autoencoder.load_state_dict({k: v.float() for k, v in weights.items()}, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{weights_file}: not the autoencoder its config.json describes: {reason}"
        ) from error
    return autoencoder.requires_grad_(False).eval(), checkpoint


def load_encoder(path: str | Path) -> tuple[Encoder, Checkpoint]:
    """Load the encoding half of an autoencoder (see load_autoencoder)."""
    autoencoder, checkpoint = load_autoencoder(path)
    return Encoder(autoencoder).eval(), checkpoint


def load_decoder(path: str | Path) -> tuple[Decoder, Checkpoint]:
    """Load the decoding half of an autoencoder (see load_autoencoder)."""
    autoencoder, checkpoint = load_autoencoder(path)
    return Decoder(autoencoder).eval(), checkpoint


def _weights_in(folder: Path) -> Path:
    names = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder}: expected a diffusers autoencoder, found no {names[0]}")
    return found


def _build(config_file: Path, *, in_folder: bool) -> AutoencoderKL:
    """Build the autoencoder of a configuration, without memory for its weights."""
    config = _read_config(config_file)
    if not in_folder and "_class_name" not in config:
        # Some other model's configuration that happens to lie beside the file.
        config = STABLE_DIFFUSION_CONFIG
    try:
        with torch.device("meta"):
            autoencoder: AutoencoderKL = AutoencoderKL.from_config(config)
        scale = float(autoencoder.config.scaling_factor)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{config_file}: describes no autoencoder that can be built ({error})"
        ) from error
    if getattr(autoencoder.config, "latents_mean", None) is not None:
        raise CheckpointError(f"{config_file}: has latents_mean and latents_std, which are not supported yet")
    if not 0 < scale < math.inf:
        raise CheckpointError(f"{config_file}: scaling_factor is {scale}, expected a positive number")
    return autoencoder


def _current_name(name: str) -> str:
    """Rename an attention weight as diffusers does on loading: published files have the names of 2022."""
    owner, _, layer = name.rpartition(".attentions.0.")
    kind, _, parameter = layer.partition(".")
    return f"{owner}.attentions.0.{RENAMED_LAYERS[kind]}.{parameter}" if kind in RENAMED_LAYERS else name


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return STABLE_DIFFUSION_CONFIG
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(config, dict) or config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise CheckpointError(f"{path}: expected the configuration of an AutoencoderKL")
    return config
