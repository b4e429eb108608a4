"""`evaluate`: two folders and every other pair, what it prints and writes, and every bad input."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from flowturbo_trt.commands.evaluate import split_schedules
from flowturbo_trt.evaluation.metrics import frechet_distance
from flowturbo_trt.tests.evaluation.quality.extractors import features_of, random_images, write_extractor

Run = Callable[..., Result]
Document = Callable[..., dict[str, Any]]
Fails = Callable[..., str]

REAL = random_images(30, 0)
SAMPLES = random_images(40, 1, low=30, high=240)


@pytest.fixture
def place(here: Path) -> Path:
    """A folder with two folders of images, the same as arrays, and an extractor."""
    for name, images in (("real", REAL), ("samples", SAMPLES)):
        (here / name).mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image).save(here / name / f"{index:03}.png")
        np.savez(here / f"{name}.npz", arr_0=images)
    write_extractor(here / "x.onnx")
    return here


EXTRACTOR = ("--extractor", "x.onnx", "--threads", 1)
FID = frechet_distance(features_of(SAMPLES), features_of(REAL))


def test_two_folders(place: Path, run: Run) -> None:
    result = run("evaluate", "samples", "real", *EXTRACTOR)
    first, fid, *others = result.stdout.splitlines()
    assert first == "40 samples against 30 references"
    assert fid.split()[:3] == ["FID", "↓", f"{FID:.4g}"]
    assert "(95 %: " in fid
    assert [line.split()[0] for line in others] == ["sFID", "IS", "KID", "precision", "recall"]
    assert "note: a Fréchet distance of fewer than 10,000 samples is biased upward" in result.stderr


def test_the_document(place: Path, document: Document) -> None:
    """The same whatever the images are in, on stdout and in the file."""
    found = document("evaluate", "samples", "real", *EXTRACTOR, "--out", "result.json")
    assert json.loads(Path("result.json").read_text()) == found
    assert found["values"]["fid"] == pytest.approx(FID, rel=1e-4)
    assert (found["count"], found["reference_count"]) == (40, 30)
    assert found["intervals"]["fid"][0] < found["values"]["fid"] < found["intervals"]["fid"][1]
    assert len(found["extractor"]["sha256"]) == 64
    assert any("biased upward" in note for note in found["notes"])
    other = document("evaluate", "samples.npz", "real.npz", *EXTRACTOR, "--batch", 7)
    assert other["values"] == pytest.approx(found["values"], rel=1e-4)


def test_saved_statistics(place: Path, document: Document) -> None:
    """Computed once, they give the same figures."""
    first = document("evaluate", "samples", "real", *EXTRACTOR, "--save-statistics", "real-stats.npz")
    again = document("evaluate", "samples", "real-stats.npz", *EXTRACTOR)
    assert again["values"] == pytest.approx(first["values"])
    assert again["reference_count"] == 30


def test_some_metrics_of_some_samples(place: Path, document: Document) -> None:
    """The same choice for the same seed, and not the first ones."""
    words = ("evaluate", "samples", "real", *EXTRACTOR, "--metric", "kid", "--metric", "recall", "--num", 9)
    found = document(*words)
    assert list(found["values"]) == ["kid", "recall"]
    assert (found["count"], found["seed"]) == (9, 0)
    assert document(*words)["values"] == found["values"]
    assert document(*words, "--seed", 1)["values"] != found["values"]
    np.save("first.npy", SAMPLES[:9])
    first = document("evaluate", "first.npy", "real", *EXTRACTOR, "--metric", "kid")
    assert first["values"]["kid"] != found["values"]["kid"]


def test_labels(place: Path, document: Document) -> None:
    """Given, or known to the file; chosen with the samples."""
    labels = SAMPLES.astype(int).sum(axis=(1, 2)).argmax(axis=1)
    np.save("labels.npy", labels)
    words = ("evaluate", "samples", "real", *EXTRACTOR, "--metric", "recognised")
    assert document(*words, "--labels", "labels.npy")["values"] == {"recognised": 1}
    assert document(*words, "--labels", "labels.npy", "--num", 11)["values"] == {"recognised": 1}
    np.savez("labelled.npz", SAMPLES, (labels + (np.arange(40) < 10)) % 3)
    found = document("evaluate", "labelled.npz", "real", *EXTRACTOR)
    assert found["values"]["recognised"] == pytest.approx(0.75)


def corrupt_image(place: Path) -> None:
    (place / "samples" / "003.png").write_bytes(b"no image")


def empty_folder(place: Path) -> None:
    for file in (place / "samples").iterdir():
        file.unlink()


def extractor_of_another_shape(place: Path) -> None:
    write_extractor(place / "x.onnx", shape=("batch", 4, 4, 3))


def broken_extractor(place: Path) -> None:
    write_extractor(place / "x.onnx", scale=0)


def no_extractor(place: Path) -> None:
    (place / "x.onnx").unlink()


def one_sample(place: Path) -> None:
    for file in sorted((place / "samples").iterdir())[1:]:
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (corrupt_image, "samples/003.png: cannot be decoded"),
        (empty_folder, "samples: holds no images"),
        (extractor_of_another_shape, "x.onnx: takes images of 4×4 only, these are 2×2"),
        (broken_extractor, "x.onnx: its features hold NaN"),
        (no_extractor, "x.onnx: no such file"),
        (one_sample, "1 sample has no covariance"),
    ],
)
def test_bad_samples_and_extractors(
    place: Path, fails: Fails, spoil: Callable[[Path], None], complaint: str
) -> None:
    spoil(place)
    assert complaint in fails("evaluate", "samples", "real", *EXTRACTOR, "--out", "result.json")
    assert not Path("result.json").exists()


def corrupt_npz(path: Path) -> None:
    content = (path.parent / "real.npz").read_bytes()
    path.write_bytes(content[: len(content) // 2])


def object_array(path: Path) -> None:
    np.savez(path, np.array([{}], dtype=object))


def other_dimension(path: Path) -> None:
    np.savez(path, mu=np.zeros(5), sigma=np.eye(5))


def nothing_known(path: Path) -> None:
    np.savez(path, weights=np.zeros(5))


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (corrupt_npz, "bad.npz: cannot be read, damaged"),
        (object_array, "bad.npz: cannot be read, damaged or no plain array file (it holds Python objects"),
        (other_dimension, "bad.npz: its statistics are of 5 features, the extractor gives 12"),
        (nothing_known, "bad.npz: has no arr_0"),
    ],
)
def test_bad_references(place: Path, fails: Fails, write: Callable[[Path], None], complaint: str) -> None:
    write(place / "bad.npz")
    assert complaint in fails("evaluate", "samples", "bad.npz", *EXTRACTOR)


def test_samples_are_looked_at_before_the_reference_is_read(place: Path, fails: Fails) -> None:
    """Its error, and not that of the reference, which may take hours."""
    corrupt_npz(place / "bad.npz")
    extractor_of_another_shape(place)
    assert "x.onnx: takes images of 4×4" in fails("evaluate", "samples", "bad.npz", *EXTRACTOR)
    (place / "samples" / "000.png").write_bytes(b"no image")
    assert "samples/000.png" in fails("evaluate", "samples", "bad.npz", *EXTRACTOR)


def test_mistakes(place: Path, fails: Fails, run: Run) -> None:
    words = ("evaluate", "samples", "real", *EXTRACTOR)
    assert "--num 41: samples holds 40 images" in fails(*words, "--num", 41)
    assert "--labels gives 2 labels, samples holds 40" in fails(*words, "--labels", "1,2")
    assert "unknown metric 'fidd'" in fails(*words, "--metric", "fidd")
    assert "cannot be written" in fails(*words, "--out", "nowhere/result.json")
    assert "ending in .npz" in run(*words, "--save-statistics", "stats.npy", status=2).stderr
    assert "Missing option '--extractor'" in run("evaluate", "samples", "real", status=2).stderr


@pytest.mark.parametrize(
    "option", ["--guidance=2", "--baseline=H4", "--latency-batch=1", "--truth-num=9", "--max-seconds=9"]
)
def test_options_of_a_comparison(place: Path, run: Run, option: str) -> None:
    result = run("evaluate", "samples", "real", *EXTRACTOR, option, status=2)
    assert f"{option.partition('=')[0]} means nothing without --compare" in result.stderr


@pytest.mark.parametrize("option", ["--labels=1,2", "--batch=3", "--save-statistics=x.npz"])
def test_options_of_a_judgement(place: Path, run: Run, option: str) -> None:
    result = run("evaluate", "bundle", "real", *EXTRACTOR, "--compare", "H8", option, status=2)
    assert f"{option.partition('=')[0]} means nothing with --compare" in result.stderr


def test_compare_hands_over(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    stand_in = SimpleNamespace(run=lambda console, **given: asked.update(given))
    monkeypatch.setitem(sys.modules, "flowturbo_trt.commands.comparing", stand_in)
    monkeypatch.setattr("flowturbo_trt.commands.comparing", stand_in, raising=False)
    words = ("--compare", "H8,H1P5R3", "--compare", "AB2x8", "--guidance", 2, "--out", "report", "--num", 50)
    run("evaluate", "bundle", "real", *EXTRACTOR, *words, "--baseline", "H8", "--metric", "fid")
    assert asked == {
        "bundle": Path("bundle"),
        "reference": Path("real"),
        "extractor": Path("x.onnx"),
        "schedules": ("H8", "H1P5R3", "AB2x8"),
        "metrics": ("fid",),
        "num": 50,
        "seed": 0,
        "out": Path("report"),
        "guidance": 2.0,
        "baseline": "H8",
        "latency_batch": None,
        "max_seconds": None,
        "truth_schedule": None,
        "truth_num": None,
        "backend": None,
        "device": None,
        "provider": None,
        "threads": 1,
    }


@pytest.mark.parametrize(
    ("texts", "schedules"),
    [
        (("H8",), ("H8",)),
        (("H8, H1P5R3,AB2x8", "E4"), ("H8", "H1P5R3", "AB2x8", "E4")),
        (("H1P1@0,0.3,1,H8",), ("H1P1@0,0.3,1", "H8")),
        (("H8,H1P1@0,.3,1", "H2@0,0.5,1"), ("H8", "H1P1@0,.3,1", "H2@0,0.5,1")),
        (("H8:guided=0.1..0.8,H1P5R3:single",), ("H8:guided=0.1..0.8", "H1P5R3:single")),
        # No list of times begins with a time.
        (("H8", "1,H4"), ("H8", "1", "H4")),
        (("H8,,H4",), ("H8", "", "H4")),
    ],
)
def test_split_schedules(texts: tuple[str, ...], schedules: tuple[str, ...]) -> None:
    assert split_schedules(texts) == schedules
