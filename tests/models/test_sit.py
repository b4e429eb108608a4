"""SiT against the reference's forward passes, parameter counts and checkpoint layout."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowturbo_trt.models.checkpoints import NAMED_MODELS
from flowturbo_trt.models.sit import MLP, SiT, SiTConfig, positional_embedding

Arrays = Mapping[str, NDArray[Any]]
TOLERANCE = 1e-4


def relative_l2(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture
def inputs(golden: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(golden[name]) for name in ("z", "fwd_t", "y", "fwd_v")}


def test_predictor_forward(golden: Arrays, golden_predictor: SiT, inputs: dict[str, Tensor]) -> None:
    found = golden_predictor(inputs["z"], inputs["fwd_t"], inputs["y"])
    assert found.dtype == torch.float32
    assert relative_l2(found, torch.from_numpy(golden["fwd_predictor"])) <= TOLERANCE


def test_predictor_forward_without_a_class(
    golden: Arrays, golden_predictor: SiT, inputs: dict[str, Tensor]
) -> None:
    y = torch.full_like(inputs["y"], golden_predictor.config.null_label)
    found = golden_predictor(inputs["z"], inputs["fwd_t"], y)
    assert relative_l2(found, torch.from_numpy(golden["fwd_predictor_null"])) <= TOLERANCE


def test_refiner_forward(golden: Arrays, golden_refiner: SiT, inputs: dict[str, Tensor]) -> None:
    found = golden_refiner(inputs["z"], inputs["fwd_t"], inputs["y"], inputs["fwd_v"])
    assert relative_l2(found, torch.from_numpy(golden["fwd_refiner"])) <= TOLERANCE


def test_three_channel_guidance(golden: Arrays, golden_predictor: SiT, inputs: dict[str, Tensor]) -> None:
    """Both halves at scale 1.5: channels 0–2 guided and equal, channel 3 each half's own."""
    z, t = inputs["z"], inputs["fwd_t"]
    null = torch.full_like(inputs["y"], golden_predictor.config.null_label)
    conditional, unconditional = golden_predictor(z, t, inputs["y"]), golden_predictor(z, t, null)
    guided = (unconditional + 1.5 * (conditional - unconditional))[:, :3]
    halves = [torch.cat([guided, half[:, 3:]], dim=1) for half in (conditional, unconditional)]
    assert relative_l2(torch.cat(halves), torch.from_numpy(golden["fwd_predictor_cfg"])) <= TOLERANCE


def test_positional_embedding_is_the_checkpoints(golden_predictor: SiT) -> None:
    config = golden_predictor.config
    computed = positional_embedding(config.grid, config.hidden_size)
    assert computed.shape == (1, config.grid**2, config.hidden_size)
    torch.testing.assert_close(computed, golden_predictor.pos_embed.detach(), rtol=0, atol=1e-7)


def test_positional_embedding_puts_the_column_first() -> None:
    grid, width = 3, 16
    embedding = positional_embedding(grid, width).unflatten(1, (grid, grid))[0]
    columns, rows = embedding[..., : width // 2], embedding[..., width // 2 :]
    assert torch.equal(columns[0], columns[2])
    assert torch.equal(rows[:, 0], rows[:, 2])
    assert torch.equal(columns[0], rows[:, 0])
    frequency = 10_000 ** (-1 / (width // 4))
    expected = torch.tensor([0, frequency, 2 * frequency]).sin()
    torch.testing.assert_close(columns[0, :, 1], expected)


def build(name: str, *, refines: bool = False, **changes: Any) -> SiT:
    """Build a published model for 4×32×32 latents without memory for its weights."""
    config = SiTConfig(input_size=32, in_channels=4, num_classes=1000, **(NAMED_MODELS[name] | changes))
    with torch.device("meta"):
        return SiT(config, refines=refines)


def parameters(network: SiT) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("SiT-S/2", 32_963_360),
        ("SiT-B/2", 130_512_416),
        ("SiT-L/2", 458_102_816),
        ("SiT-XL/2", 675_129_632),
    ],
)
def test_parameter_counts(name: str, count: int) -> None:
    assert parameters(build(name)) == count


def test_refiner_of_the_largest_model() -> None:
    refiner = build("SiT-XL/2", refines=True, depth=1)
    assert parameters(refiner) == 29_708_960
    assert len(refiner.state_dict()) == 22
    assert refiner.x_embedder.proj.weight.shape == (1152, 8, 2, 2)


def test_state_dict_of_the_largest_model() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in build("SiT-XL/2").state_dict().items()}
    D = 1152
    expected: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, 256, D),
        "x_embedder.proj.weight": (D, 4, 2, 2),
        "x_embedder.proj.bias": (D,),
        "y_embedder.embedding_table.weight": (1001, D),
    }
    linears = {
        "t_embedder.mlp.0": (D, 256),
        "t_embedder.mlp.2": (D, D),
        "final_layer.linear": (32, D),
        "final_layer.adaLN_modulation.1": (2 * D, D),
    }
    for i in range(28):
        linears |= {
            f"blocks.{i}.attn.qkv": (3 * D, D),
            f"blocks.{i}.attn.proj": (D, D),
            f"blocks.{i}.mlp.fc1": (4 * D, D),
            f"blocks.{i}.mlp.fc2": (D, 4 * D),
            f"blocks.{i}.adaLN_modulation.1": (6 * D, D),
        }
    for name, shape in linears.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    assert len(expected) == 292
    assert shapes == expected


