"""What a user names as data: what is opened, and whether it fits the model and the autoencoder."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowturbo_trt.models.sit import SiT
from flowturbo_trt.tests.bundles import save_autoencoder
from flowturbo_trt.tests.training.caches import (
    autoencoder,
    encoded,
    random_moments,
    save_pictures,
    write_cache,
)
from flowturbo_trt.training.data import DataError, check_fits, check_same_autoencoder, open_source
from flowturbo_trt.training.image_encoder import EncodeError
from flowturbo_trt.training.image_latents import ImageLatents
from flowturbo_trt.training.latent_cache import LatentCache, ShardedCache

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_autoencoder(tmp_path_factory.mktemp("vae"), 2, 3, spread=4)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A cache of the pictures by the autoencoder of `vae`, with mirror images."""
    place = tmp_path_factory.mktemp("encoded")
    encoded(pictures, autoencoder(place / "vae"), place / "cache", flip=True)
    return place / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(random_moments(5), tmp_path / "latents.safetensors")
    return tmp_path / "latents.safetensors"


def test_a_file_a_folder_and_images(file: Path, folder: Path, pictures: Path, vae: Path) -> None:
    assert isinstance(open_source(str(file)), LatentCache)
    assert isinstance(open_source(folder), ShardedCache)
    on_the_fly = open_source(pictures, encoder=vae, size=16, flip=True)
    assert isinstance(on_the_fly, ImageLatents)
    found, expected = on_the_fly.batch(3, 4, seed=0), open_source(folder).batch(3, 4, seed=0)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-6)


def test_what_is_said_of_a_cache_is_checked(folder: Path, vae: Path) -> None:
    assert len(open_source(folder, encoder=vae, size=16, flip=True)) == 9
    with pytest.raises(DataError, match=r"cache: was made of images of 16 pixels, not 32; encode them again"):
        open_source(folder, size=32)


def test_mirror_images_may_be_left_unused(folder: Path, pictures: Path, vae: Path) -> None:
    assert open_source(folder).provenance["flip"] == "True"
    plain, both = open_source(folder, flip=False), open_source(folder)
    assert plain.provenance["flip"] == "False"
    assert any(not torch.equal(plain.batch(s, 4, 0)[0], both.batch(s, 4, 0)[0]) for s in range(3))
    assert open_source(pictures, encoder=vae, size=16).provenance["flip"] == "False"


def test_mirror_images_that_are_not_there(file: Path) -> None:
    with pytest.raises(DataError, match=r"holds no mirrored images; encode them again with --flip"):
        open_source(file, flip=True)


@pytest.mark.parametrize("given", [{"encoder": "vae"}, {"size": 16}])
def test_a_file_does_not_tell_what_made_it(file: Path, given: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"does not tell its encoder and size; leave them out"):
        open_source(file, **given)


def test_images_need_an_encoder_and_a_size(pictures: Path, vae: Path, tmp_path: Path) -> None:
    for given in ({}, {"encoder": vae}, {"size": 16}):
        with pytest.raises(DataError, match="is a folder of 9 images; give an encoder and a size to encode"):
            open_source(pictures, **given)
    with pytest.raises(EncodeError, match="size is 15, expected a multiple of the encoder's 2"):
        open_source(pictures, encoder=vae, size=15)
    with pytest.raises(DataError, match="holds no images"):
        open_source(tmp_path)


def test_half_made_cache_is_no_folder_of_images(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "cache.json").rename(copy / "encoding.json")
    with pytest.raises(DataError, match="is not finished"):
        open_source(copy)


