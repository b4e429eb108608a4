"""The checkpoints of a build: loaded, held against each other, and their provenance."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flowturbo_trt.bundle.store import sha256
from flowturbo_trt.export.options import BuildError, BuildOptions
from flowturbo_trt.export.sources import load_sources
from flowturbo_trt.models.checkpoints import CheckpointError, ConfigError
from flowturbo_trt.tests.bundles import TINY_CONFIG, save_autoencoder

Configured = Callable[..., BuildOptions]


@pytest.fixture
def configured(tiny_options: BuildOptions, tmp_path: Path) -> Configured:
    """Give a function that changes the tiny model's configuration file; None leaves a field out."""

    def change(**fields: Any) -> BuildOptions:
        given = {k: v for k, v in (TINY_CONFIG | fields).items() if v is not None}
        (tmp_path / "config.json").write_text(json.dumps(given))
        return replace(tiny_options, config=tmp_path / "config.json")

    return change


def test_networks(tiny_options: BuildOptions) -> None:
    sources = load_sources(tiny_options)
    assert (sources.predictor.refines, sources.predictor.config.depth) == (False, 1)
    assert sources.refiner is not None
    assert sources.refiner.refines
    assert sources.decoder is not None
    assert sources.decoder.latent_channels == 2
    assert sources.guided_channels == 2
    assert sources.default_guidance == 2.0


def test_predictor_alone(tiny_options: BuildOptions) -> None:
    sources = load_sources(replace(tiny_options, refiner=None, decoder=None))
    assert sources.refiner is None
    assert sources.decoder is None
    assert list(sources.provenance) == ["predictor"]


def test_provenance(golden_options: BuildOptions, golden_folder: Path) -> None:
    provenance = load_sources(golden_options).provenance
    assert provenance["predictor"] == {
        "file": "predictor.pt",
        "sha256": sha256(golden_folder / "predictor.pt"),
        "weights": "ema",
    }
    assert provenance["refiner"]["sha256"] == sha256(golden_folder / "refiner.pt")
    assert provenance["decoder"]["file"] == "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("weights", ["model", "ema"])
def test_the_set_that_was_taken(tiny_options: BuildOptions, tmp_path: Path, weights: str) -> None:
    state = load_file(tiny_options.predictor)
    content = {"model": {name: tensor + 1 for name, tensor in state.items()}, "opt": {}} | {weights: state}
    torch.save(content, tmp_path / "training.pt")
    sources = load_sources(replace(tiny_options, predictor=tmp_path / "training.pt"))
    assert sources.provenance["predictor"]["weights"] == weights
    torch.testing.assert_close(dict(sources.predictor.state_dict()), state, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("channels", "expected"), [("all", 2), (2, 2), (1, 1), (None, 2)], ids=["all", "2", "1", "default"]
)
def test_guided_channels(configured: Configured, channels: Any, expected: int) -> None:
    assert load_sources(configured(guided_channels=channels)).guided_channels == expected


def test_reference_guides_three_of_four(golden_options: BuildOptions, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_heads": 4}')
    sources = load_sources(replace(golden_options, config=tmp_path / "config.json"))
    assert sources.guided_channels == 3
    assert sources.default_guidance == 1.5
    assert sources.schedules == ()


@pytest.mark.parametrize("channels", [0, 3, -1, "some", 1.5, True, [1]])
def test_guided_channels_that_are_not_there(configured: Configured, channels: Any) -> None:
    with pytest.raises(ConfigError, match=r"guided_channels is .*, expected 'all' or 1 to 2"):
        load_sources(configured(guided_channels=channels))


@pytest.mark.parametrize("scale", ["1.5", [1], True, float("nan")])
def test_guidance_that_is_no_number(configured: Configured, scale: Any) -> None:
    with pytest.raises(ConfigError, match=r"cfg_scale is .*, expected a number"):
        load_sources(configured(cfg_scale=scale))


@pytest.mark.parametrize("schedules", ["H8", 8, [8], {"H8": 1}])
def test_schedules_that_are_no_list_of_texts(configured: Configured, schedules: Any) -> None:
    with pytest.raises(ConfigError, match=r"schedules are .*, expected a list"):
        load_sources(configured(schedules=schedules))


def test_heads_of_the_refiner(configured: Configured) -> None:
    """As the configuration says, where the checkpoint does not."""
    refiners = [load_sources(configured(refiner_heads=heads)).refiner for heads in (None, 4)]
    assert [refiner.config.num_heads for refiner in refiners if refiner] == [2, 4]


def test_configuration_that_contradicts_the_checkpoint(configured: Configured) -> None:
    with pytest.raises(ConfigError, match="its depth is 1, the configuration says 2"):
        load_sources(configured(depth=2))


def test_configuration_against_the_named_model(configured: Configured) -> None:
    """`--model` fills what `--config` leaves open, and may not contradict it."""
    with pytest.raises(ConfigError, match=r"depth is 12 in SiT-S/2, 1 in .*config\.json"):
        load_sources(replace(configured(num_heads=4), model="SiT-S/2"))


def test_named_model_of_another_shape(tiny_options: BuildOptions) -> None:
    with pytest.raises(ConfigError, match="its patch_size is 2, the configuration says 4"):
        load_sources(replace(tiny_options, config=None, model="SiT-S/4"))


def test_refiner_of_another_predictor(tiny_options: BuildOptions, golden_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"refiner\.pt: not a refiner for this predictor: it reads 8"):
        load_sources(replace(tiny_options, refiner=golden_folder / "refiner.pt"))


def test_refiner_of_another_depth(configured: Configured) -> None:
    with pytest.raises(ConfigError, match=r"refiner\.safetensors: its depth is 1, .*refiner_depth is 2"):
        load_sources(configured(refiner_depth=2))


def test_decoder_of_other_channels(tiny_options: BuildOptions, tmp_path: Path) -> None:
    decoder = save_autoencoder(tmp_path / "autoencoder", 4, 3, spread=1)
    with pytest.raises(BuildError, match="decodes 4 latent channels, the predictor has 2; give"):
        load_sources(replace(tiny_options, decoder=decoder))


@pytest.mark.parametrize("field", ["predictor", "refiner", "decoder", "config"])
def test_missing_file(tiny_options: BuildOptions, tmp_path: Path, field: str) -> None:
    gone: Any = {field: tmp_path / "gone.pt"}
    with pytest.raises((CheckpointError, ConfigError), match="gone"):
        load_sources(replace(tiny_options, **gone))
