"""The encoder over small real autoencoders: values, and a hash of its weights alone."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowturbo_trt.models.autoencoder import Encoder, load_decoder, load_encoder
from flowturbo_trt.tests.models.test_autoencoder import WEIGHTS_FILE, make_autoencoder, original_layout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_autoencoder().save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channels": 1},
        {"scaling_factor": 1.7, "shift_factor": 0.25},
        {"use_quant_conv": False, "use_post_quant_conv": False},
    ],
)
def test_moments_are_those_of_diffusers(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Shifted, then scaled, as the diffusers pipelines do; the spread is scaled alone."""
    autoencoder = make_autoencoder(**changes)
    autoencoder.save_pretrained(tmp_path)
    encoder, checkpoint = load_encoder(tmp_path)
    assert encoder.channels == changes.get("channels", 3)
    assert (encoder.latent_channels, encoder.downsampling) == (4, 2)
    assert not encoder.training
    assert checkpoint.path.name == WEIGHTS_FILE
    images = torch.rand(2, encoder.channels, 12, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, std = encoder(images)
    assert mean.shape == std.shape == (2, 4, 6, 8)
    assert not mean.requires_grad
    with torch.no_grad():
        posterior = autoencoder.encode(images).latent_dist
    scale, shift = changes.get("scaling_factor", 0.3), changes.get("shift_factor", 0.0)
    assert torch.equal(mean, (posterior.mean - shift) * scale)
    assert torch.equal(std, posterior.std * scale)


def test_decoding_undoes_scale_and_shift(tmp_path: Path) -> None:
    autoencoder = make_autoencoder(scaling_factor=1.7, shift_factor=0.25)
    autoencoder.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, _ = load_encoder(tmp_path)[0](images)
    with torch.no_grad():
        expected = autoencoder.decode(autoencoder.encode(images).latent_dist.mean).sample
    torch.testing.assert_close(load_decoder(tmp_path)[0].pixels(mean), expected, rtol=1e-3, atol=1e-4)


def test_spread_is_bounded() -> None:
    """As diffusers' posterior is: a wild log-variance must not overflow."""
    autoencoder = make_autoencoder(scaling_factor=1.0)
    for bias, expected in ((1e3, 10.0), (-1e3, -15.0)):
        autoencoder.quant_conv.bias.data[4:] = bias
        _, std = Encoder(autoencoder)(torch.zeros(1, 3, 4, 4))
        torch.testing.assert_close(std.log(), torch.full_like(std, expected))


def sha256(path: Path) -> str:
    return load_encoder(path)[0].weights_sha256()


def test_hash_is_of_the_encoder_alone(folder: Path, tmp_path: Path) -> None:
    """Whatever decoder is beside it, whatever the file's layout."""
    expected = sha256(folder)
    weights = load_file(folder / WEIGHTS_FILE)
    seen = {expected}
    for number, part in enumerate(("decoder.conv_in", "post_quant_conv", "encoder.conv_in", "quant_conv")):
        copy = Path(shutil.copytree(folder, tmp_path / str(number)))
        changed = {name: t + 1 if name.startswith(part) else t for name, t in weights.items()}
        save_file(changed, copy / WEIGHTS_FILE)
        assert (sha256(copy) == expected) == ("decoder" in part or "post" in part)
        seen.add(sha256(copy))
    assert len(seen) == 3
    save_file(original_layout(weights), folder / "vae.safetensors")
    assert sha256(folder / "vae.safetensors") == expected


def test_hash_tells_which_weight_is_where(folder: Path) -> None:
    encoder, _ = load_encoder(folder)
    before = encoder.weights_sha256()
    first, second = (encoder.encoder.mid_block.resnets[i].norm1.bias.data for i in range(2))
    first.copy_(torch.arange(16.0))
    changed = encoder.weights_sha256()
    second.copy_(first)
    first.zero_()
    moved = encoder.weights_sha256()
    encoder.quant_conv.weight.data = encoder.quant_conv.weight.data.view(4, 16, 1, 1)
    assert len({before, changed, moved, encoder.weights_sha256()}) == 4
