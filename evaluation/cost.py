"""What the engines of a bundle and its programs cost: FLOP and weights read.

Counted on the networks that are exported (see evaluation.operations), so that a saving is no claim. The
weights of an engine are read once per call. The sampler's own combinations are not counted.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flowturbo_trt.bundle.manifest import BundleError, Model, OlderBundleError, conditioner_of
from flowturbo_trt.evaluation.empty_networks import UNFIT, configurations, empty_network
from flowturbo_trt.evaluation.operations import Cost, count_operations
from flowturbo_trt.export.networks import CONDITIONER_ROWS, padded_modulation_width
from flowturbo_trt.models.sit import SiTConfig
from flowturbo_trt.sampling.program import NETWORKS, VARIANTS, Evaluate, Program

Conditioning = Literal["fused", "hoisted"]


class CostError(BundleError):
    """An engine that the manifest does not describe, or that cannot be made of its description."""


@dataclass(frozen=True)
class Call:
    """`count` calls of an engine, each of one `cost`."""

    network: str
    variant: str | None
    count: int
    cost: Cost


@dataclass(frozen=True)
class ProgramCost:
    """Everything that a batch of `batch` images takes, the decoder included where the bundle has one."""

    batch: int
    calls: tuple[Call, ...]

    @property
    def total(self) -> Cost:
        return Cost(tuple(o for call in self.calls for o in call.cost.operations * call.count))

    @property
    def flop_per_image(self) -> float:
        return self.total.flop / self.batch


@dataclass(frozen=True)
class Saving:
    """What a batch costs without and with a measure; a negative saving is a loss."""

    without: ProgramCost
    having: ProgramCost

    @property
    def flop(self) -> int:
        return self.without.total.flop - self.having.total.flop

    def weight_bytes(self, itemsize: int) -> int:
        return self.without.total.weight_bytes(itemsize) - self.having.total.weight_bytes(itemsize)


def engine_cost(
    model: Model, network: str, variant: str | None, rows: int, conditioning: Conditioning = "fused"
) -> Cost:
    """Count one call of an engine on `rows` rows; conditioners and decoders have no variant.

    `conditioning` tells whether a predictor or refiner computes its modulations itself or is given them.
    Raises CostError, OlderBundleError.
    """
    config = _config(model, network)
    if (network in NETWORKS) != (variant in VARIANTS):
        expected = " or ".join(VARIANTS) if network in NETWORKS else "none"
        raise CostError(f"{network}: variant is {variant!r}, expected {expected}")
    try:
        module = empty_network(model, network, variant, config, conditioning)
        if network == "decoder":
            return count_operations(module, {"state": (rows, *model.latent)})
        return count_operations(module, _sizes(model, config, network, variant, rows))
    except UNFIT as error:
        reason = " ".join(str(error).split())[:200]
        raise CostError(f"{network}: no network can be made of the shape {config} ({reason})") from error


class EngineCosts:
    """`engine_cost` of one model, each engine counted once: for what looks at many programs of it."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._counted: dict[tuple[object, ...], Cost] = {}

    def __call__(
        self, network: str, variant: str | None, rows: int, conditioning: Conditioning = "fused"
    ) -> Cost:
        key = (network, variant, rows, conditioning)
        if key not in self._counted:
            self._counted[key] = engine_cost(self.model, network, variant, rows, conditioning)
        return self._counted[key]


def program_cost(
    model: Model | EngineCosts,
    program: Program,
    batch: int,
    conditioning: Conditioning = "hoisted",
    conditioner_rows: int = CONDITIONER_ROWS,
) -> ProgramCost:
    """Count what a program takes for one batch.

    Where the conditioning is hoisted a network's conditioner computes all rows at all its different
    times once, in calls of `conditioner_rows` rows, the last one padded; 0 is one call of as many as
    there are. The null condition's modulations are kept from request to request and not counted.
    """
    return _program_cost(model, program, batch, conditioning, conditioner_rows, program.evaluations())


def hoisting_saving(
    model: Model | EngineCosts, program: Program, batch: int, conditioner_rows: int = CONDITIONER_ROWS
) -> Saving:
    """Count what hoisting the conditioning saves a batch."""
    fused = program_cost(model, program, batch, "fused")
    return Saving(fused, program_cost(model, program, batch, "hoisted", conditioner_rows))


def unguided_saving(
    model: Model | EngineCosts,
    program: Program,
    batch: int,
    conditioning: Conditioning = "hoisted",
    conditioner_rows: int = CONDITIONER_ROWS,
) -> Saving:
    """Count what a batch saves by a program's unguided evaluations, were they guided otherwise."""
    guided: Counter[tuple[str, str]] = Counter()
    for (network, _), count in program.evaluations().items():
        guided[network, "guided"] += count
    without = _program_cost(model, program, batch, conditioning, conditioner_rows, guided)
    return Saving(without, program_cost(model, program, batch, conditioning, conditioner_rows))


def _program_cost(
    model: Model | EngineCosts,
    program: Program,
    batch: int,
    conditioning: Conditioning,
    conditioner_rows: int,
    evaluations: Mapping[tuple[str, str], int],
) -> ProgramCost:
    cost_of = model if isinstance(model, EngineCosts) else EngineCosts(model)
    calls = [
        Call(network, variant, count, cost_of(network, variant, batch, conditioning))
        for (network, variant), count in evaluations.items()
    ]
    if conditioning == "hoisted":
        for network in dict.fromkeys(network for network, _ in evaluations):
            rows = batch * _different_times(program, network)
            size = conditioner_rows or rows
            name = conditioner_of(network)
            calls.append(Call(name, None, -(-rows // size), cost_of(name, None, size)))
    if cost_of.model.image is not None:
        calls.append(Call("decoder", None, 1, cost_of("decoder", None, batch)))
    return ProgramCost(batch, tuple(calls))


def _different_times(program: Program, network: str) -> int:
    evaluations = (i for i in program.instructions if isinstance(i, Evaluate))
    return len({i.time for i in evaluations if i.network == network})


def _config(model: Model, network: str) -> dict[str, Any]:
    known = configurations(model)
    if network not in known:
        raise CostError(f"unknown network {network!r}; known are {', '.join(known)}")
    config = known[network]
    if config is None and network == "decoder" and model.image is not None:
        raise OlderBundleError(
            "the manifest does not tell the decoder's shape, as bundles of today do; rebuild the bundle"
        )
    if config is None:
        raise CostError(f"the bundle has no {network}; rebuild it with one, or choose another schedule")
    return config


def _sizes(
    model: Model, config: dict[str, Any], network: str, variant: str | None, rows: int
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all inputs that a velocity network or its conditioner may have."""
    modulation = (rows, padded_modulation_width(SiTConfig(**config)))
    sizes: dict[str, tuple[int, ...]] = {
        "state": (rows, *model.latent),
        "time": (rows,),
        "label": (rows,),
        "guidance": (rows,),
        "modulation": modulation,
        "null_modulation": modulation,
    }
    # An optional input of the modules: predictors and refiners share them.
    if network == "refiner":
        sizes["velocity"] = (rows, model.guidance.halves if variant == "guided" else 1, *model.latent)
    return sizes