def test_refiner_differs_from_a_predictor_in_one_tensor() -> None:
    shapes = [
        {name: tensor.shape for name, tensor in build("SiT-S/4", refines=refines).state_dict().items()}
        for refines in (False, True)
    ]
    different = [name for name in shapes[0] if shapes[0][name] != shapes[1][name]]
    assert shapes[0].keys() == shapes[1].keys()
    assert different == ["x_embedder.proj.weight"]


TINY = SiTConfig(
    input_size=4,
    patch_size=2,
    in_channels=3,
    hidden_size=16,
    depth=2,
    num_heads=2,
    num_classes=5,
)


def test_initialisation_of_the_reference() -> None:
    torch.manual_seed(0)
    network = SiT(replace(TINY, hidden_size=64))
    zero = [name for name, parameter in network.named_parameters() if not parameter.any()]
    biases = [name for name in zero if name.endswith("bias")]
    assert biases == [name for name, _ in network.named_parameters() if name.endswith("bias")]
    assert [name for name in zero if name.endswith("weight")] == [
        "blocks.0.adaLN_modulation.1.weight",
        "blocks.1.adaLN_modulation.1.weight",
        "final_layer.linear.weight",
        "final_layer.adaLN_modulation.1.weight",
    ]
    weights = network.state_dict()
    for name in ("y_embedder.embedding_table.weight", "t_embedder.mlp.2.weight"):
        assert float(weights[name].std()) == pytest.approx(0.02, rel=0.2)
    assert float(weights["blocks.0.attn.qkv.weight"].abs().max()) == pytest.approx(
        (6 / (4 * 64)) ** 0.5, rel=0.02
    )


def test_an_untrained_network_is_at_rest() -> None:
    network = SiT(TINY)
    x = torch.randn(2, 3, 4, 4)
    assert not network(x, torch.rand(2), torch.tensor([0, 5])).any()


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_variance_channels_are_dropped(learn_sigma: bool) -> None:
    """Of 2·C outputs the first C are the velocity; inside a token the channel runs fastest."""
    torch.manual_seed(1)
    network = SiT(replace(TINY, learn_sigma=learn_sigma))
    outputs = network.config.out_channels
    bias = network.final_layer.linear.bias
    assert bias.shape == (4 * outputs,)
    with torch.no_grad():
        bias.copy_(torch.arange(4 * outputs))
    image = network(torch.zeros(1, 3, 4, 4), torch.zeros(1), torch.zeros(1, dtype=torch.int64))[0]
    assert image.shape == (3, 4, 4)
    for channel in range(3):
        for row, column in ((0, 0), (1, 0), (2, 3), (3, 1)):
            assert image[channel, row, column] == ((row % 2) * 2 + column % 2) * outputs + channel


def test_mlp_uses_the_tanh_form_of_gelu() -> None:
    """The two forms differ by less than the goldens can tell."""
    mlp = MLP(1)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.fill_(0)
        mlp.fc1.weight[0] = 1
        mlp.fc2.weight[0, 0] = 1
    x = torch.linspace(-4, 4, 41, dtype=torch.float64)
    expected = x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    torch.testing.assert_close(mlp(x.float()[:, None])[:, 0].double(), expected, rtol=1e-5, atol=1e-6)


def test_patches_return_to_their_places() -> None:
    network = SiT(replace(TINY, learn_sigma=False))
    image = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4)
    patches = image.unfold(2, 2, 2).unfold(3, 2, 2)
    tokens = patches.permute(0, 2, 3, 4, 5, 1).reshape(2, 4, 12)
    assert torch.equal(network.unpatchify(tokens), image)


def test_samples_of_a_batch_do_not_mix(golden_predictor: SiT, inputs: dict[str, Tensor]) -> None:
    together = golden_predictor(inputs["z"], inputs["fwd_t"], inputs["y"])
    for i in range(len(together)):
        alone = golden_predictor(*(inputs[name][i : i + 1] for name in ("z", "fwd_t", "y")))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5)
