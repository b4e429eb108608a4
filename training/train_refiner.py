"""Train a velocity refiner: seeded, resumable, on one process or many, with an average of its weights."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path

import torch

from flowturbo_trt.export.use import guided_channels as guided_channels_of
from flowturbo_trt.models.sit import SiT
from flowturbo_trt.training.checkpoints import WEIGHTS, Archive
from flowturbo_trt.training.config import TrainingConfig, TrainingError
from flowturbo_trt.training.distributed import Group
from flowturbo_trt.training.interrupts import terminations_as_interrupts
from flowturbo_trt.training.lessons import choose_lessons
from flowturbo_trt.training.previews import Artist, Previews
from flowturbo_trt.training.records import EventFiles, Row
from flowturbo_trt.training.run import Run
from flowturbo_trt.training.source import LatentSource

Observer = Callable[[Row], None]
ALONE = Group(torch.device("cpu"))


def train_refiner(
    predictor: SiT,
    source: LatentSource | None,
    config: TrainingConfig,
    folder: Path,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    sources: Mapping[str, str] | None = None,
    *,
    start: SiT | None = None,
    guided_channels: int | None = None,
    group: Group = ALONE,
    tensorboard: bool = False,
    previews: Previews | None = None,
) -> Path:
    """Train until `config.steps`, continuing what `folder` holds; return the averaged weights' file.

    `source` is None where the config says to learn on policy. `sources` names by hash what it does not
    name itself, the predictor and the refiner to start from, so that a run is not resumed with others.
    `start` is that refiner, where the config says so. `guided_channels` are those of the model (None: as
    the reference's).

    Every process of a `group` calls this alike; the first one writes, and calls `on_step(step, loss)`
    after every step, from the first new one. An interrupt (Ctrl-C, SIGTERM, or KeyboardInterrupt from
    `on_step`) saves the steps taken before it goes on. Raises TrainingError and DataError.
    """
    if previews is not None:
        previews.check(predictor.config)
    if guided_channels is None:
        guided_channels = guided_channels_of({}, predictor.config.in_channels)
    lessons = choose_lessons(source, predictor.config, config, guided_channels)
    run = Run(predictor, config, group, lessons, guided_channels, sources or {}, start)
    archive = Archive(folder)
    with archive.locked() if group.leads else nullcontext():
        archive.resume(run)
        if run.step > config.steps:
            raise TrainingError(
                f"{folder}: has {run.step} steps already, more than the {config.steps} asked for"
            )
        # Nobody writes before everybody has read.
        group.agree(run.step)
        archive.prepare(run)
        with (
            terminations_as_interrupts(),
            _observers(run, folder, on_step, tensorboard, previews) as observers,
        ):
            _train(run, archive, observers)
    return folder / WEIGHTS


@contextmanager
def _observers(
    run: Run,
    folder: Path,
    on_step: Callable[[int, float], None],
    tensorboard: bool,
    previews: Previews | None,
) -> Iterator[list[Observer]]:
    """Give what is called after every step: nothing but in the first process."""
    observers: list[Observer] = []
    with ExitStack() as stack:
        if run.group.leads:
            events = stack.enter_context(closing(EventFiles(folder, run.step))) if tensorboard else None
            observers += [events.add] if events else []
            observers += [Artist(previews, run, folder, events).observe] if previews else []
            observers.append(lambda row: on_step(row.step, row.loss))
        yield observers


def _train(run: Run, archive: Archive, observers: list[Observer]) -> None:
    config = run.config
    try:
        while run.step < config.steps:
            row = run.advance()
            for observe in observers:
                observe(row)
            if run.step % config.checkpoint_every == 0 or run.step == config.steps:
                archive.save(run)
    except KeyboardInterrupt:
        archive.save(run)
        raise
    # The first process may still be saving, and fail in it.
    run.group.agree(run.step)
