"""What is exported: networks with classifier-free guidance inside, ready to be engines.

Inputs and outputs are those of bundle/FORMAT.md: `state` (B,C,H,W), `time` (B), `label` (B) int64,
`guidance` (B), for refiners `velocity` (B,G,C,H,W); output `velocity` or `offset` (B,G,C,H,W).

Where the conditioning is hoisted, a network is two: a Conditioner from time and label to `modulation`
(B,M), which does not depend on the state and so is known for all steps beforehand, and a trunk that
takes it in place of them.
"""

import copy
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowturbo_trt.models.sit import SiT, SiTConfig

# Rows of modulations are found at any multiple of themselves, where TensorRT wants aligned addresses.
MODULATION_MULTIPLE = 64
# Rows of a conditioner's call where engines fix them: seven times for a batch of eight, in one call.
CONDITIONER_ROWS = 64


class Unguided(nn.Module):
    """A network evaluated for its label alone: half the work, G = 1."""

    def __init__(self, network: SiT) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: Tensor, time: Tensor, label: Tensor, velocity: Tensor | None = None) -> Tensor:
        modulations = self.network.modulations(self.network.condition(time, label))
        return self.evaluate(state, modulations, velocity)

    def evaluate(self, state: Tensor, modulations: list[Tensor], velocity: Tensor | None) -> Tensor:
        tokens = self.network.tokens(state, None if velocity is None else velocity[:, 0])
        return self.network.trunk(tokens, modulations)[:, None]


class UnguidedTrunk(Unguided):
    """`Unguided` without its conditioning, which comes as `modulation` (B,M)."""

    def forward(  # type: ignore[override]  # an engine of its own, with inputs of its own
        self, state: Tensor, modulation: Tensor, velocity: Tensor | None = None
    ) -> Tensor:
        return self.evaluate(state, split_modulations(modulation, self.network.config), velocity)


class Guided(nn.Module):
    """A network evaluated for its label (conditional, c) and for no label (unconditional, u).

    The first `guided_channels` channels are u + s·(c − u) in both halves. The rest stay c in the
    conditional and u in the unconditional half: the reference guides three of four channels. When all
    channels are guided both halves agree, and G is 1 instead of 2.
    """

    def __init__(self, network: SiT, guided_channels: int) -> None:
        super().__init__()
        self.network = network
        self.guided_channels = guided_channels

    def forward(
        self, state: Tensor, time: Tensor, label: Tensor, guidance: Tensor, velocity: Tensor | None = None
    ) -> Tensor:
        network = self.network
        t = network.t_embedder(time)
        null = network.y_embedder(torch.full_like(label, network.config.null_label))
        condition = torch.cat([t + network.y_embedder(label), t + null])
        return self.evaluate(state, network.modulations(condition), guidance, velocity)

    def evaluate(
        self, state: Tensor, modulations: list[Tensor], guidance: Tensor, velocity: Tensor | None
    ) -> Tensor:
        B = state.shape[0]
        halves = self.network.trunk(self._tokens(state, velocity), modulations)
        # Slices, because chunk and split would fix the batch size while tracing.
        return guide(halves[:B], halves[B:], guidance, self.guided_channels)

    def _tokens(self, state: Tensor, velocity: Tensor | None) -> Tensor:
        """Embed both halves as tokens (2B,N,D), once where they agree."""
        if velocity is None or velocity.shape[1] == 1:
            tokens = self.network.tokens(state, None if velocity is None else velocity[:, 0])
            return torch.cat([tokens, tokens])
        doubled = torch.cat([velocity[:, 0], velocity[:, 1]])
        return self.network.tokens(torch.cat([state, state]), doubled)


def guide(c: Tensor, u: Tensor, guidance: Tensor, guided_channels: int) -> Tensor:
    """Join the halves (B,C,H,W) with scales (B) to (B,G,C,H,W), as `Guided` tells."""
    k, s = guided_channels, guidance[:, None, None, None]
    guided = u[:, :k] + s * (c[:, :k] - u[:, :k])
    if k == c.shape[1]:
        return guided[:, None]
    return torch.stack([torch.cat([guided, half[:, k:]], dim=1) for half in (c, u)], dim=1)


