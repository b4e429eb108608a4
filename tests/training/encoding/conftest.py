"""Pictures, two of them unreadable, and an autoencoder to encode them with."""

from pathlib import Path

import pytest

from flowturbo_trt.models.autoencoder import Encoder, load_encoder
from flowturbo_trt.models.checkpoints import Checkpoint
from flowturbo_trt.tests.training.caches import autoencoder, save_pictures

Made = tuple[Encoder, Checkpoint]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    autoencoder(folder)
    return folder


@pytest.fixture(scope="module")
def made(vae: Path) -> Made:
    return load_encoder(vae)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten files in three classes; of the second four, one is cut short and one is text."""
    root = save_pictures(tmp_path_factory.mktemp("pictures"))
    whole = (root / "bee" / "1.png").read_bytes()
    (root / "bee" / "1.png").write_bytes(whole[: len(whole) // 2])
    (root / "bee" / "3.png").write_text("no image")
    return root


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "cache"
