"""A predictor and a latent cache small enough to train on in a moment."""

import signal
from collections.abc import Iterator

import pytest
import torch

from flowturbo_trt.models.sit import SiT, SiTConfig
from flowturbo_trt.training.data import LatentCache

CONFIG = SiTConfig(
    input_size=4, patch_size=2, in_channels=2, hidden_size=16, depth=1, num_heads=2, num_classes=3
)


@pytest.fixture(autouse=True)
def few_threads(one_thread: None) -> None:
    """Train everything here in one thread."""


@pytest.fixture(autouse=True)
def default_signals() -> Iterator[None]:
    """Signals do what they do in a process of its own: jobs in the background may be deaf to Ctrl-C."""
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def predictor() -> SiT:
    """A predictor whose velocity depends on state, time and label: untrained ones are zero."""
    torch.manual_seed(0)
    network = SiT(CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network.requires_grad_(False).eval()


@pytest.fixture
def cache() -> LatentCache:
    random = torch.Generator().manual_seed(1)
    mean = torch.randn(10, 2, 4, 4, generator=random)
    return LatentCache(mean, 0.1 * torch.rand(mean.shape, generator=random), torch.arange(10) % 3)
