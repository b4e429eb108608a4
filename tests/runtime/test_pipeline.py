"""Pipelines: order and independence of rows, guidance, variants, schedules."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt import Bundle, FlowTurboError, Schedule, Step
from flowturbo_trt import Pipeline as PublicPipeline
from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.runtime.host_trajectory import HostRun, HostTrajectory
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import RequestError, make_request
from flowturbo_trt.sampling.noise import standard_normal
from flowturbo_trt.sampling.schedule import ScheduleError
from flowturbo_trt.tests.bundles import Array, changed_copy, latents

# Float32 in a batch of another size: what remains is the order of summation.
TOLERANCE = 1e-5
LABELS = [7, 0, 1, 9, 7, 3, 3]
SEEDS = [5, 2**64 - 1, 0, 5, 6, 77, 1000]


@pytest.fixture(scope="module")
def all_rows(golden_pipeline: Pipeline) -> Array:
    """The latents of all LABELS in one request: batches of 2, 2, 2 and 1."""
    return latents(golden_pipeline, LABELS, seeds=SEEDS)


@pytest.fixture(scope="module")
def padded(golden_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The golden networks at batch 4 only, so that most requests are padded."""
    folder = tmp_path_factory.mktemp("padded")
    return Pipeline.load(
        changed_copy(golden_bundle, folder, lambda data: data.update(batches=[4])), threads=1
    )


