"""The picture: four panels of what was found, the same file for the same diagnosis."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.velocity.diagnosis import Diagnosis
from flowturbo_trt.evaluation.velocity.figure import draw
from flowturbo_trt.sampling.steps import Field
from flowturbo_trt.tests.evaluation.velocity.fields import KnownField, RefinedField
from flowturbo_trt.tests.evaluation.velocity.made_up import bending, diagnosis_of, helpful


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def note(figure: Figure, *arguments: object, **options: object) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", note)
    return figures


def test_panels_show_the_figures(manifest: Manifest, drawn: list[Figure], tmp_path: Path) -> None:
    found = diagnosis_of(manifest, helpful(bending, 0.5), without_guidance=helpful(bending, 0.5))
    draw(found, [tmp_path / "a.png"])
    curvature, errors, ages, ends = drawn[0].axes[:4]
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in (*curvature.lines, *errors.lines)}
    np.testing.assert_allclose(lines["velocity v"], np.median(found.curvature.velocity, axis=-1))
    column = found.plan.lags.index(found.plan.lag)
    assert found.lags.refined is not None
    np.testing.assert_allclose(lines["refiner"], np.median(found.lags.refined[:, column], axis=-1))
    assert {"velocity reused", "line through two", "refiner, no guidance"} <= set(lines)
    np.testing.assert_allclose(np.nanmedian(ages.collections[0].get_array().filled(np.nan)), 2, rtol=0.01)
    bars = [bar.get_width() for bar in ends.patches]
    np.testing.assert_allclose(bars, np.median(found.endpoints, axis=-1))
    for axes in (curvature, errors, ages, ends):
        assert axes.get_title()
        assert axes.get_xlabel()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_diagnosis_gives_the_same_file(manifest: Manifest, tmp_path: Path) -> None:
    found = diagnosis_of(manifest, helpful(bending, 0.5))
    for name in ("a.svg", "b.svg"):
        draw(found, [tmp_path / name])
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "b.svg").read_text(encoding="utf-8")
    for words in (
        "Where the refiner helps (blue) and harms (red)",
        "perfect refiner",
        "relative L2 of the latent",
    ):
        assert words in text


def constant(x: object, t: float) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("field", "refines", "schedule"),
    [
        (KnownField(bending), False, "H1P2R2"),
        (KnownField(bending), False, "H4"),
        (helpful(bending, 0.5), True, "H4"),
        (helpful(bending, 0.5), True, "H1P5R3@0," + ",".join(f"0.{i}0000000001" for i in range(1, 9)) + ",1"),
        (KnownField(constant), False, "H1P1R1"),
        (RefinedField(constant, lambda x, v, t: np.zeros_like(v)), True, "H1P1R1"),
    ],
    ids=["before", "before, no R", "no R", "long", "no error", "no error either"],
)
@pytest.mark.filterwarnings("error")
def test_whatever_was_found_can_be_drawn(
    manifest: Manifest, tmp_path: Path, field: Field, refines: bool, schedule: str
) -> None:
    found: Diagnosis = diagnosis_of(manifest, field, refines=refines, schedule=schedule)
    draw(found, [tmp_path / "a.svg"])
    title = "Where the refiner helps" if refines else "What a refiner could take away"
    assert title in (tmp_path / "a.svg").read_text(encoding="utf-8")