class GuidedTrunk(Guided):
    """`Guided` without its conditioning: `modulation` (B,M) of the label, `null_modulation` of none."""

    def forward(
        self,
        state: Tensor,
        modulation: Tensor,
        null_modulation: Tensor,
        guidance: Tensor,
        velocity: Tensor | None = None,
    ) -> Tensor:
        halves = torch.cat([modulation, null_modulation])
        return self.evaluate(state, split_modulations(halves, self.network.config), guidance, velocity)


class Conditioner(nn.Module):
    """Everything a network computes from time (B) and label (B) alone: `modulation` (B,M).

    M is the modulation width, rounded up to a multiple of MODULATION_MULTIPLE with zeros.
    """

    def __init__(self, network: SiT) -> None:
        super().__init__()
        self.network = network

    def forward(self, time: Tensor, label: Tensor) -> Tensor:
        modulation = torch.cat(self.network.modulations(self.network.condition(time, label)), dim=1)
        config = self.network.config
        padding = padded_modulation_width(config) - config.modulation_width
        return F.pad(modulation, (0, padding)) if padding else modulation


def with_guidance(network: SiT, variant: str, guided_channels: int, conditioning: str) -> nn.Module:
    """Wrap a network as the engines of a variant need it; a hoisted one is the trunk's part of it."""
    if conditioning == "hoisted":
        trunk = part_of(network, conditioning=False)
        return GuidedTrunk(trunk, guided_channels) if variant == "guided" else UnguidedTrunk(trunk)
    return Guided(network, guided_channels) if variant == "guided" else Unguided(network)


def conditioner(network: SiT) -> Conditioner:
    """Return what `with_guidance` leaves out of a hoisted network."""
    return Conditioner(part_of(network, conditioning=True))


def part_of(network: SiT, *, conditioning: bool) -> SiT:
    """Return a network with the layers of its conditioning only, or with all others; weights are shared."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    part = copy.deepcopy(network, dict(shared))
    for name, _ in list(part.named_parameters()):
        if is_conditioning(name) != conditioning:
            owner, _, parameter = name.rpartition(".")
            setattr(part.get_submodule(owner), parameter, None)
    return part


def is_conditioning(parameter: str) -> bool:
    """Tell whether a SiT's parameter works on time and label alone."""
    return parameter.startswith(("t_embedder.", "y_embedder.")) or ".adaLN_modulation." in parameter


def padded_modulation_width(config: SiTConfig) -> int:
    """Return M."""
    return -(-config.modulation_width // MODULATION_MULTIPLE) * MODULATION_MULTIPLE


def split_modulations(modulation: Tensor, config: SiTConfig) -> list[Tensor]:
    """Take modulations (B,M) apart, as SiT.trunk wants them."""
    D = config.hidden_size
    ends = accumulate([6 * D] * config.depth + [2 * D], initial=0)
    return [modulation[:, start:end] for start, end in pairwise(ends)]


def velocity_outputs_only(network: SiT) -> SiT:
    """Drop the output channels that are no velocity from the last layer; the weights stay shared."""
    config = network.config
    if not config.learn_sigma:
        return network
    with torch.device("meta"):
        pruned = SiT(replace(config, learn_sigma=False), refines=network.refines)
    weights = dict(network.state_dict())
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        # Rows are ordered (row, column, channel): the kept ones are strided, not the first ones.
        rows = weights[name].unflatten(0, (config.patch_size**2, config.out_channels))
        weights[name] = rows[:, : config.in_channels].flatten(0, 1)
    pruned.load_state_dict(weights, assign=True)
    pruned.t_embedder.reset_frequencies()
    return pruned.requires_grad_(False).eval()


def velocity_halves(guided_channels: int, latent_channels: int) -> int:
    """Return G, the halves a guided velocity carries."""
    return 1 if guided_channels == latent_channels else 2
