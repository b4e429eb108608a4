"""One real comparison of the tiny networks, made once."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from flowturbo_trt.commands import comparing
from flowturbo_trt.evaluation.comparison.compare import compare
from flowturbo_trt.evaluation.comparison.findings import Comparison
from flowturbo_trt.evaluation.comparison.finished import Finished
from flowturbo_trt.evaluation.comparison.options import ComparisonOptions
from flowturbo_trt.evaluation.comparison.page import render
from flowturbo_trt.evaluation.comparison.preparation import Preparation, prepare
from flowturbo_trt.evaluation.quality import measures

from .comparisons import small_options


@dataclass(frozen=True)
class Made:
    """A comparison, what it was asked for, and the folder that its three files are in."""

    options: ComparisonOptions
    prepared: Preparation
    comparison: Comparison
    out: Path
    said: tuple[str, ...]


@pytest.fixture(scope="session")
def made(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("comparison")
    options, said, out = small_options(tiny_bundle, folder), [], folder / "out"
    out.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "RESAMPLES", 10)
        prepared = prepare(options, said.append, _ignore)
        comparison = compare(prepared, Finished(out, said.append), options.stability, said.append, _ignore)
    comparing.write(comparison, comparison.document(), render(comparison), out)
    return Made(options, prepared, comparison, out, tuple(said))


def _ignore(what: str, done: int, total: int) -> None:
    pass
