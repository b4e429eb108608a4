"""What is exported: networks with classifier-free guidance inside, ready to be engines.

Inputs and outputs are those of bundle/FORMAT.md: `state` (B,C,H,W), `time` (B), `label` (B) int64,
`guidance` (B), for refiners `velocity` (B,G,C,H,W); output `velocity` or `offset` (B,G,C,H,W).
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from flowturbo_trt.models.sit import SiT


class Unguided(nn.Module):
    """A network evaluated for its label alone: half the work, G = 1."""

    def __init__(self, network: SiT) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: Tensor, time: Tensor, label: Tensor, velocity: Tensor | None = None) -> Tensor:
        v = None if velocity is None else velocity[:, 0]
        result: Tensor = self.network(state, time, label, v)
        return result[:, None]


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
        network, B = self.network, state.shape[0]
        t = network.t_embedder(time)
        null = network.y_embedder(torch.full_like(label, network.config.null_label))
        condition = torch.cat([t + network.y_embedder(label), t + null])
        halves = network.trunk(self._tokens(state, velocity), condition)
        # Slices, because chunk and split would fix the batch size while tracing.
        return self._guide(halves[:B], halves[B:], guidance[:, None, None, None])

    def _tokens(self, state: Tensor, velocity: Tensor | None) -> Tensor:
        """Embed both halves as tokens (2B,N,D), once where they agree."""
        if velocity is None or velocity.shape[1] == 1:
            tokens = self.network.tokens(state, None if velocity is None else velocity[:, 0])
            return torch.cat([tokens, tokens])
        doubled = torch.cat([velocity[:, 0], velocity[:, 1]])
        return self.network.tokens(torch.cat([state, state]), doubled)

    def _guide(self, c: Tensor, u: Tensor, s: Tensor) -> Tensor:
        k = self.guided_channels
        guided = u[:, :k] + s * (c[:, :k] - u[:, :k])
        if k == c.shape[1]:
            return guided[:, None]
        return torch.stack([torch.cat([guided, half[:, k:]], dim=1) for half in (c, u)], dim=1)


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


def with_guidance(network: SiT, variant: str, guided_channels: int) -> "Guided | Unguided":
    """Wrap a network as the engines of a variant need it."""
    return Guided(network, guided_channels) if variant == "guided" else Unguided(network)


def velocity_halves(guided_channels: int, latent_channels: int) -> int:
    """Return G, the halves a guided velocity carries."""
    return 1 if guided_channels == latent_channels else 2
