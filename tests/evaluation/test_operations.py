"""Counted operations against torch's own counter, closed forms, and what the modules hold."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flowturbo_trt.evaluation.operations import Cost, Operation, count_operations, roofline


class Mixed(nn.Module):
    """One operation of each kind, between some that are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, kernel_size=2, stride=2)
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 24)
        self.table = nn.Embedding(5, 24)

    def forward(self, state: Tensor, label: Tensor) -> Tensor:
        tokens = self.norm(self.convolution(state).flatten(2).transpose(1, 2))
        mixed = F.gelu(self.linear(tokens)) + self.table(label)[:, None]
        q, k, v = mixed.unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v)


SIZES = {"state": (2, 3, 8, 6), "label": (2,), "velocity": (2, 1)}


def test_operations_of_each_kind() -> None:
    """N = 12 tokens in 2 rows; a bias is read with its weight."""
    convolution, linear, attention = count_operations(Mixed().to("meta"), SIZES).operations
    assert convolution == Operation(2 * 24 * 8 * 12, 8 * 12 + 8, 2 * 3 * 48 + 24 * 8, False)
    assert linear == Operation(2 * 24 * 8 * 24, 8 * 24 + 24, 24 * 8 + 24 * 24, False)
    # Scores of 2 rows, 2 heads, then what they weigh: q, k, v in, one of the kind out.
    assert attention == Operation(2 * 2 * (2 * 2) * 12 * 12 * 4, 0, 4 * 24 * 8, False)


def test_nothing_is_counted_twice_or_left_out() -> None:
    module = Mixed()
    with FlopCounterMode(display=False) as counter:
        module.to("meta")(
            torch.empty(2, 3, 8, 6, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
        )
    assert count_operations(module, SIZES).flop == counter.get_total_flops() > 0


def test_costs_add_up() -> None:
    cost = Cost((Operation(10, 3, 1, True), Operation(20, 4, 1, False), Operation(30, 5, 1, True)))
    assert (cost.flop, cost.weights, cost.weight_bytes(2)) == (60, 12, 24)
    assert cost.conditioning == Cost((cost.operations[0], cost.operations[2]))


def test_roofline_takes_the_longer_of_arithmetic_and_traffic() -> None:
    """At 2 TFLOP/s and 3 GB/s: 4 ms of arithmetic hide 2 ms of traffic; 1 µs hides in 10 ms."""
    busy = Operation(8 * 10**9, 10**6, 2 * 10**6, False)
    idle = Operation(2 * 10**6, 14 * 10**6, 10**6, False)
    assert roofline(Cost((busy,)), 2, 3, itemsize=2) == pytest.approx(4e-3)
    assert roofline(Cost((idle,)), 2, 3, itemsize=2) == pytest.approx(10e-3)
    assert roofline(Cost((busy, idle)), 2, 3, itemsize=2) == pytest.approx(14e-3)
    assert roofline(Cost((idle,)), 2, 3, itemsize=4) == pytest.approx(20e-3)
