"""SiT: the scalable interpolant transformer, as velocity predictor and as FlowTurbo velocity refiner.

Parameter names and layouts are those of the published checkpoints (github.com/willisma/SiT and
github.com/shiml20/FlowTurbo), so their state dicts load as they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_FREQUENCIES = 128
MAX_PERIOD = 10_000.0


@dataclass(frozen=True)
class SiTConfig:
    """Shape of a SiT; field names are those of the reference's constructor.

    `input_size` is the side of the square latent, `in_channels` its channels C; a refiner has the
    same C and reads 2·C channels. `learn_sigma` means that the last layer emits 2·C channels, of
    which the first C are the velocity.
    """

    input_size: int
    patch_size: int
    in_channels: int
    hidden_size: int
    depth: int
    num_heads: int
    num_classes: int
    learn_sigma: bool = True

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.input_size // self.patch_size

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def modulation_width(self) -> int:
        """Values by which one condition steers all blocks and the final layer (adaLN)."""
        return (6 * self.depth + 2) * self.hidden_size

    @property
    def null_label(self) -> int:
        """The label that stands for "no class"."""
        return self.num_classes


class SiT(nn.Module):
    """Velocity field on latents: (x (B,C,H,W), t (B) in [0,1], y (B) int64) → (B,C,H,W) float32.

    With `refines=True` it is the FlowTurbo refiner (paper §3.2): it also reads the previous velocity
    `v` (B,C,H,W), concatenated after x, and returns the *offset* to add to v.
    """

    family = "sit"

    def __init__(self, config: SiTConfig, *, refines: bool = False) -> None:
        super().__init__()
        self.config = config
        self.refines = refines
        D, p = config.hidden_size, config.patch_size
        self.x_embedder = PatchEmbedding(config.in_channels * (2 if refines else 1), D, p)
        self.t_embedder = TimeEmbedding(D)
        self.y_embedder = LabelEmbedding(config.num_classes, D)
        self.pos_embed = nn.Parameter(positional_embedding(config.grid, D), requires_grad=False)
        self.blocks = nn.ModuleList(Block(D, config.num_heads) for _ in range(config.depth))
        self.final_layer = FinalLayer(D, p * p * config.out_channels)
        self.reset_parameters()

    def forward(self, x: Tensor, t: Tensor, y: Tensor, v: Tensor | None = None) -> Tensor:
        return self.trunk(self.tokens(x, v), self.modulations(self.condition(t, y)))

    def tokens(self, x: Tensor, v: Tensor | None = None) -> Tensor:
        """Embed the latents (and, for a refiner, the previous velocity) as tokens (B,N,D)."""
        channels = x if v is None else torch.cat([x, v], dim=1)
        tokens: Tensor = self.x_embedder(channels) + self.pos_embed
        return tokens

    def condition(self, t: Tensor, y: Tensor) -> Tensor:
        """Embed time and label as the conditioning vector (B,D)."""
        condition: Tensor = self.t_embedder(t) + self.y_embedder(y)
        return condition

    def modulations(self, condition: Tensor) -> list[Tensor]:
        """Return how the condition (B,D) steers each block, (B,6D), and the final layer, (B,2D)."""
        return [layer.adaLN_modulation(condition) for layer in (*self.blocks, self.final_layer)]

    def trunk(self, tokens: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """Run the blocks and the final layer on tokens (B,N,D), steered as told → velocity (B,C,H,W)."""
        *of_blocks, of_final_layer = modulations
        for block, modulation in zip(self.blocks, of_blocks, strict=True):
            tokens = block(tokens, modulation)
        return self.unpatchify(self.final_layer(tokens, of_final_layer))[:, : self.config.in_channels]

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Lay (B,N,p·p·K) tokens out as (B,K,H,W); inside a token the order is row, column, channel."""
        p, g = self.config.patch_size, self.config.grid
        patches: Tensor = tokens.unflatten(2, (p, p, -1)).unflatten(1, (g, g))
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def reset_parameters(self) -> None:
        """Initialise as the reference does: Xavier, small embeddings, zero gates and zero output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)  # type: ignore[arg-type]
        for weight in (
            self.y_embedder.embedding_table.weight,
            self.t_embedder.mlp[0].weight,
            self.t_embedder.mlp[2].weight,
        ):
            nn.init.normal_(weight, std=0.02)  # type: ignore[arg-type]
        for layer in (*self.blocks, self.final_layer):
            nn.init.zeros_(layer.adaLN_modulation[1].weight)
            nn.init.zeros_(layer.adaLN_modulation[1].bias)
        nn.init.zeros_(self.final_layer.linear.weight)
        nn.init.zeros_(self.final_layer.linear.bias)


class PatchEmbedding(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        patches: Tensor = self.proj(x)
        return patches.flatten(2).transpose(1, 2)


class TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.frequencies: Tensor
        self.reset_frequencies()

    def reset_frequencies(self) -> None:
        """Compute the constants, which no checkpoint holds."""
        k = torch.arange(TIME_FREQUENCIES, dtype=torch.float32)
        frequencies = torch.exp(-math.log(MAX_PERIOD) * k / TIME_FREQUENCIES)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None].float() * self.frequencies
        embedding: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return embedding


class LabelEmbedding(nn.Module):
    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        embedding: Tensor = self.embedding_table(y)
        return embedding


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return x


class Block(nn.Module):
    """Transformer block with adaptive layer norm (adaLN-Zero).

    Its own `adaLN_modulation` is not called by `forward`, which takes the result: see SiT.modulations.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = MLP(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation[:, None].chunk(6, dim=-1)
        x = x + gate_a * self.attn(modulate(x, shift_a, scale_a))
        x = x + gate_m * self.mlp(modulate(x, shift_m, scale_m))
        return x


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale = modulation[:, None].chunk(2, dim=-1)
        x = self.linear(modulate(x, shift, scale))
        return x


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise tokens (B,N,D) over D, then scale and shift them by (B,1,D)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def positional_embedding(grid: int, width: int) -> Tensor:
    """Return the fixed sine-cosine embedding (1, grid², width): first half column, second half row."""
    frequencies = MAX_PERIOD ** (-np.arange(width // 4, dtype=np.float64) / (width / 4))
    angles = np.arange(grid, dtype=np.float64)[:, None] * frequencies
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    columns = np.tile(axis, (grid, 1))
    rows = np.repeat(axis, grid, axis=0)
    return torch.from_numpy(np.concatenate([columns, rows], axis=1)).float()[None]
