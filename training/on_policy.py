"""On-policy distillation: the refiner learns from the predictor at the states a schedule takes it to.

The paper's objective (objective.py) draws states on the data's paths, and ages of the velocity to refine
from a range. Where a schedule is known, its own trajectories have exactly the states, times, ages and
errors that the refiner will meet, its own earlier errors included (cf. Ross et al., 2011, DAgger). They
start from noise, so no data is needed.
"""

import torch
from torch import Tensor, nn

from flowturbo_trt.export.networks import guide, with_guidance
from flowturbo_trt.models.sit import SiT
from flowturbo_trt.sampling.program import NOISE, Evaluate, Program
from flowturbo_trt.sampling.reference import combine


def on_policy_loss(
    predictor: SiT,
    refiner: nn.Module,
    program: Program,
    x0: Tensor,
    y: Tensor,
    guidance: Tensor | None = None,
    guided_channels: int = 0,
) -> Tensor:
    """Run a program from noise x0 (B,C,H,W) for labels y (B); return the loss per sample (B).

    The mean, over the program's refiner calls, of the squared difference between the refined velocity
    and the predictor's own at the same state and time. No gradient passes from one call to the next:
    a later call is not to make up for an earlier one. A program with guidance needs scales
    `guidance` (B), which apply to the first `guided_channels` channels. Guided velocities are compared
    in both halves, as the next call reads both.
    """
    networks = _Networks(predictor, refiner, y, guidance, guided_channels)
    values = {program.inputs[NOISE]: x0}
    calls: dict[int, Evaluate] = {}
    losses = []
    for instruction in program.instructions:
        out = instruction.out
        if isinstance(instruction, Evaluate):
            if instruction.network == "refiner":
                calls[out] = instruction
                values[out] = networks.offset(instruction, values)
            else:
                values[out] = networks.velocity(instruction, values[instruction.state])
            continue
        is_state = program.registers[out].kind == "state"
        values[out] = combine(instruction.terms, values, is_state)
        # Every reading of R adds an offset to a velocity before anything else becomes of it.
        for call in (calls[register] for register in instruction.reads if register in calls):
            teacher = networks.velocity(call, values[call.state])
            losses.append((values[out] - teacher).square().flatten(1).mean(1))
            values[out] = values[out].detach()
    return torch.stack(losses).mean(0)


class _Networks:
    """Predictor and refiner with labels and guidance bound, for evaluations of either variant."""

    def __init__(
        self, predictor: SiT, refiner: nn.Module, y: Tensor, guidance: Tensor | None, guided_channels: int
    ) -> None:
        self._predictor = predictor
        self._refiner = refiner
        self._y = y
        self._null = torch.full_like(y, predictor.config.null_label)
        self._guidance = guidance
        self._guided_channels = guided_channels

    @torch.no_grad()
    def velocity(self, call: Evaluate, state: Tensor) -> Tensor:
        """Return the predictor's velocity (B,G,C,H,W) at the state and time of a call, in float32."""
        given = {} if call.variant == "unguided" else {"guidance": self._guidance}
        network = with_guidance(self._predictor, call.variant, self._guided_channels, "fused")
        velocity: Tensor = network(state=state, time=self._time(call), label=self._y, **given)
        return velocity.float()

    def offset(self, call: Evaluate, values: dict[int, Tensor]) -> Tensor:
        """Return the refiner's offset (B,G,C,H,W) in float32.

        The halves are one call of the network itself: it may be one that is shared between processes.
        """
        assert call.velocity is not None
        x, v, t = values[call.state], values[call.velocity], self._time(call)
        if call.variant == "unguided":
            return self._call(x, t, self._y, v[:, 0])[:, None]
        assert self._guidance is not None
        doubled = (torch.cat([x, x]), torch.cat([t, t]), torch.cat([self._y, self._null]))
        c, u = self._call(*doubled, torch.cat([v[:, 0], v[:, -1]])).chunk(2)
        return guide(c, u, self._guidance, self._guided_channels)

    def _call(self, x: Tensor, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        offset: Tensor = self._refiner(x, t, y, v)
        return offset.float()

    def _time(self, call: Evaluate) -> Tensor:
        return torch.full(self._y.shape, call.time, device=self._y.device)
