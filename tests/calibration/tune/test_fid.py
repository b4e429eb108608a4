"""FID in a search: where it is computed, and what no number comes of."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.calibration.tune import fid as module
from flowturbo_trt.calibration.tune.candidates import Candidate
from flowturbo_trt.calibration.tune.errors import TuneError
from flowturbo_trt.calibration.tune.fid import open_judge
from flowturbo_trt.calibration.tune.journal import Journal
from flowturbo_trt.calibration.tune.options import FidOptions, TuneOptions
from flowturbo_trt.calibration.tune.preparation import Place, prepared
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.tests.evaluation.quality.extractors import write_extractor

FEATURES = 8 * 8 * 3


def silent(what: str, done: int, total: int) -> None:
    """Say nothing."""


@pytest.mark.parametrize("size", [1e200, 1e308])
def test_a_fid_that_is_no_number(tiny_bundle: Path, tmp_path: Path, size: float) -> None:
    np.savez(tmp_path / "far.npz", mu=np.full(FEATURES, size), sigma=size * np.eye(FEATURES))
    fid = FidOptions(write_extractor(tmp_path / "extractor.onnx"), tmp_path / "far.npz", 2)
    with prepared(TuneOptions(tiny_bundle, threads=1, fid=fid)) as found:
        judge = open_judge(found, Journal(tmp_path / "journal", {}), silent)
        with pytest.raises(TuneError, match=r"H2: its FID against .*far.npz is (inf|nan); look at the sizes"):
            judge(Candidate("tiny", Schedule.parse("H2")))
    assert len(Journal(tmp_path / "journal", {})) == 0


def test_the_extractor_runs_where_the_engines_do(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OpenedError(Exception):
        """Holds what an extractor was opened with."""

    def opened(path: Path, device: str, threads: int) -> None:
        raise OpenedError(path, device, threads)

    monkeypatch.setattr(module, "open_extractor", opened)
    fid = FidOptions(tmp_path / "extractor.onnx", tmp_path / "images")
    with prepared(TuneOptions(tiny_bundle, threads=1, fid=fid)) as found:
        place = Place("onnxruntime", "cuda:1", "cuda")
        elsewhere = replace(found, engines={"tiny": replace(found.engines["tiny"], place=place)})
        for preparation, device in ((found, "cpu"), (elsewhere, "cuda:1")):
            with pytest.raises(OpenedError) as error:
                open_judge(preparation, Journal(tmp_path / "journal", {}), silent)
            assert error.value.args == (tmp_path / "extractor.onnx", device, 1)
