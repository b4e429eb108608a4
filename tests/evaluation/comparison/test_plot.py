"""The plot: the Pareto front by closed form, and a drawing that a page can hold."""

import re
import xml.etree.ElementTree as ET

import pytest

from flowturbo_trt.evaluation.comparison.findings import Figure
from flowturbo_trt.evaluation.comparison.plot import Point, draw, front_of

SVG = "{http://www.w3.org/2000/svg}"


def point(name: str, latency: float, quality: float, *, is_refined: bool = False) -> Point:
    return Point(name, is_refined, Figure(latency), Figure(quality))


POINTS = [
    point("fast", 10, 5),
    point("beaten", 12, 6),
    point("level", 20, 5),
    point("good", 20, 3, is_refined=True),
    point("twin", 20, 3),
    point("best", 40, 1),
    point("slow", 80, 2),
]


def names(front: list[Point]) -> list[str]:
    return [found.name for found in front]


def test_front_is_what_nothing_beats() -> None:
    assert names(front_of(POINTS, lower_is_better=True)) == ["fast", "good", "best"]
    assert names(front_of(POINTS[::-1], lower_is_better=True)) == ["fast", "twin", "best"]
    assert names(front_of(POINTS, lower_is_better=False)) == ["fast", "beaten"]
    assert names(front_of(POINTS[:1], lower_is_better=True)) == ["fast"]


def drawn(points: list[Point], **given: bool) -> tuple[str, ET.Element]:
    text = draw(points, "FID ↓", **({"lower_is_better": True} | given))
    return text, ET.fromstring(text)


def texts(element: ET.Element) -> list[str]:
    return ["".join(found.itertext()).strip() for found in element.iter(f"{SVG}text")]


def test_every_schedule_is_named_once() -> None:
    _, element = drawn(POINTS)
    found = texts(element)
    assert [found.count(p.name) for p in POINTS] == [1] * len(POINTS)
    for words in ("ms per image", "FID ↓", "with refiner", "predictor alone", "Pareto front"):
        assert words in found


def test_names_of_points_in_one_place_stand_apart() -> None:
    """Seven schedules of one latency and quality, and one far off that stretches the axes."""
    points = [point(f"name{i}", 10, 1) for i in range(7)] + [point("other", 100, 2)]
    _, element = drawn(points)
    lefts = []
    for found in element.iter(f"{SVG}text"):
        if "".join(found.itertext()).strip().startswith("name"):
            x, y = float(found.get("x", "")), float(found.get("y", ""))
            # Names of five letters are about 30 wide and 10 high.
            lefts.append((x - 30 if "text-anchor: end" in found.get("style", "") else x, y))
    assert len(lefts) == 7
    for i, (x, y) in enumerate(lefts):
        assert 0 < x < 388
        assert all(abs(y - other_y) >= 8 or abs(x - other_x) >= 28 for other_x, other_y in lefts[:i])


def test_drawing_takes_after_the_page() -> None:
    text, element = drawn(POINTS)
    assert element.tag == f"{SVG}svg"
    assert "currentColor" in text
    assert "#010203" not in text
    assert not {"width", "height"} & set(element.attrib)
    assert element.get("viewBox")
    # Two drawings stand in one page: what is not referred to has no id that could clash.
    for found in re.findall(r' id="([^"]+)"', text):
        assert f"#{found}" in text
    references = re.findall(r'(?:href="|url\()([^")]+)', text)
    assert references
    assert all(found.startswith("#") for found in references)
    assert "purl.org" not in text


def test_axes_reach_as_far_as_bars_do() -> None:
    sharp = [point("a", 10, 1), point("b", 20, 2)]
    wide = [Point("a", False, Figure(10, (2, 12)), Figure(1, (0.5, 1.5))), sharp[1]]
    assert "2.5" in texts(drawn(wide)[1])
    assert "2.5" not in texts(drawn(sharp)[1])


@pytest.mark.parametrize("quality", [(1.0, 100.0), (-1.0, 100.0), (1.0, 1.0)])
def test_any_spread_can_be_drawn(quality: tuple[float, float]) -> None:
    points = [point("a", 10, quality[0]), point("b", 500, quality[1])]
    _, element = drawn(points)
    assert {"a", "b"} <= set(texts(element))
    assert {"a"} <= set(texts(drawn(points[:1])[1]))


def test_shares_are_in_percent() -> None:
    _, element = drawn([point("a", 10, 0.1), point("b", 20, 0.2)], as_percent=True)
    assert any(found.endswith("%") for found in texts(element))


def test_the_same_points_give_the_same_bytes() -> None:
    assert draw(POINTS, "FID", lower_is_better=True) == draw(POINTS, "FID", lower_is_better=True)
