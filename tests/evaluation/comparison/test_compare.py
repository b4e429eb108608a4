"""A real comparison of tiny networks: its figures found another way, and earlier results used rightly."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.amend import save_schedule
from flowturbo_trt.bundle.store import MANIFEST, Bundle, sha256
from flowturbo_trt.evaluation.comparison import compare as comparing
from flowturbo_trt.evaluation.comparison.compare import compare
from flowturbo_trt.evaluation.comparison.errors import ComparisonError
from flowturbo_trt.evaluation.comparison.findings import Comparison
from flowturbo_trt.evaluation.comparison.finished import FOLDER, Finished
from flowturbo_trt.evaluation.comparison.options import ComparisonOptions
from flowturbo_trt.evaluation.comparison.preparation import prepare, reference_sha256
from flowturbo_trt.evaluation.comparison.samples import SampleStream
from flowturbo_trt.evaluation.quality import measures
from flowturbo_trt.evaluation.quality.judge import MetricError, judge, open_extractor, open_reference
from flowturbo_trt.generation.options import GenerationOptions, make_plan
from flowturbo_trt.generation.plan import PlanError
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import RequestError
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.table import SolverTable

from .comparisons import NUM, small_options
from .conftest import Made


def ignore(what: str, done: int, total: int) -> None:
    pass


def figures(comparison: Comparison, schedule: str) -> dict[str, float]:
    (row,) = (row for row in comparison.rows if row.schedule == schedule)
    return {key: figure.value for key, figure in row.figures.items()}


def test_rows_are_what_was_asked_for(made: Made) -> None:
    assert [row.schedule for row in made.comparison.rows] == ["H4", "H2", "H1P1R1", "AB2x3", "H30"]
    assert made.said[0] == "H4: compared as well, as the baseline"
    assert [row.evaluations for row in made.comparison.rows][:3] == [
        {"predictor": 8},
        {"predictor": 4},
        {"predictor": 3, "refiner": 2},
    ]
    for row in made.comparison.rows:
        assert set(row.figures) == {
            "gflop", "ms_per_image", "acceleration", "fid", "precision", "recognised", "endpoint_error",
        }  # fmt: skip
        assert row.figures["ms_per_image"].value > 0


def test_setting_tells_what_it_was_made_with(made: Made) -> None:
    setting, options = made.comparison.setting, made.options
    assert setting.bundle_sha256 == sha256(options.bundle / MANIFEST)
    assert setting.extractor_sha256 == sha256(options.extractor)
    assert (setting.count, setting.endpoint_count, setting.reference_count) == (NUM, 21, 40)
    assert (setting.backend, setting.device, setting.precision) == ("onnxruntime", "cpu", "fp32")
    assert (setting.guidance, setting.seed, setting.latency_batch, setting.threads) == (2.0, 7, 3, 1)
    assert (setting.baseline, setting.truth) == ("H4", "H30")


def test_acceleration_is_against_the_baseline(made: Made) -> None:
    for row in made.comparison.rows:
        if row.schedule == "H4":
            assert row.figures["acceleration"].value == 0
        else:
            assert row.figures["acceleration"].value < 1


def test_truth_is_no_distance_from_itself(made: Made) -> None:
    assert figures(made.comparison, "H30")["endpoint_error"] == 0
    errors = {row.schedule: row.figures["endpoint_error"] for row in made.comparison.rows}
    assert 0 < errors["H4"].value < errors["H2"].value
    for figure in (errors["H4"], errors["H2"]):
        assert figure.interval is not None
        assert figure.interval[0] < figure.value < figure.interval[1]


def test_quality_is_that_of_the_images_which_generate_makes(made: Made, tiny_pipeline: Pipeline) -> None:
    options = made.options
    plan = make_plan(options.bundle, GenerationOptions(num=NUM, schedule="H1P1R1", seed=7))
    images = tiny_pipeline(
        [plan.label_of(i) for i in range(NUM)],
        seeds=[plan.seed_of(i) for i in range(NUM)],
        schedule="H1P1R1",
    )
    extractor = open_extractor(options.extractor)
    reference = open_reference(options.reference, extractor)
    labels = np.arange(NUM) % 3
    expected = judge([images], NUM, reference, extractor, ("fid", "recognised"), labels).values
    found = figures(made.comparison, "H1P1R1")
    assert found["fid"] == pytest.approx(expected["fid"], rel=1e-9)
    assert found["recognised"] == expected["recognised"]
    assert np.array_equal(made.comparison.shown.images["H1P1R1"], images[:20])
    assert made.comparison.shown.seeds == tuple(plan.seed_of(i) for i in range(20))
    assert made.comparison.shown.labels == tuple(range(3)) * 6 + (0, 1)


def again(options: ComparisonOptions, out: Path, said: list[str]) -> Comparison:
    """Compare into a folder that an earlier comparison may have written."""
    prepared = prepare(options, said.append, ignore)
    return compare(prepared, Finished(out, said.append), options.stability, said.append, ignore)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the schedules whose images are generated to be judged, and judge quickly."""
    names: list[str] = []
    iterate = SampleStream.__iter__

    def record(self: SampleStream) -> Any:
        names.append(self._plan.schedule)
        return iterate(self)

    monkeypatch.setattr(SampleStream, "__iter__", record)
    monkeypatch.setattr(measures, "RESAMPLES", 10)
    return names


