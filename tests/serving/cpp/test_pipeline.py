"""The images of the C++ library against those of Python's Pipeline, on the same bundles."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.noise import MAX_SEED
from flowturbo_trt.sampling.program_json import to_json
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.tests.bundles import changed_copy, latents
from flowturbo_trt.tests.serving.cpp.library import CPipeline, Library

if TYPE_CHECKING:
    from flowturbo_trt.export.options import BuildOptions

LABELS = tuple(label % 10 for label in range(19))
SEEDS = (0, MAX_SEED, 2**63, *range(100, 116))
MIXED = tuple(1 + 0.25 * (row % 7) for row in range(19))


@pytest.fixture(scope="module")
def digits(cpp_library: Library, digits_bundle: Path) -> Iterator[CPipeline]:
    with cpp_library.load(digits_bundle, threads=1) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def python_digits(digits_bundle: Path) -> Pipeline:
    return Pipeline.load(digits_bundle, threads=1)


def assert_same_images(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
    """Rounding may carry a pixel over to the next level, and no further."""
    apart = np.abs(found.astype(int) - expected)
    assert apart.max() <= 1
    assert np.mean(apart == 0) >= 0.999
    assert expected.std() > 20


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"guidance": 3.0},
        {"guidance": 1.0},
        {"guidance": MIXED},
        {"guidance": MIXED, "schedule": "H1P1R1"},
        {"schedule": "H25"},
    ],
    ids=str,
)
def test_digits_are_pythons(digits: CPipeline, python_digits: Pipeline, given: dict[str, Any]) -> None:
    expected = python_digits(LABELS, seeds=SEEDS, **given)
    assert_same_images(digits.images(LABELS, seeds=SEEDS, **given), expected)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 17])
def test_any_number_of_images(digits: CPipeline, python_digits: Pipeline, count: int) -> None:
    assert_same_images(digits.images(LABELS[:count]), python_digits(LABELS[:count]))


@pytest.mark.usefixtures("instant_export")
def test_eight_bit_engines(
    cpp_library: Library, tiny_bundle: Path, tiny_options: "BuildOptions", tmp_path: Path
) -> None:
    from flowturbo_trt.export.build import build
    from flowturbo_trt.tests.export.recipes import recipe_for, saved

    recipe = saved(recipe_for(tiny_bundle, "int8"), tmp_path / "int8.json")
    options = replace(tiny_options, precisions=("int8",), recipes=(recipe,))
    bundle = build(options, tmp_path / "int8").path
    assert_same_latents(cpp_library, bundle, ["H2"])
    # Sessions of other settings would round otherwise: products of integers are no longer found.
    with cpp_library.load(bundle, threads=1) as pipeline:
        found = pipeline.latents([0, 1, 2])
    assert np.array_equal(found, latents(Pipeline.load(bundle, threads=1), [0, 1, 2]))


@pytest.mark.parametrize("name", ["golden_bundle", "tiny_bundle", "tiny_fused_bundle"])
def test_every_kind_of_guidance_and_conditioning(
    cpp_library: Library, request: pytest.FixtureRequest, name: str
) -> None:
    bundle: Path = request.getfixturevalue(name)
    assert_same_latents(cpp_library, bundle, [None] if "golden" in name else [None, "H2"])


def test_program_of_both_variants(cpp_library: Library, golden_bundle: Path, tmp_path: Path) -> None:
    schedule = "H4:guided=0.2..0.7"
    programs = {
        variant: to_json(trace(Schedule.parse(schedule), variant)) for variant in ("guided", "unguided")
    }
    bundle = changed_copy(golden_bundle, tmp_path, lambda m: m["programs"].update({schedule: programs}))
    assert_same_latents(cpp_library, bundle, [schedule])


def test_bundle_of_version_1(cpp_library: Library, tiny_fused_bundle: Path, tmp_path: Path) -> None:
    def make_older(manifest: dict[str, Any]) -> None:
        manifest["version"] = 1
        del manifest["model"]["conditions"][0]["null"]

    assert_same_latents(cpp_library, changed_copy(tiny_fused_bundle, tmp_path, make_older), [None])


def halve_first_terms(program: dict[str, Any]) -> None:
    """Let sums read their first term again, so that the result may not take its place."""
    for instruction in program["instructions"]:
        if instruction["op"] == "combine":
            coefficient, source = instruction["terms"][0]
            instruction["terms"][0] = [coefficient / 2, source]
            instruction["terms"].append([coefficient / 2, source])


def end_early(program: dict[str, Any]) -> None:
    """Let the result be that of the first step, which is to outlive what comes after it."""
    program["output"] = program["steps"][0]["state"]


@pytest.mark.parametrize("change", [halve_first_terms, end_early])
def test_programs_as_the_format_allows_them(
    cpp_library: Library,
    tiny_fused_bundle: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
) -> None:
    # One state follows the other in the same buffer.
    program = to_json(trace(Schedule.parse("AB2x4"), "guided"))
    change(program)
    programs = {"AB2x4": {"guided": program}}
    bundle = changed_copy(tiny_fused_bundle, tmp_path, lambda m: m["programs"].update(programs))
    assert_same_latents(cpp_library, bundle, ["AB2x4"])


def assert_same_latents(library: Library, bundle: Path, schedules: Sequence[str | None]) -> None:
    """Hold latents, and images where there are any, against Python's; N is no multiple of a batch."""
    python = Pipeline.load(bundle, threads=1)
    (condition,) = python.manifest.model.conditions
    labels = [condition.minimum + row % (condition.maximum - condition.minimum + 1) for row in range(5)]
    variants = python.manifest.programs[python.manifest.default_schedule]
    scales: list[Any] = [1.0] if "unguided" in variants else []
    scales += [None, (1, 1.5, 2, 3, -0.5)] if "guided" in variants else []
    with library.load(bundle, threads=1) as pipeline:
        for schedule in schedules:
            for guidance in scales:
                given = {"seeds": [9, 8, 7, 6, 5], "guidance": guidance}
                expected = latents(python, labels, schedule, **given)
                found = pipeline.latents(labels, schedule=schedule, **given)
                assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)
                if python.manifest.model.image:
                    images = python(labels, schedule=schedule, **given)
                    assert_same_images(pipeline.images(labels, schedule=schedule, **given), images)


