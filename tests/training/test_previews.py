"""Images during training: real files of the averaged refiner's samples, the same noise every time."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowturbo_trt.commands.files import grid
from flowturbo_trt.models.autoencoder import Decoder, load_decoder
from flowturbo_trt.models.checkpoints import load_checkpoint, load_refiner
from flowturbo_trt.models.sit import SiT
from flowturbo_trt.sampling.schedule import ScheduleError
from flowturbo_trt.tests.bundles import save_autoencoder
from flowturbo_trt.tests.training.runs import h1r1
from flowturbo_trt.training.config import TrainingConfig, TrainingError
from flowturbo_trt.training.data import LatentCache
from flowturbo_trt.training.previews import Previews
from flowturbo_trt.training.train_refiner import train_refiner

Write = Callable[[NDArray[np.uint8], Path], None]
CONFIG = TrainingConfig(steps=4, batch=4, learning_rate=1e-2, ema=0.5)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """A decoder of two latent channels to grey images of 8×8."""
    folder = save_autoencoder(tmp_path_factory.mktemp("previews") / "autoencoder", 2, 1, spread=4)
    return load_decoder(folder)[0]


def write(images: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(grid(images, columns=5)).save(path)


def test_files_show_the_averaged_refiner(
    tmp_path: Path, predictor: SiT, cache: LatentCache, decoder: Decoder
) -> None:
    """Ten images, more than are sampled at a time, in a row of five and another."""
    previews = Previews(decoder, write, every=2, schedule="H1R1", guidance=2.0, images=10)
    path = train_refiner(predictor, cache, CONFIG, tmp_path, previews=previews, tensorboard=True)
    files = sorted((tmp_path / "previews").iterdir())
    assert [file.name for file in files] == ["step-00000002.png", "step-00000004.png"]
    pictures = [np.array(Image.open(file)) for file in files]
    refiner = load_refiner(load_checkpoint(path), predictor.config)
    images = decoder(h1r1(predictor, refiner, 10, guidance=2.0)).numpy()
    expected = grid(images, columns=5)
    assert pictures[1].shape == expected.shape == (16, 40, 3)
    assert np.abs(pictures[1].astype(int) - expected).max() <= 1
    assert len(np.unique(expected)) > 20
    assert (pictures[0] != pictures[1]).any()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [image.step for image in events.Images("preview")] == [2, 4]


def test_training_is_the_same_with_them(
    tmp_path: Path, predictor: SiT, cache: LatentCache, decoder: Decoder
) -> None:
    previews = Previews(decoder, write, every=1, schedule="H1R1:guided=0..0.3", images=2)
    config = replace(CONFIG, precision="bf16")
    shown = train_refiner(predictor, cache, config, tmp_path / "shown", previews=previews)
    alone = train_refiner(predictor, cache, config, tmp_path / "alone")
    assert shown.read_bytes() == alone.read_bytes()


def test_decoder_of_another_model(
    tmp_path: Path, predictor: SiT, cache: LatentCache, decoder: Decoder
) -> None:
    other = load_decoder(save_autoencoder(tmp_path / "autoencoder", 4, 1, spread=1))[0]
    with pytest.raises(TrainingError, match="the decoder has 4 latent channels, the predictor 2"):
        train_refiner(predictor, cache, CONFIG, tmp_path / "run", previews=Previews(other, write))
    assert not (tmp_path / "run").exists()


def test_options_out_of_range(decoder: Decoder) -> None:
    with pytest.raises(TrainingError, match="previews are 16 images every 0 steps, expected at least 1 each"):
        Previews(decoder, write, every=0)
    with pytest.raises(TrainingError, match="previews are 0 images every 1000 steps"):
        Previews(decoder, write, images=0)
    with pytest.raises(ScheduleError, match="starts with R"):
        Previews(decoder, write, schedule="R1")


def test_place_that_cannot_be_written(
    tmp_path: Path, predictor: SiT, cache: LatentCache, decoder: Decoder
) -> None:
    (tmp_path / "previews").write_text("")
    previews = Previews(decoder, write, every=1, schedule="H1R1", images=1)
    with pytest.raises(TrainingError, match=r"step-00000001\.png: cannot be written"):
        train_refiner(predictor, cache, CONFIG, tmp_path, previews=previews)
