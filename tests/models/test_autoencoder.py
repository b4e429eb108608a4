"""The decoder over small real autoencoders: values, layouts on disk, and what is rejected."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowturbo_trt.models.autoencoder import (
    STABLE_DIFFUSION_CONFIG,
    load_autoencoder,
    load_decoder,
    to_uint8,
)
from flowturbo_trt.models.checkpoints import CheckpointError

Weights = dict[str, Tensor]
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


def make_autoencoder(channels: int = 3, **changes: Any) -> AutoencoderKL:
    """Build a random autoencoder of two levels, which enlarges latents 2 times."""
    torch.manual_seed(0)
    config = {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "scaling_factor": 0.3,
    }
    autoencoder: AutoencoderKL = AutoencoderKL(**(config | changes)).eval()
    # An untrained output is all grey: spread it over the levels and past both ends.
    autoencoder.decoder.conv_out.weight.data *= 20
    return autoencoder


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKL:
    return make_autoencoder()


@pytest.fixture
def folder(tmp_path: Path, autoencoder: AutoencoderKL) -> Path:
    autoencoder.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))


def uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """Convert (B,3,H,W) to images (B,H,W,3) by the formula of the format."""
    levels = np.floor(np.clip(127.5 * pixels.detach().numpy() + 128, 0, 255)).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1))


@torch.no_grad()
def expected_images(autoencoder: AutoencoderKL, latents: Tensor) -> NDArray[np.uint8]:
    return uint8(autoencoder.decode(latents / autoencoder.config.scaling_factor).sample)


def assert_decodes(path: Path, autoencoder: AutoencoderKL, latents: Tensor) -> None:
    decoder, checkpoint = load_decoder(path)
    assert not decoder.training
    images = decoder(latents)
    assert images.dtype == torch.uint8
    expected = expected_images(autoencoder, latents)
    assert expected.min() == 0
    assert expected.max() == 255
    assert np.unique(expected).size > 100
    np.testing.assert_array_equal(images.numpy(), expected)
    assert len(checkpoint.sha256) == 64


def test_diffusers_folder(folder: Path, autoencoder: AutoencoderKL, latents: Tensor) -> None:
    assert_decodes(folder, autoencoder, latents)
    decoder, checkpoint = load_decoder(str(folder))
    assert decoder(latents).shape == (2, 12, 12, 3)
    assert (decoder.latent_channels, decoder.scaling_factor, decoder.upsampling) == (4, 0.3, 2)
    assert checkpoint.provenance()["file"] == WEIGHTS_FILE


def test_older_folder_with_torch_weights(folder: Path, autoencoder: AutoencoderKL, latents: Tensor) -> None:
    torch.save(load_file(folder / WEIGHTS_FILE), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS_FILE).unlink()
    assert_decodes(folder, autoencoder, latents)


@pytest.mark.parametrize("name", ["vae.safetensors", "vae.pt", "vae.ckpt"])
def test_single_file_beside_its_configuration(
    folder: Path, autoencoder: AutoencoderKL, latents: Tensor, name: str
) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    save: Callable[[Weights, Path], None] = save_file if name.endswith("safetensors") else torch.save
    save(weights, folder / name)
    (folder / WEIGHTS_FILE).unlink()
    assert_decodes(folder / name, autoencoder, latents)


def test_half_precision_weights_run_in_float32(folder: Path, latents: Tensor) -> None:
    half = {name: tensor.half() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    save_file(half, folder / WEIGHTS_FILE)
    decoder, _ = load_decoder(folder)
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in decoder.parameters())
    assert decoder.pixels(latents).dtype == torch.float32


def test_attention_names_of_published_files(
    folder: Path, autoencoder: AutoencoderKL, latents: Tensor
) -> None:
    """sd-vae-ft-ema and its kin were published before diffusers renamed these layers."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(folder / WEIGHTS_FILE)
    for now, then in old.items():
        weights = {name.replace(f".{now}.", f".{then}."): tensor for name, tensor in weights.items()}
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in weights
    save_file(weights, folder / WEIGHTS_FILE)
    assert_decodes(folder, autoencoder, latents)


