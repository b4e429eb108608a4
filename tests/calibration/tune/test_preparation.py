"""What a search needs, and what it refuses before it begins."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.calibration.tune.errors import TuneError
from flowturbo_trt.calibration.tune.options import TuneOptions
from flowturbo_trt.calibration.tune.preparation import prepared
from flowturbo_trt.runtime.request import RequestError
from flowturbo_trt.sampling.schedule import ScheduleError
from flowturbo_trt.tests.bundles import changed_copy, edit_manifest

Change = Callable[[dict[str, Any]], object]


def drop_refiner(data: dict[str, Any]) -> None:
    data["engines"] = [e for e in data["engines"] if not e["network"].startswith("refiner")]
    data["default_schedule"] = "H2"


def test_what_a_guided_bundle_can(tiny_bundle: Path) -> None:
    with prepared(TuneOptions(tiny_bundle, threads=1, seed=3)) as found:
        space = found.spaces["tiny"]
        assert (found.main, found.truest, found.batch, found.evaluations) == ("tiny", "tiny", 3, 12)
        assert (space.variant, space.refines, space.unguides) == ("guided", True, False)
        assert len(found.request) == 64 + 128
        seeds = found.request.seeds
        assert (sorted(seeds[:64]), list(seeds[64:])) == (list(range(3, 67)), list(range(67, 195)))
        # The first rows, which decide who goes on, are of all classes however many there are.
        assert seeds[:8] != tuple(range(3, 11))
        labels = found.request.conditions["label"]
        assert [(seed - 3) % 3 for seed in seeds[:64]] == labels[:64].tolist()
        assert found.settings()["backends"] == {"tiny": "onnxruntime fp32"}


def test_what_a_bundle_of_both_variants_can(golden_bundle: Path) -> None:
    with prepared(TuneOptions(golden_bundle, backend="onnxruntime", threads=1)) as found:
        assert found.spaces["golden"].unguides
    with prepared(TuneOptions(golden_bundle, backend="onnxruntime", threads=1, guidance=(1.0,))) as found:
        space = found.spaces["golden"]
        assert (space.variant, space.unguides) == ("unguided", False)


def test_without_a_refiner(tiny_bundle: Path, tmp_path: Path) -> None:
    with prepared(TuneOptions(changed_copy(tiny_bundle, tmp_path, drop_refiner), threads=1)) as found:
        assert not found.spaces["changed"].refines
    with prepared(TuneOptions(tiny_bundle, refined=0, threads=1)) as found:
        assert not found.spaces["tiny"].refines


def test_a_large_default_schedule_is_within_the_search(tiny_copy: Path) -> None:
    def enlarge(data: dict[str, Any]) -> None:
        data["default_schedule"] = "H2"

    edit_manifest(tiny_copy, enlarge)
    with prepared(TuneOptions(tiny_copy, threads=1)) as found:
        assert found.evaluations == 12
        small = replace(found.options, evaluations=5)
    with prepared(small) as found:
        assert found.evaluations == 5


def test_the_truest_engines_are_in_float32(tiny_bundle: Path, tmp_path: Path) -> None:
    def halve(data: dict[str, Any]) -> None:
        for engine in data["engines"]:
            engine["precision"] = "fp16"

    half = changed_copy(tiny_bundle, tmp_path, halve)
    with prepared(TuneOptions(half, also=(tiny_bundle,), threads=1)) as found:
        assert (found.main, found.truest) == ("changed", "tiny")
    with prepared(TuneOptions(half, threads=1)) as found:
        assert found.truest == "changed"


def test_bundles_of_one_name_go_by_their_paths(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))
    with prepared(TuneOptions(tiny_bundle, also=(copy,), threads=1)) as found:
        assert list(found.engines) == ["tiny", str(copy)]
        assert len({engines.sha256 for engines in found.engines.values()}) == 1


def refuse(options: TuneOptions) -> None:
    with prepared(options):
        pass


def test_another_model_is_refused(tiny_bundle: Path, golden_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(TuneError, match=r"golden: is of another model \(latent \(4, 8, 8\), expected"):
        refuse(TuneOptions(tiny_bundle, also=(golden_bundle,), threads=1))

    def retrain(data: dict[str, Any]) -> None:
        data["sources"]["predictor"]["sha256"] = "f" * 64

    other = changed_copy(tiny_bundle, tmp_path, retrain)
    with pytest.raises(TuneError, match=r"changed: is of another predictor \(sha256 ffffffffffff, expected"):
        refuse(TuneOptions(tiny_bundle, also=(other,), threads=1))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (
            {"reference": "H5"},
            TuneError,
            "reference H5: has 10 .* have up to 12; give a finer one",
        ),
        ({"reference": "H9R1"}, TuneError, "and others of the refiner"),
        ({"reference": "fine"}, ScheduleError, "'fine' is no schedule"),
        ({"batch": 2}, TuneError, "batch 2: not built in all bundles, which share 1, 3"),
        ({"guidance": (float("nan"),)}, RequestError, "guidance is"),
        ({"guidance": (1.0,), "seed": 2**64}, RequestError, "is not an integer from 0 to"),
    ],
)
def test_refusals(tiny_bundle: Path, given: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        refuse(TuneOptions(tiny_bundle, threads=1, **given))


def test_the_same_bundle_twice(tiny_bundle: Path) -> None:
    with pytest.raises(TuneError, match="is named twice"):
        refuse(TuneOptions(tiny_bundle, also=(tiny_bundle, tiny_bundle), threads=1))


@pytest.mark.parametrize(
    "given",
    [{"trajectories": 0}, {"held_out": 1}, {"evaluations": 1}, {"rounds": -1}, {"kept": 0}, {"batch": 0}],
)
def test_impossible_options(given: dict[str, int]) -> None:
    (name,) = given
    with pytest.raises(TuneError, match=f"{name} is {given[name]}, expected at least"):
        TuneOptions(Path("bundle"), **given)  # type: ignore[arg-type]  # counts all
