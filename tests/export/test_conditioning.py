"""Hoisted conditioning: conditioner and trunk compute what the whole network does, from its own weights."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.export.networks import (
    Conditioner,
    Guided,
    Unguided,
    conditioner,
    is_conditioning,
    padded_modulation_width,
    part_of,
    split_modulations,
    velocity_halves,
    with_guidance,
)
from flowturbo_trt.models.sit import SiT
from flowturbo_trt.tests.bundles import TINY_CONFIG, random_network

# Modulations of 128 values, which need no padding; of 224 with two blocks, padded to 256; of 96, to 128.
CONFIGS = {
    "whole": TINY_CONFIG,
    "two blocks": TINY_CONFIG | {"depth": 2},
    "padded": TINY_CONFIG | {"hidden_size": 12},
}
WIDTHS = {"whole": (128, 128), "two blocks": (224, 256), "padded": (96, 128)}
# Float32 with another order of summation.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    network: SiT
    state: Tensor
    time: Tensor
    label: Tensor
    guidance: Tensor
    velocity: Tensor

    def velocities(self, halves: int) -> list[Tensor]:
        """The earlier velocity (B,G,C,H,W), where the network reads one."""
        return [self.velocity[:, :halves]] if self.network.refines else []

    def modulations(self) -> tuple[Tensor, Tensor]:
        """Those of the labels and of none."""
        part, null = conditioner(self.network), torch.full_like(self.label, self.network.config.null_label)
        return part(self.time, self.label), part(self.time, null)


@pytest.fixture(params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["predictor", "refiner"])
def case(name: str, request: pytest.FixtureRequest) -> Case:
    """Five rows, each at a time, with a label and of a guidance scale of its own."""
    random = torch.Generator().manual_seed(3)
    return Case(
        random_network(CONFIGS[name], refines=request.param),
        torch.randn(5, 2, 4, 4, generator=random),
        torch.rand(5, generator=random),
        torch.tensor([0, 2, 1, 1, 0]),
        torch.tensor([1.5, 0.0, 1.0, 4.0, -2.0]),
        torch.randn(5, 2, 2, 4, 4, generator=random),
    )


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    for row in range(len(expected)):
        assert relative_l2(found[row].numpy(), expected[row].numpy()) <= TOLERANCE


@pytest.mark.parametrize("channels", [1, 2], ids=["one channel", "all channels"])
@torch.no_grad()
def test_guided(case: Case, channels: int) -> None:
    velocity = case.velocities(velocity_halves(channels, 2))
    whole = Guided(case.network, channels)
    expected = whole(case.state, case.time, case.label, case.guidance, *velocity)
    trunk = with_guidance(case.network, "guided", channels, "hoisted")
    modulation, null = case.modulations()
    assert_close(trunk(case.state, modulation, null, case.guidance, *velocity), expected)
    # Label and none are told apart.
    exchanged = trunk(case.state, null, modulation, case.guidance, *velocity)
    assert relative_l2(exchanged.numpy(), expected.numpy()) > 100 * TOLERANCE


@torch.no_grad()
def test_unguided(case: Case) -> None:
    velocity = case.velocities(1)
    expected = Unguided(case.network)(case.state, case.time, case.label, *velocity)
    modulation, null = case.modulations()
    trunk = with_guidance(case.network, "unguided", 2, "hoisted")
    assert_close(trunk(case.state, modulation, *velocity), expected)
    assert relative_l2(trunk(case.state, null, *velocity).numpy(), expected.numpy()) > 100 * TOLERANCE


@torch.no_grad()
def test_modulations_are_padded_with_zeros_that_nothing_reads(name: str, case: Case) -> None:
    width, padded = WIDTHS[name]
    config = case.network.config
    assert (config.modulation_width, padded_modulation_width(config)) == (width, padded)
    modulation, _ = case.modulations()
    assert modulation.shape == (5, padded)
    assert not modulation[:, width:].any()
    velocity = case.velocities(1)
    trunk = with_guidance(case.network, "unguided", 2, "hoisted")
    expected = trunk(case.state, modulation, *velocity)
    modulation[:, width:] = float("nan")
    torch.testing.assert_close(trunk(case.state, modulation, *velocity), expected, rtol=0, atol=0)


@torch.no_grad()
def test_modulations_are_taken_apart_as_they_were_put_together(case: Case) -> None:
    network = case.network
    expected = network.modulations(network.condition(case.time, case.label))
    found = split_modulations(Conditioner(network)(case.time, case.label), network.config)
    assert [part.shape[1] for part in found] == [6 * network.config.hidden_size] * network.config.depth + [
        2 * network.config.hidden_size
    ]
    for part, one in zip(found, expected, strict=True):
        torch.testing.assert_close(part, one, rtol=0, atol=0)


def test_parts_share_the_weights_without_overlap_or_loss(case: Case) -> None:
    network = case.network
    whole = {name: tensor.data_ptr() for name, tensor in network.named_parameters()}
    parts = [
        {name: tensor.data_ptr() for name, tensor in part_of(network, conditioning=given).named_parameters()}
        for given in (True, False)
    ]
    assert parts[0].keys().isdisjoint(parts[1])
    assert parts[0] | parts[1] == whole
    # The network they were taken from stays whole.
    assert {name: tensor.data_ptr() for name, tensor in network.named_parameters()} == whole


def test_what_belongs_to_the_conditioning(case: Case) -> None:
    """Both embeddings and every adaLN layer, and nothing that works on tokens."""
    found = {name for name, _ in case.network.named_parameters() if is_conditioning(name)}
    assert {name.split(".")[0] for name in found} == {"t_embedder", "y_embedder", "blocks", "final_layer"}
    assert sum(".adaLN_modulation." in name for name in found) == 2 * (case.network.config.depth + 1)
    assert not any(word in name for name in found for word in ("attn", "mlp.fc", "linear", "x_embedder"))
    assert len(found) == 2 * (case.network.config.depth + 1) + 4 + 1


def test_a_part_is_as_large_as_what_it_holds(case: Case) -> None:
    """Layers of the other part are empty, not merely unused."""
    sizes = [
        sum(tensor.nbytes for tensor in module.state_dict().values())
        for module in (
            case.network,
            conditioner(case.network),
            with_guidance(case.network, "guided", 2, "hoisted"),
        )
    ]
    assert sizes[0] == sizes[1] + sizes[2]
    assert min(sizes) > 0