# diffusers' name of a module → its name in the original (LDM) code; {up} counts from the other end there.
LDM_NAMES = [
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", r"up.\1.block.\2"),
    (r"up_blocks\.(\d)\.upsamplers\.0", r"up.\1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
]


def original_layout(weights: Weights, levels: int = 2) -> Weights:
    """Rename diffusers' weights to the original layout, where attention layers are 1×1 convolutions."""
    original = {}
    for name, tensor in weights.items():
        renamed = name
        for pattern, replacement in LDM_NAMES:
            renamed = re.sub(pattern, replacement, renamed)
        renamed = re.sub(r"\.up\.(\d)", lambda match: f".up.{levels - 1 - int(match[1])}", renamed)
        is_matrix = ".mid.attn_1." in renamed and tensor.ndim == 2
        original[renamed] = tensor[:, :, None, None] if is_matrix else tensor
    return original


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_original_layout(folder: Path, autoencoder: AutoencoderKL, latents: Tensor, prefix: str) -> None:
    weights = original_layout(load_file(folder / WEIGHTS_FILE))
    assert "decoder.up.1.block.0.norm1.weight" in weights
    content = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    torch.save({"state_dict": content, "global_step": 7}, folder / "vae.ckpt")
    assert_decodes(folder / "vae.ckpt", autoencoder, latents)


def test_one_channel_is_repeated_to_rgb(tmp_path: Path, latents: Tensor) -> None:
    grey = make_autoencoder(channels=1)
    grey.save_pretrained(tmp_path)
    images = load_decoder(tmp_path)[0](latents).numpy()
    assert images.shape == (2, 12, 12, 3)
    np.testing.assert_array_equal(images, np.repeat(expected_images(grey, latents), 3, axis=-1))


@pytest.mark.parametrize("changes", [{"use_post_quant_conv": False, "use_quant_conv": False}, {}])
def test_scale_and_shift_come_from_the_configuration(
    tmp_path: Path, latents: Tensor, changes: dict[str, Any]
) -> None:
    """As the diffusers pipelines do: divide, then shift."""
    shifted = make_autoencoder(scaling_factor=1.7, shift_factor=0.25, **changes)
    shifted.save_pretrained(tmp_path)
    decoder, _ = load_decoder(tmp_path)
    assert (decoder.scaling_factor, decoder.shift_factor) == (1.7, 0.25)
    with torch.no_grad():
        expected = shifted.decode(latents / 1.7 + 0.25).sample
    torch.testing.assert_close(decoder.pixels(latents), expected, rtol=0, atol=0)


def test_stable_diffusion_is_assumed_without_a_configuration(folder: Path) -> None:
    assert STABLE_DIFFUSION_CONFIG["scaling_factor"] == 0.18215
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"not the autoencoder its config\.json describes"):
        load_decoder(folder)


def test_encoder_is_loaded_too(folder: Path, autoencoder: AutoencoderKL) -> None:
    loaded, _ = load_autoencoder(folder)
    images = torch.rand(2, 3, 12, 12) * 2 - 1
    with torch.no_grad():
        expected = autoencoder.encode(images).latent_dist.mean
        assert torch.equal(loaded.encode(images).latent_dist.mean, expected)


def test_uint8_formula() -> None:
    """⌊clip(127.5·p + 128)⌋: level k begins at p = (k − 128)/127.5."""
    p = torch.tensor([-9.0, -1.0, -0.9961, -0.996, 0.0, 0.0078, 0.0079, 0.996, 0.9961, 1.0, 9.0])
    pixels = p.view(1, 1, 1, -1).repeat(1, 3, 1, 1)
    levels = to_uint8(pixels)
    assert levels.shape == (1, 1, len(p), 3)
    assert levels[0, 0, :, 0].tolist() == [0, 0, 0, 1, 128, 128, 129, 254, 255, 255, 255]


def test_images_keep_their_channels() -> None:
    pixels = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).repeat(1, 1, 2, 4)
    assert to_uint8(pixels)[0, 1, 3].tolist() == [0, 128, 255]


def write_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)


def rewrite_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_config(folder, json.dumps(config | changes))


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()


def truncated(folder: Path) -> None:
    whole = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(whole[: len(whole) // 2])


def without_a_tensor(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    del weights["decoder.conv_out.bias"]
    save_file(weights, folder / WEIGHTS_FILE)


def with_a_nan(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    weights["decoder.conv_in.bias"][0] = float("nan")
    save_file(weights, folder / WEIGHTS_FILE)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (without_weights, f"expected a diffusers autoencoder, found no {WEIGHTS_FILE}"),
    "truncated": (truncated, r"truncated\?"),
    "tensor missing": (without_a_tensor, r"not the autoencoder its config.*decoder\.conv_out\.bias"),
    "not finite": (with_a_nan, r"decoder\.conv_in\.bias holds NaN"),
    "other widths": (
        lambda folder: rewrite_config(folder, block_out_channels=[16, 16]),
        r"not the autoencoder its config\.json describes",
    ),
    "other class": (
        lambda folder: rewrite_config(folder, _class_name="UNet2DModel"),
        r"expected the configuration of an AutoencoderKL",
    ),
    "unknown block": (
        lambda folder: rewrite_config(folder, down_block_types=["Foo", "Foo"]),
        r"config\.json: describes no autoencoder that can be built",
    ),
    "groups": (
        lambda folder: rewrite_config(folder, norm_num_groups=3),
        r"config\.json: describes no autoencoder that can be built",
    ),
    "no scale": (
        lambda folder: rewrite_config(folder, scaling_factor=None),
        r"config\.json: describes no autoencoder that can be built",
    ),
    "scale 0": (lambda folder: rewrite_config(folder, scaling_factor=0), "scaling_factor is 0.0"),
    "cut JSON": (lambda folder: write_config(folder, "{"), "cannot be read as JSON"),
    "JSON list": (lambda folder: write_config(folder, "[]"), "expected the configuration of an Auto"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folder(folder: Path, damage: str) -> None:
    harm, message = DAMAGE[damage]
    harm(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_decoder(folder)
    assert "\n" not in str(caught.value)


def test_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        load_decoder(tmp_path / "vae")
