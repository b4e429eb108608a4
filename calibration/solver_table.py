"""Learning a solver table: the linear multistep method that ends closest to where a fine solver ends.

The coefficients over all past velocities and the time grid are fitted by gradient through the sampler,
from Adams–Bashforth's. As in Shaul et al., "Bespoke Non-Stationary Solvers" (2024), few parameters make
a solver of a model's own: they are fitted on some hundred trajectories, and judged on others.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowturbo_trt.calibration.endpoints import CalibrationError, Endpoints, Progress
from flowturbo_trt.evaluation.torch_reference import TorchNetworks
from flowturbo_trt.runtime.programs import choose_variant
from flowturbo_trt.runtime.request import Request
from flowturbo_trt.sampling.steps import Passed, linear_multistep, multistep_weights
from flowturbo_trt.sampling.table import SolverTable

ORDERS = (1, 2, 3, 4)


@dataclass(frozen=True)
class FitOptions:
    """How a table is fitted.

    A table has `evaluations` of the predictor and `refined` steps after them. Training ends after `steps`
    optimizer steps, `seconds`, or when `patience` looks at the held-out rows have found nothing better.
    `recompute` trades a third more time for the memory of all but one evaluation.
    """

    evaluations: int = 7
    refined: int = 0
    steps: int = 300
    batch: int = 16
    learning_rate: float = 0.03
    look_every: int = 20
    patience: int = 5
    seconds: float = math.inf
    recompute: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("evaluations", "steps", "batch", "look_every", "patience"):
            if getattr(self, name) < 1:
                raise CalibrationError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.refined < 0 or self.seed < 0:
            raise CalibrationError(
                f"refined is {self.refined} and seed {self.seed}, expected at least 0 of each"
            )
        if not self.learning_rate > 0 or not self.seconds > 0:
            raise CalibrationError("expected learning_rate > 0 and seconds > 0")

    def check_trajectories(self, count: int) -> None:
        """Make sure that so many trajectories fill a batch; raises CalibrationError."""
        if self.batch > count:
            raise CalibrationError(f"batch is {self.batch}, there are {count} trajectories to fit on")


@dataclass(frozen=True)
class Look:
    """Relative errors after so many steps, root mean square: of held-out rows, of those just fitted on."""

    step: int
    error: float
    trained_error: float | None

    def describe(self) -> dict[str, Any]:
        # JSON has no number for what is not finite.
        return {**asdict(self), "error": self.error if math.isfinite(self.error) else None}


@dataclass(frozen=True)
class Fit:
    """A table and how it came about; `initial` is the held-out error of each order it might start from."""

    table: SolverTable
    order: int
    initial: dict[int, float]
    looks: tuple[Look, ...]
    seconds: float

    @property
    def error(self) -> float:
        """The held-out error of the table, root mean square."""
        return min(look.error for look in self.looks)

    def describe(self) -> dict[str, Any]:
        return {
            "table": asdict(self.table),
            "order": self.order,
            "initial_errors": self.initial,
            "held_out_error": self.error,
            "looks": [look.describe() for look in self.looks],
            "seconds": self.seconds,
        }


def fit_table(
    networks: TorchNetworks,
    name: str,
    train: Endpoints,
    held_out: Endpoints,
    options: FitOptions,
    progress: Progress = lambda what, done, total: None,
) -> Fit:
    """Fit a table on some rows and return the one that did best on others; raises CalibrationError.

    A pure function of its arguments but for `seconds`.
    """
    options.check_trajectories(len(train))
    started = time.monotonic()
    sampler = _Sampler(networks, options)
    initial = {
        order: sampler.error(LearnableTable.adams_bashforth(order, options), held_out) for order in ORDERS
    }
    order = min(initial, key=lambda order: initial[order])
    learnable = LearnableTable.adams_bashforth(order, options)
    best, looks = learnable.table(name), [Look(0, initial[order], None)]
    losses: list[float] = []
    for step, loss in enumerate(_descend(sampler, learnable, train, options), start=1):
        if not math.isfinite(loss):
            if _best(looks) == 0:
                raise CalibrationError(f"the error is {loss} at step {step}; use a smaller learning_rate")
            break
        losses.append(loss)
        late = time.monotonic() - started > options.seconds
        if step % options.look_every == 0 or step == options.steps or late:
            looks.append(Look(step, sampler.error(learnable, held_out), math.sqrt(sum(losses) / len(losses))))
            losses.clear()
            if looks[-1].error <= min(look.error for look in looks):
                best = learnable.table(name)
            progress(f"held-out error {looks[-1].error:.4f}", step, options.steps)
            if late or _is_stuck(looks, options.patience):
                break
    return Fit(best, order, initial, tuple(looks), time.monotonic() - started)


def _descend(
    sampler: "_Sampler", learnable: "LearnableTable", train: Endpoints, options: FitOptions
) -> Iterator[float]:
    """Take optimizer steps; yield the mean squared error that each began with. One not finite is the last."""
    optimizer = torch.optim.Adam(learnable.parameters(), lr=options.learning_rate, betas=(0.9, 0.95))
    for step, rows in enumerate(_batches(len(train), options)):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * (1 - step / options.steps)
        optimizer.zero_grad()
        loss = sampler.losses(learnable, train, rows).mean()
        if not math.isfinite(loss.item()):
            yield loss.item()
            return
        loss.backward()
        optimizer.step()
        yield loss.item()


class LearnableTable(nn.Module):
    """A table's numbers as parameters.

    Step lengths are a softmax of logits, so the grid stays increasing from 0 to 1. Weights are in steps'
    lengths, w_ij = h_i·a_ij: of one size, whatever the grid.
    """

    def __init__(self, rows: list[list[float]], refined: int) -> None:
        super().__init__()
        self.refined = refined
        self.logits = nn.Parameter(torch.zeros(len(rows), dtype=torch.float64))
        self.rows = nn.ParameterList(torch.tensor(row, dtype=torch.float64) for row in rows)

    @classmethod
    def adams_bashforth(cls, order: int, options: FitOptions) -> "LearnableTable":
        """Start from an Adams–Bashforth method on the uniform grid, through refined velocities too."""
        N = options.evaluations + options.refined
        rows = []
        for i in range(N):
            nodes = [j / N for j in range(max(0, i + 1 - order), i + 1)]
            weights = [N * weight for weight in multistep_weights(nodes, i / N, (i + 1) / N)]
            rows.append([0.0] * (i + 1 - len(nodes)) + weights)
        return cls(rows, options.refined)

    def forward(self) -> tuple[Tensor, list[Tensor]]:
        """Return times (N+1) and the rows of weights, all float64."""
        lengths = torch.softmax(self.logits, 0)
        inner = lengths.cumsum(0)[:-1]
        times = torch.cat([torch.zeros_like(inner[:1]), inner, torch.ones_like(inner[:1])])
        if len(lengths) == 1:
            times = torch.tensor([0.0, 1.0], dtype=torch.float64)
        return times, [h * row for h, row in zip(lengths, self.rows, strict=True)]

    @torch.no_grad()
    def table(self, name: str) -> SolverTable:
        """Return the table as it is now."""
        times, rows = self()
        return SolverTable(
            name, tuple(times.tolist()), tuple(tuple(row.tolist()) for row in rows), self.refined
        )


class _Sampler:
    """Runs tables on torch networks, so that gradients reach their numbers."""

    def __init__(self, networks: TorchNetworks, options: FitOptions) -> None:
        self._networks = networks
        self._options = options

    def losses(self, table: LearnableTable, endpoints: Endpoints, rows: NDArray[np.int64]) -> Tensor:
        """Return the squared relative error (n) of some rows' endpoints."""
        times, weights = table()
        request = endpoints.request
        variant = choose_variant(self._networks.manifest, is_unguided=request.is_unguided)
        field = _Field(self._networks, variant, request, rows, recompute=self._options.recompute)
        # With an axis for the halves of guidance, as the velocities have it.
        x: Any = self._networks.tensor(endpoints.noise[rows])[:, None]
        passed: Passed = ()
        for i, row in enumerate(weights):
            refines = i >= len(weights) - table.refined
            step = linear_multistep([w.to(x) for w in row], refines=refines)
            x, passed = step(field, x, passed, times[i], times[i + 1])
        truth = self._networks.tensor(endpoints.latents[rows])
        errors: Tensor = (x[:, 0] - truth).square().flatten(1).sum(1) / truth.square().flatten(1).sum(1)
        return errors

    @torch.no_grad()
    def error(self, table: LearnableTable, endpoints: Endpoints) -> float:
        """Return the root mean squared relative error of all rows; ∞ where it is not finite."""
        parts = np.array_split(np.arange(len(endpoints)), math.ceil(len(endpoints) / self._options.batch))
        losses = torch.cat([self.losses(table, endpoints, rows) for rows in parts])
        error = math.sqrt(losses.double().mean().item())
        return error if math.isfinite(error) else math.inf