def test_nothing_is_left_of_earlier_requests(digits: CPipeline) -> None:
    """A, B, A: other labels, schedules, guidance and batch sizes in between."""
    first = digits.images([3, 4], seeds=[1, 2])
    assert not np.array_equal(digits.images([5, 4], seeds=[1, 2]), first)
    assert not np.array_equal(digits.images([3, 4], seeds=[1, 2], guidance=4), first)
    digits.images([3, 4], seeds=[1, 2], schedule="H1P1R1")
    digits.images(LABELS)
    assert np.array_equal(digits.images([3, 4], seeds=[1, 2]), first)


def test_an_image_depends_on_its_own_row_alone(digits: CPipeline) -> None:
    """The order is kept, whatever the batch a row rides in; in another one it may round otherwise."""
    together = digits.images(LABELS, seeds=SEEDS, guidance=MIXED)
    for row in (0, 7, 8, 18):
        alone = digits.images([LABELS[row]], seeds=[SEEDS[row]], guidance=MIXED[row])
        assert_same_images(together[row : row + 1], alone)


def test_latents_are_those_that_are_decoded(digits: CPipeline, python_digits: Pipeline) -> None:
    expected = latents(python_digits, LABELS, seeds=SEEDS)
    assert np.allclose(digits.latents(LABELS, seeds=SEEDS), expected, rtol=0, atol=1e-5)


def test_threads_share_a_pipeline(digits: CPipeline) -> None:
    requests = [([row % 10], [row], 1 + 0.1 * row) for row in range(24)]

    def generate(request: tuple[list[int], list[int], float]) -> NDArray[np.uint8]:
        labels, seeds, guidance = request
        return digits.images(labels, seeds=seeds, guidance=guidance, schedule="H1P1R1")

    alone = [generate(request) for request in requests]
    with ThreadPoolExecutor(4) as threads:
        for expected, found in zip(alone, threads.map(generate, requests), strict=True):
            assert np.array_equal(found, expected)
