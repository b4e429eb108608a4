import pytest

from flowturbo_trt.benchmarks.serving_requests import until
from flowturbo_trt.serving.triton import metrics
from flowturbo_trt.serving.triton.metrics import FAMILIES, Metrics, StageTimer
from flowturbo_trt.tests.serving.triton.models import all_counted, counted


def test_counters_an_alert_needs_are_there_from_the_start() -> None:
    Metrics("tiny", "1").close()
    assert counted("flowturbo_rows_total") == 0
    assert {
        frozenset({"model": "tiny", "version": "1", "reason": r}.items()) for r in ("invalid", "internal")
    } == set(all_counted("flowturbo_failed_requests_total"))
    assert set(all_counted("flowturbo_cancelled_requests_total")) == {
        frozenset({"model": "tiny", "version": "1"}.items())
    }


def test_instances_of_a_model_add_up_and_other_models_do_not() -> None:
    instances = [Metrics("tiny", "1"), Metrics("tiny", "1"), Metrics("tiny", "2"), Metrics("other", "1")]
    for instance in instances:
        instance.add("flowturbo_evaluations_total", 3, network="predictor", variant="guided")
        instance.add("flowturbo_evaluations_total", 1, variant="unguided", network="predictor")
        instance.close()
    assert counted("flowturbo_evaluations_total", network="predictor", variant="guided") == 6
    assert counted("flowturbo_evaluations_total", network="predictor", variant="unguided") == 2
    assert len(all_counted("flowturbo_evaluations_total")) == 6


def test_what_was_added_is_told_once_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "FLUSH_SECONDS", 0.01)
    instance = Metrics("tiny", "1")
    instance.add("flowturbo_rows_total", 2)
    until(lambda: counted("flowturbo_rows_total") == 2)
    instance.add("flowturbo_rows_total", 3)
    instance.close()
    assert counted("flowturbo_rows_total") == 5


def test_to_add_does_not_go_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "FLUSH_SECONDS", 3600)
    instance = Metrics("tiny", "1")
    instance.add("flowturbo_rows_total", 2)
    assert counted("flowturbo_rows_total") == 0
    instance.close()
    assert counted("flowturbo_rows_total") == 2


def test_timer_gives_each_stage_the_time_since_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 10.5, 11.5, 13.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    instance = Metrics("tiny", "1")
    timer = StageTimer(instance)
    for stage in ("H", "R", "H"):
        timer.end(stage)
    instance.close()
    milliseconds = {stage: counted("flowturbo_stage_milliseconds_total", stage=stage) for stage in "HR"}
    assert milliseconds == {"H": 2500, "R": 1000}
    assert {stage: counted("flowturbo_stages_total", stage=stage) for stage in "HR"} == {"H": 2, "R": 1}


def test_names_follow_the_rules_of_prometheus() -> None:
    assert all(name.startswith("flowturbo_") and name.endswith("_total") for name in FAMILIES)
