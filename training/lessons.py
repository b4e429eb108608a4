"""What a step of training draws, and the loss of it: on points of the data's paths, or on policy."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from flowturbo_trt.models.sit import SiT, SiTConfig
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.training.config import TrainingConfig, TrainingError
from flowturbo_trt.training.data import check_fits
from flowturbo_trt.training.draws import Draws, PathDraws, StartDraws, draw_path_points, draw_starts
from flowturbo_trt.training.objective import refiner_objective
from flowturbo_trt.training.on_policy import on_policy_loss
from flowturbo_trt.training.source import LatentSource


class Lessons(Protocol):
    """The lessons of a run, one per step."""

    @property
    def provenance(self) -> Mapping[str, str]:
        """What a run must not be resumed without, by name."""
        ...

    def draw(self, step: int, rows: slice) -> Draws:
        """Return the given rows of the batch of a step, counted from 0: a pure function."""
        ...

    def loss(self, predictor: SiT, refiner: nn.Module, draws: Draws) -> Tensor:
        """Return the loss (B) of every sample."""
        ...


def choose_lessons(
    source: LatentSource | None, predictor: SiTConfig, config: TrainingConfig, guided_channels: int
) -> Lessons:
    """Return the lessons that the config asks for; raises TrainingError and DataError."""
    if config.on_policy:
        if source is not None:
            raise TrainingError("on policy, training starts from noise and reads no data; leave it out")
        return PolicyLessons(predictor, config, guided_channels)
    if source is None:
        raise TrainingError("give data to learn from, or the schedules to learn on policy")
    check_fits(source, predictor, config.batch)
    return PathLessons(source, config, guided_channels)


class PathLessons:
    """The paper's: states on the data's paths, and a velocity of an age from a range."""

    def __init__(self, source: LatentSource, config: TrainingConfig, guided_channels: int) -> None:
        self._source = source
        self._config = config
        self._guided_channels = guided_channels
        self.provenance: Mapping[str, str] = source.provenance

    def draw(self, step: int, rows: slice) -> PathDraws:
        return draw_path_points(self._source, self._config, step, rows)

    def loss(self, predictor: SiT, refiner: nn.Module, draws: Draws) -> Tensor:
        return refiner_objective(
            predictor, refiner, **vars(draws), guided_channels=self._guided_channels
        ).loss


class PolicyLessons:
    """The trajectories of schedules, which take turns."""

    provenance: Mapping[str, str] = {}

    def __init__(self, predictor: SiTConfig, config: TrainingConfig, guided_channels: int) -> None:
        variant = "guided" if config.guided else "unguided"
        self._programs = [trace(Schedule.parse(text), variant) for text in config.schedules]
        self._shape = predictor
        self._config = config
        self._guided_channels = guided_channels

    def draw(self, step: int, rows: slice) -> StartDraws:
        program = self._programs[step % len(self._programs)]
        return draw_starts(program, self._shape, self._config, step, rows)

    def loss(self, predictor: SiT, refiner: nn.Module, draws: Draws) -> Tensor:
        return on_policy_loss(predictor, refiner, **vars(draws), guided_channels=self._guided_channels)