def quality(comparison: Comparison) -> dict[str, Any]:
    """Return all figures but the timed ones."""
    timed = {"ms_per_image", "acceleration"}
    return {
        row.schedule: {key: figure for key, figure in row.figures.items() if key not in timed}
        for row in comparison.rows
    }


def test_what_is_finished_is_not_done_again(made: Made, generated: list[str]) -> None:
    timed = {row.schedule: row.figures["ms_per_image"] for row in made.comparison.rows}
    found = again(made.options, made.out, [])
    assert generated == []
    assert quality(found) == quality(made.comparison)
    assert np.array_equal(found.shown.images["H2"], made.comparison.shown.images["H2"])
    assert [row.notes[:1] for row in found.rows] == [row.notes[:1] for row in made.comparison.rows]
    # Latency is of this run.
    assert {row.schedule: row.figures["ms_per_image"] for row in found.rows} != timed


def test_a_schedule_more_is_all_that_is_done(made: Made, generated: list[str]) -> None:
    found = again(replace(made.options, schedules=("H2", "E3")), made.out, [])
    assert generated == ["E3"]
    assert quality(found)["H2"] == quality(made.comparison)["H2"]


def test_another_table_of_a_name_is_measured_anew(made: Made, generated: list[str], tmp_path: Path) -> None:
    """And what other schedules gave is used again, whichever table the bundle has."""
    for number, time in enumerate((0.4, 0.5)):
        copy = Path(shutil.copytree(made.options.bundle, tmp_path / str(number) / made.options.bundle.name))
        table = SolverTable("ours", (0, time, 1), ((0.4,), (-0.2, 0.8)))
        save_schedule(Bundle.open(copy), Schedule.of_table(table))
        again(replace(made.options, bundle=copy, schedules=("H2", "table:ours")), made.out, [])
    assert generated == ["table:ours", "table:ours"]


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 8},
        {"num": 22},
        {"guidance": 1.5},
        {"metrics": ("fid",)},
        {"truth_num": 20},
        {"truth_schedule": "H20"},
    ],
)
def test_other_settings_are_measured_anew(made: Made, generated: list[str], changed: dict[str, Any]) -> None:
    options = replace(made.options, schedules=("H4",), **changed)
    again(options, made.out, [])
    assert generated == ["H4"]