class _Field:
    """Predictor and refiner on some rows of a request, at times that gradients go through.

    States are (n,1 or G,C,H,W), of which the conditional half counts, velocities (n,G,C,H,W).
    """

    def __init__(
        self,
        networks: TorchNetworks,
        variant: str,
        request: Request,
        rows: NDArray[np.int64],
        *,
        recompute: bool,
    ) -> None:
        self._networks = networks
        self._recompute = recompute
        self._variant = variant
        self._bound = {name: networks.tensor(values[rows]) for name, values in request.conditions.items()}
        if self._variant == "guided":
            self._bound["guidance"] = networks.tensor(request.guidance[rows])

    def predict(self, x: Any, t: Any) -> Any:
        return self._call("predictor", x, t)

    def refine(self, x: Any, v: Any, t: Any) -> Any:
        return self._call("refiner", x, t, velocity=v)

    def _call(self, network: str, x: Tensor, t: Tensor, **more: Tensor) -> Tensor:
        state = x[:, 0]
        inputs = {"state": state, "time": t.to(state).expand(len(state)), **self._bound, **more}

        def call(inputs: dict[str, Tensor]) -> Tensor:
            return self._networks.call(network, self._variant, inputs)

        if self._recompute and torch.is_grad_enabled():
            velocity: Tensor = checkpoint(call, inputs, use_reentrant=False)
            return velocity
        return call(inputs)


def _batches(count: int, options: FitOptions) -> Iterator[NDArray[np.int64]]:
    """Yield rows for every step: epochs of seeded permutations, what is left over of each left out."""
    random = np.random.default_rng(options.seed)
    waiting = np.empty(0, dtype=np.int64)
    for _ in range(options.steps):
        if len(waiting) < options.batch:
            waiting = random.permutation(count)
        rows, waiting = waiting[: options.batch], waiting[options.batch :]
        yield rows


def _is_stuck(looks: list[Look], patience: int) -> bool:
    return len(looks) - 1 - _best(looks) >= patience


def _best(looks: Sequence[Look]) -> int:
    return min(range(len(looks)), key=lambda i: looks[i].error)
