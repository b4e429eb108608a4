"""What a search needs, and what it refuses before it begins."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flowturbo_trt.bundle.amend import save_schedule
from flowturbo_trt.bundle.store import Bundle, read_manifest
from flowturbo_trt.calibration.tune.errors import TuneError
from flowturbo_trt.calibration.tune.options import FidOptions, TuneOptions
from flowturbo_trt.calibration.tune.preparation import prepared
from flowturbo_trt.evaluation.report import machine
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import RequestError
from flowturbo_trt.sampling.schedule import Schedule, ScheduleError
from flowturbo_trt.tests.bundles import changed_copy, edit_manifest

MODULE = "flowturbo_trt.calibration.tune.preparation"
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
        settings = found.settings()
        assert settings["backends"] == {"tiny": "onnxruntime fp32"}
        assert (settings["devices"], settings["providers"]) == ({"tiny": "cpu"}, {"tiny": None})
        assert (settings["threads"], settings["machine"]) == (1, machine()["cpu"])


def test_what_a_bundle_of_both_variants_can(golden_bundle: Path) -> None:
    with prepared(TuneOptions(golden_bundle, backend="onnxruntime", threads=1)) as found:
        assert found.spaces["golden"].unguides
    with prepared(TuneOptions(golden_bundle, backend="onnxruntime", threads=1, guidance=(1.0,))) as found:
        space = found.spaces["golden"]
        assert (space.variant, space.unguides) == ("unguided", False)


def test_without_a_refiner(tiny_bundle: Path, tmp_path: Path) -> None:
    with prepared(TuneOptions(changed_copy(tiny_bundle, tmp_path, drop_refiner), threads=1)) as found:
        assert not found.spaces["changed"].refines
    # What may not be tried may be in the bundle's own schedules, which are timed as well.
    with prepared(TuneOptions(tiny_bundle, refined=0, threads=1)) as found:
        assert found.spaces["tiny"].refines
        assert "R" not in found.spaces["tiny"].kinds


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


def test_bundles_have_names_from_everywhere(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_bundle)
    with prepared(TuneOptions(Path(), threads=1)) as found:
        assert list(found.engines) == ["tiny"]


def refuse(options: TuneOptions) -> None:
    with prepared(options):
        pass


def test_the_limit_is_of_the_schedule_that_a_bundle_was_built_with(tiny_copy: Path) -> None:
    save_schedule(Bundle.open(tiny_copy), Schedule.parse("AB2x12"), default=True)
    with prepared(TuneOptions(tiny_copy, threads=1)) as found:
        assert found.evaluations == 12

    def build_with_it(data: dict[str, Any]) -> None:
        data["programs"] = {"AB2x12": data["programs"].pop("AB2x12"), **data["programs"]}
        data["default_schedule"] = "H2"

    edit_manifest(tiny_copy, build_with_it)
    with prepared(TuneOptions(tiny_copy, threads=1)) as found:
        assert found.evaluations == 14


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What bundles were loaded with, by the names of their folders; no engine is."""
    given: dict[str, dict[str, Any]] = {}

    def load(path: Path, **more: Any) -> Any:
        given[path.name] = more
        return nullcontext(SimpleNamespace(manifest=read_manifest(path)))

    monkeypatch.setattr(Pipeline, "load", load)
    return given


def for_backends(bundle: Path, folder: Path, *backends: str) -> Path:
    """Copy a bundle, and say that its engines are for these."""

    def change(data: dict[str, Any]) -> None:
        data["engines"] = [{**engine, "backend": name} for name in backends for engine in data["engines"]]

    copy = Path(shutil.copytree(bundle, folder / "-".join(backends)))
    edit_manifest(copy, change)
    return copy


@pytest.mark.parametrize(
    "given",
    [
        {"backend": "onnxruntime", "device": "cuda:1", "provider": "cuda"},
        {"device": "cuda:1", "provider": "cuda"},
        {"backend": "onnxruntime"},
    ],
)
def test_other_bundles_run_as_the_first_where_they_can(
    tiny_bundle: Path,
    tmp_path: Path,
    loads: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
) -> None:
    monkeypatch.setattr(f"{MODULE}.machine", lambda: {"cpu": "a CPU", "gpu": "a GPU"})
    also = (
        for_backends(tiny_bundle, tmp_path, "openvino", "onnxruntime"),
        for_backends(tiny_bundle, tmp_path, "openvino"),
    )
    with prepared(TuneOptions(tiny_bundle, also=also, threads=1, **given)) as found:  # type: ignore[arg-type]
        settings = found.settings()
    plain = {"backend": "onnxruntime", "device": "cpu", "provider": None, "threads": 1}
    assert loads["tiny"] == loads["openvino-onnxruntime"] == plain | given
    assert loads["openvino"] == plain | {"backend": "openvino"}
    assert settings["machine"] == ("a CPU, a GPU" if "device" in given else "a CPU")
    assert settings["devices"]["openvino-onnxruntime"] == given.get("device", "cpu")


def test_a_backend_that_some_have_not(
    tiny_bundle: Path, tmp_path: Path, loads: dict[str, dict[str, Any]]
) -> None:
    first = for_backends(tiny_bundle, tmp_path, "openvino", "onnxruntime")
    second = for_backends(tiny_bundle, tmp_path, "onnxruntime", "openvino")
    with prepared(TuneOptions(first, also=(tiny_bundle, second), backend="openvino", device="cpu:0")):
        pass
    asked = {"backend": "openvino", "device": "cpu:0", "provider": None, "threads": 0}
    assert loads["openvino-onnxruntime"] == loads["onnxruntime-openvino"] == asked
    assert loads["tiny"] == asked | {"backend": "onnxruntime", "device": "cpu"}


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


def test_the_same_bundle_twice(
    tiny_bundle: Path, tmp_path: Path, loads: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tiny_bundle)
    monkeypatch.chdir(tiny_bundle)
    for again in (tiny_bundle, tmp_path / "link", Path(), Path("../tiny")):
        with pytest.raises(TuneError, match="is named twice"):
            refuse(TuneOptions(tiny_bundle, also=(again,), threads=1))
    assert not loads


def test_too_few_images_for_fid() -> None:
    with pytest.raises(TuneError, match="fid num is 1, expected at least 2"):
        FidOptions(Path("extractor"), Path("images"), 1)


@pytest.mark.parametrize(
    "given",
    [{"trajectories": 0}, {"held_out": 1}, {"evaluations": 1}, {"rounds": -1}, {"kept": 0}, {"batch": 0}],
)
def test_impossible_options(given: dict[str, int]) -> None:
    (name,) = given
    with pytest.raises(TuneError, match=f"{name} is {given[name]}, expected at least"):
        TuneOptions(Path("bundle"), **given)  # type: ignore[arg-type]  # counts all