@pytest.mark.parametrize("what", ["versions", "machine", "code_sha256"])
def test_other_code_or_another_machine_measures_anew(
    made: Made, generated: list[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    found = getattr(comparing, what)()
    other = f"{found}0" if isinstance(found, str) else {**found, "cpu": "another"}
    monkeypatch.setattr(comparing, what, lambda: other)
    again(replace(made.options, schedules=("H4",)), made.out, [])
    assert generated == ["H4"]


def test_another_judge_is_asked_anew(made: Made, generated: list[str], tmp_path: Path) -> None:
    other = small_options(made.options.bundle, tmp_path)
    np.savez(
        other.reference,
        arr_0=np.zeros((5, 8, 8, 3), np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None, None],
    )
    again(replace(other, schedules=("H4",)), made.out, [])
    assert generated == ["H4"]


def test_a_damaged_result_is_measured_anew(made: Made, generated: list[str], tmp_path: Path) -> None:
    said: list[str] = []
    first = again(replace(made.options, schedules=("H4",)), tmp_path, [])
    (record,) = (tmp_path / FOLDER).glob("H4-*.json")
    data = json.loads(record.read_text())
    data["figures"]["figures"]["fid"]["value"] = 0.0
    data["settings"]["shown"] = 3
    record.write_text(json.dumps(data))
    second = again(replace(made.options, schedules=("H4",)), tmp_path, said)
    assert generated == ["H4", "H4"]
    assert any("damaged; H4 is measured again" in words for words in said)
    assert quality(first) == quality(second)


def test_an_interrupted_comparison_goes_on(
    made: Made, generated: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended while the second schedule is judged: the first is kept, the second begun anew."""
    really, judged = comparing.judge, []

    def interrupted(stream: Any, *rest: Any) -> Any:
        judged.append(1)
        if len(judged) == 2:
            next(iter(stream))
            raise KeyboardInterrupt
        return really(stream, *rest)

    options = replace(made.options, schedules=("H4", "H2"))
    monkeypatch.setattr(comparing, "judge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        again(options, tmp_path, [])
    monkeypatch.setattr(comparing, "judge", really)
    found = again(options, tmp_path, [])
    assert generated == ["H4", "H2", "H2"]
    assert quality(found) == {name: quality(made.comparison)[name] for name in ("H4", "H2")}


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (
            {"schedules": ("H2", "R1", "H1X")},
            ComparisonError,
            "2 of 5 schedules .*: R1: .*H1X",
        ),
        ({"baseline": "fast"}, ComparisonError, "1 of 6 schedules cannot run: fast: is no schedule"),
        ({"truth_schedule": "R1"}, ComparisonError, "R1: starts with R"),
        ({"latency_batch": 2}, ComparisonError, "latency batch 2: the bundle was built for 1, 3; take one"),
        ({"metrics": ("fid", "niceness")}, MetricError, "unknown metric 'niceness'"),
        ({"guidance": float("nan")}, RequestError, "guidance is nan"),
        ({"num": 0}, PlanError, "num is 0"),
    ],
)
def test_mistakes_show_before_anything_is_opened(
    made: Made, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], error: type[Exception], words: str
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise AssertionError("the extractor was opened")

    monkeypatch.setattr("flowturbo_trt.evaluation.comparison.preparation.open_extractor", refuse)
    with pytest.raises(error, match=words):
        prepare(replace(made.options, **changed), lambda text: None, ignore)


def test_a_metric_that_cannot_be_had_shows_before_generating(made: Made, tmp_path: Path) -> None:
    moments = tmp_path / "moments.npz"
    extractor = open_extractor(made.options.extractor)
    gaussian = open_reference(made.options.reference, extractor).gaussians["features"]
    np.savez(moments, mu=gaussian.mean, sigma=gaussian.covariance)
    with pytest.raises(MetricError, match=r"precision: moments\.npz holds means and covariances"):
        prepare(replace(made.options, reference=moments), lambda text: None, ignore)
    prepared = prepare(replace(made.options, reference=moments, metrics=()), lambda text: None, ignore)
    assert prepared.setting.metrics == ("fid", "inception_score", "recognised")
    assert any("kid" in note and "moments.npz" in note for note in prepared.judges.notes)
    assert prepared.setting.reference_count is None


@pytest.mark.parametrize("changed", [{"schedules": ()}, {"schedules": ("H8", "")}, {"truth_num": 0}])
def test_options_that_make_no_sense(made: Made, changed: dict[str, Any]) -> None:
    with pytest.raises(ComparisonError, match=r"no schedule is named|0 images to follow along H30"):
        replace(made.options, **changed)


def test_a_reference_is_known_by_its_content(made: Made, tmp_path: Path) -> None:
    extractor = open_extractor(made.options.extractor)
    reference = open_reference(made.options.reference, extractor)
    (tmp_path / "copy.npz").write_bytes(made.options.reference.read_bytes())
    copy = open_reference(tmp_path / "copy.npz", extractor)
    assert reference_sha256(copy) == reference_sha256(reference)
    assert reference.features is not None
    changed = reference.features.copy()
    changed[0, 0] += 1
    assert reference_sha256(replace(reference, features=changed)) != reference_sha256(reference)