@pytest.fixture
def variants_run(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The variants of all programs that are run."""
    variants: set[str] = set()
    start = HostTrajectory.start

    def watched(trajectory: HostTrajectory, **options: Any) -> HostRun:
        variants.update(variant for _, variant in trajectory._program.evaluations())
        return start(trajectory, **options)

    monkeypatch.setattr(HostTrajectory, "start", watched)
    return variants


def test_public_names() -> None:
    assert PublicPipeline is Pipeline
    assert Bundle.__module__ == "flowturbo_trt.bundle.store"
    assert issubclass(RequestError, FlowTurboError)
    assert Step.__module__ == "flowturbo_trt.runtime.pipeline"


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_any_number_of_rows(golden_pipeline: Pipeline, all_rows: Array, n: int) -> None:
    """In order, and the images are those of the latents."""
    request = make_request(golden_pipeline.manifest.model, {"label": LABELS[:n]}, SEEDS[:n], None, None)
    made = golden_pipeline.generate(request)
    images = golden_pipeline(LABELS[:n], seeds=SEEDS[:n])
    assert images.shape == (n, 16, 16, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, made.images)
    assert relative_l2(made.latents, all_rows[:n]) <= TOLERANCE
    assert len({image.tobytes() for image in images}) == n


def test_row_alone_is_the_row_in_a_batch(golden_pipeline: Pipeline, all_rows: Array) -> None:
    for row in range(len(LABELS)):
        alone = latents(golden_pipeline, LABELS[row : row + 1], seeds=SEEDS[row : row + 1])
        assert relative_l2(alone[0], all_rows[row]) <= TOLERANCE


def test_order_of_rows_does_not_matter(golden_pipeline: Pipeline, all_rows: Array) -> None:
    order = [3, 6, 0, 2, 5, 1, 4]
    found = latents(golden_pipeline, [LABELS[i] for i in order], seeds=[SEEDS[i] for i in order])
    assert relative_l2(found, all_rows[order]) <= TOLERANCE


@pytest.mark.parametrize("n", [1, 3, 4, 5, 7])
def test_padding(padded: Pipeline, all_rows: Array, n: int) -> None:
    found = latents(padded, LABELS[:n], seeds=SEEDS[:n], guidance=[1.5] * n)
    assert relative_l2(found, all_rows[:n]) <= TOLERANCE
    assert padded(LABELS[:n]).shape == (n, 16, 16, 3)


def test_seeds_count_from_0(golden_pipeline: Pipeline) -> None:
    found = latents(golden_pipeline, LABELS)
    np.testing.assert_array_equal(found, latents(golden_pipeline, LABELS, seeds=range(7)))
    noise = np.stack([standard_normal(seed, (4, 8, 8)) for seed in range(7)])
    np.testing.assert_array_equal(found, latents(golden_pipeline, LABELS, noise=noise))


def test_seed_label_and_guidance_each_matter(golden_pipeline: Pipeline) -> None:
    base = latents(golden_pipeline, [1], seeds=[1], guidance=2)
    for changed in ({"labels": [2]}, {"seeds": [2]}, {"guidance": 2.5}):
        arguments: dict[str, Any] = {"labels": [1], "seeds": [1], "guidance": 2} | changed
        assert relative_l2(latents(golden_pipeline, **arguments), base) > 1e-3


def test_guidance_per_row(golden_pipeline: Pipeline) -> None:
    scales = [1.5, 0.0, 4.0, 1.0, 1.5]
    together = latents(golden_pipeline, LABELS[:5], seeds=SEEDS[:5], guidance=scales)
    for row, scale in enumerate(scales):
        # The same variant as in the batch, which a scale of exactly 1 alone would leave.
        scale = scale + 1e-7 if scale == 1 else scale
        alone = latents(golden_pipeline, [LABELS[row]], seeds=[SEEDS[row]], guidance=scale)
        assert relative_l2(alone[0], together[row]) <= TOLERANCE


@pytest.mark.parametrize(
    ("guidance", "variant"), [(1, "unguided"), ([1, 1, 1], "unguided"), ([1, 1, 2], "guided"), (0, "guided")]
)
def test_guidance_1_takes_the_unguided_variant(
    golden_pipeline: Pipeline, variants_run: set[str], guidance: Any, variant: str
) -> None:
    latents(golden_pipeline, [1, 2, 3], guidance=guidance)
    assert variants_run == {variant}


def test_guidance_1_without_an_unguided_variant(tiny_pipeline: Pipeline, variants_run: set[str]) -> None:
    latents(tiny_pipeline, [1], guidance=1)
    assert variants_run == {"guided"}


@pytest.mark.parametrize("schedule", ["H1P5R3", "H2P3R0", "AB3x5"])
def test_variants_agree_at_guidance_1(golden_pipeline: Pipeline, schedule: str) -> None:
    unguided = latents(golden_pipeline, LABELS, schedule, guidance=1)
    # One row is guided, so that all go through the guided variant.
    guided = latents(golden_pipeline, [*LABELS, 0], schedule, guidance=[1.0] * 7 + [2.0])
    assert relative_l2(guided[:7], unguided) <= TOLERANCE


def test_guidance_interval(golden_pipeline: Pipeline, variants_run: set[str]) -> None:
    """Guided inside it, unguided outside; without guidance it makes no difference."""
    found = latents(golden_pipeline, LABELS, "H2P2R1:guided=0.1..0.5", guidance=3)
    assert variants_run == {"guided", "unguided"}
    for other in ("H2P2R1", "H2P2R1:guided=0.1..0.9"):
        assert relative_l2(found, latents(golden_pipeline, LABELS, other, guidance=3)) > 1e-2
    unguided = latents(golden_pipeline, LABELS, "H2P2R1", guidance=1)
    assert relative_l2(found, unguided) > 1e-2
    np.testing.assert_array_equal(
        latents(golden_pipeline, LABELS, "H2P2R1:guided=0.1..0.5", guidance=1), unguided
    )


@pytest.mark.parametrize("schedule", ["H1P1R1", "E2@0,0.25,1"])
def test_schedule_as_text_or_object(golden_pipeline: Pipeline, schedule: str) -> None:
    text = golden_pipeline([1], schedule=schedule)
    np.testing.assert_array_equal(golden_pipeline([1], schedule=Schedule.parse(schedule)), text)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("Z3", "unknown step 'Z'"),
        ("R2", "starts with R"),
        ("H2@0,0.5,0.9", "runs from 0.0 to 0.9; generation needs 0 to 1"),
        ("E1@0.5,1", "runs from 0.5 to 1.0; generation needs 0 to 1"),
    ],
)
def test_schedule_that_cannot_run(golden_pipeline: Pipeline, schedule: str, words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        golden_pipeline([1], schedule=schedule)