def test_caches_open_without_diffusers(file: Path) -> None:
    """Which takes seconds to import."""
    code = (
        "import sys; from flowturbo_trt.training.data import open_source; open_source(sys.argv[1]); "
        "sys.exit('diffusers' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code, str(file)], cwd=root, check=False).returncode == 0


def test_fits(predictor: SiT, folder: Path, tmp_path: Path) -> None:
    check_fits(LatentCache(**random_moments(5)), predictor.config, batch=5)
    check_fits(open_source(write_cache(tmp_path / "c", random_moments(5), (2, 3))), predictor.config, 5)
    with pytest.raises(DataError, match=r"latents are \(2, 8, 8\), the predictor reads \(2, 4, 4\)"):
        check_fits(open_source(folder), predictor.config)


def test_too_few_latents(predictor: SiT) -> None:
    cache = LatentCache(**random_moments(5))
    with pytest.raises(DataError, match="the cache holds 5 latents, fewer than one batch of 6"):
        check_fits(cache, predictor.config, batch=6)
    empty = LatentCache(cache.mean[:0], cache.std[:0], cache.label[:0])
    with pytest.raises(DataError, match="the cache holds 0 latents, fewer than one batch of 1"):
        check_fits(empty, predictor.config)


def test_labels_outside_the_classes(predictor: SiT, tmp_path: Path) -> None:
    """Said with the count, the expected range and the first of them: the image, where it is known."""
    moments = random_moments(6)
    moments["label"] = torch.tensor([0, 2, 3, 1, 7, 3])
    problem = (
        "labels go from 0 to 7, the predictor has 3 classes; 3 of 6 latents are not of 0 to 2, the first"
    )
    with pytest.raises(DataError, match=f"{problem} is row 2 with label 3"):
        check_fits(LatentCache(**moments), predictor.config)
    with pytest.raises(DataError, match=rf"{problem} is 2\.png with label 3"):
        check_fits(ShardedCache.load(write_cache(tmp_path / "c", moments, (2, 4))), predictor.config)
    negative = replace(LatentCache(**moments), label=moments["label"] % 3 - 1)
    with pytest.raises(DataError, match=r"labels go from -1 to 1, .* the first is row 0 with label -1"):
        check_fits(negative, predictor.config)


def changed_autoencoder(vae: Path, folder: Path, part: str) -> Path:
    copy = Path(shutil.copytree(vae, folder / "changed"))
    weights = load_file(copy / WEIGHTS_FILE)
    (name, *_) = [name for name in weights if name.startswith(part)]
    weights[name] = weights[name].clone() + 1
    save_file(weights, copy / WEIGHTS_FILE)
    return copy


@pytest.mark.parametrize("part", ["decoder.", "post_quant_conv."])
def test_another_decoder_is_the_same_autoencoder(folder: Path, vae: Path, tmp_path: Path, part: str) -> None:
    """As ft-ema and ft-mse are."""
    check_same_autoencoder(open_source(folder), vae)
    check_same_autoencoder(open_source(folder), changed_autoencoder(vae, tmp_path, part))


@pytest.mark.parametrize("part", ["encoder.", "quant_conv."])
def test_another_encoder_is_not(folder: Path, vae: Path, tmp_path: Path, part: str) -> None:
    other = changed_autoencoder(vae, tmp_path, part)
    message = (
        rf"changed/{WEIGHTS_FILE}: is not the autoencoder that made the latents \({WEIGHTS_FILE}\): encoder "
        "weights [0-9a-f]{12}, expected [0-9a-f]{12}"
    )
    with pytest.raises(DataError, match=message):
        check_same_autoencoder(open_source(folder), other)
    with pytest.raises(DataError, match=message):
        open_source(folder, encoder=other)


def test_images_encoded_on_the_fly_tell_their_encoder_too(pictures: Path, vae: Path, tmp_path: Path) -> None:
    source = open_source(pictures, encoder=vae, size=16)
    check_same_autoencoder(source, changed_autoencoder(vae, tmp_path / "a", "decoder."))
    with pytest.raises(DataError, match="is not the autoencoder that made the latents"):
        check_same_autoencoder(source, changed_autoencoder(vae, tmp_path / "b", "encoder."))


def test_another_scale_is_not(folder: Path, vae: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(vae, tmp_path / "copy"))
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace('"scaling_factor": 0.3', '"scaling_factor": 0.4'))
    with pytest.raises(DataError, match=r"scaling_factor 0\.4, expected 0\.3"):
        check_same_autoencoder(open_source(folder), copy)


def test_other_channels_are_another_autoencoder(folder: Path, tmp_path: Path) -> None:
    other = save_autoencoder(tmp_path / "other", 4, 3, spread=4)
    with pytest.raises(DataError, match="encoder weights"):
        check_same_autoencoder(open_source(folder), other)


def test_a_file_passes_as_nothing_is_known_of_it(file: Path) -> None:
    check_same_autoencoder(open_source(file), Path("not even there"))
