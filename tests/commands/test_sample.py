"""`sample`: the authors' trajectories from the command line, and what it writes."""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from numpy.typing import NDArray
from PIL import Image

from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.tests.bundles import SCHEDULES

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[..., Result]
Document = Callable[..., dict[str, Any]]
ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-4


def assert_golden(path: Path, schedule: str, golden: Arrays) -> None:
    """Every state and velocity of the conditional rows."""
    n = len(golden["y"])
    with np.load(path, allow_pickle=False) as found:
        assert set(found) == {f"{schedule}_x", f"{schedule}_v"}
        for name in found:
            expected = golden[name][:, :n]
            assert found[name].shape == expected.shape
            assert found[name].dtype == np.float32
            for step in range(len(expected)):
                assert relative_l2(found[name][step], expected[step]) <= TOLERANCE


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_golden_trajectories(
    run: Run, golden_bundle: Path, golden_inputs: list[str], golden: Arrays, schedule: str
) -> None:
    run("sample", golden_bundle, *golden_inputs, "--schedule", schedule, "--trajectory", "t.npz")
    assert_golden(Path("t.npz"), schedule, golden)


def test_as_a_process(golden_bundle: Path, golden_inputs: list[str], golden: Arrays) -> None:
    words = ["sample", str(golden_bundle), *golden_inputs, "--schedule", "H1P5R3", "--trajectory", "t.npz"]
    process = [sys.executable, str(ROOT / "flowturbo_trt.py"), *words]
    done = subprocess.run(process, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 images with H1P5R3 in ")
    assert_golden(Path("t.npz"), "H1P5R3", golden)


def test_trajectory_of_seeds_starts_with_their_noise(run: Run, tiny_bundle: Path, here: Path) -> None:
    words = ["sample", tiny_bundle, "--labels", "0-2", "--schedule", "E3", "--output-latents", "x.npy"]
    run(*words, "--trajectory", "t.npz")
    with np.load("t.npz") as found:
        states, velocities = found["E3_x"], found["E3_v"]
    np.testing.assert_array_equal(states[-1], np.load("x.npy"))
    np.testing.assert_allclose(states[1:], states[:-1] + velocities / 3, rtol=0, atol=1e-5)
    np.save("z.npy", states[0])
    run(*words, "--noise", "z.npy")
    np.testing.assert_array_equal(np.load("x.npy"), states[-1])


def test_writes_what_the_pipeline_makes(
    run: Run, tiny_bundle: Path, tiny_pipeline: Pipeline, here: Path
) -> None:
    expected = tiny_pipeline([0, 1, 2, 0, 1], seeds=[7, 8, 9, 10, 11], guidance=3, schedule="AB2x4")
    words = ["--labels", "0-2,0,1", "--seeds", 7, "--guidance", 3, "--schedule", "AB2x4", "--threads", 1]
    run("sample", tiny_bundle, *words, "--out", "x.npy")
    np.testing.assert_array_equal(np.load("x.npy"), expected)
    run("sample", tiny_bundle, *words, "--out", "x.png", "--columns", 5)
    with Image.open("x.png") as picture:
        assert picture.size == (5 * 8, 8)
        np.testing.assert_array_equal(np.asarray(picture), np.concatenate(list(expected), axis=1))


def test_picture_is_square_by_default(run: Run, tiny_bundle: Path, here: Path) -> None:
    run("sample", tiny_bundle, "--labels", "0,1,2,0,1", "--out", "x.png")
    with Image.open("x.png") as picture:
        assert picture.size == (3 * 8, 2 * 8)


def test_defaults(run: Run, tiny_bundle: Path, tiny_pipeline: Pipeline, here: Path) -> None:
    """The bundle's schedule and guidance; seeds count from 0."""
    run("sample", tiny_bundle, "--labels", "0,1,2", "--out", "x.npy", "--threads", 1)
    expected = tiny_pipeline([0, 1, 2], seeds=[0, 1, 2], guidance=2, schedule="H1P1R1")
    np.testing.assert_array_equal(np.load("x.npy"), expected)


def test_latents_need_no_decoder(
    run: Run, tiny_bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "flowturbo_trt.runtime.host_trajectory.HostTrajectory._decoder", lambda self: pytest.fail("decoded")
    )
    run("sample", tiny_bundle, "--labels", "0,1", "--output-latents", "x.npy")
    latents = np.load("x.npy")
    assert (latents.shape, latents.dtype) == ((2, 2, 4, 4), np.float32)


def test_document(document: Document, tiny_bundle: Path, here: Path) -> None:
    found = document("sample", tiny_bundle, "--labels", "0,1", "--out", "x.png", "--output-latents", "x.npy")
    assert found["images"] == 2
    assert found["schedule"] == "H1P1R1"
    assert found["evaluations"] == {"predictor": 3, "refiner": 2}
    assert found["outputs"] == ["x.png", "x.npy"]
    assert found["seconds"] > 0


def test_progress_goes_to_stderr(run: Run, tiny_bundle: Path, here: Path) -> None:
    words = ["sample", tiny_bundle, "--labels", "0,1,2", "--schedule", "E2", "--out", "x.npy"]
    result = run(*words)
    assert re.fullmatch(r"3 images with E2 in .* s \(.* ms each\): x\.npy\n", result.stdout)
    assert result.stderr.splitlines()[-1] == "[6/6] sampling E2"
    assert run(*words, "-q").stderr == ""


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--out", "missing/x.png"], 1),
        (["--out", "x.jpg"], 2),
        (["--output-latents", "folder"], 1),
        (["--trajectory", "missing/t.npz", "--out", "x.png"], 1),
        (["--out", "x.npy", "--output-latents", "x.npy"], 2),
    ],
)
def test_outputs_are_checked_before_work(
    run: Run, tiny_bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], status: int
) -> None:
    (here / "folder").mkdir()
    monkeypatch.setattr(Pipeline, "load", lambda *arguments, **options: pytest.fail("loaded"))
    run("sample", tiny_bundle, "--labels", "0", *words, status=status)
    assert [path.name for path in here.iterdir()] == ["folder"]


def test_files_are_written_only_when_all_is_done(
    run: Run, tiny_bundle: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "x.npy").write_text("older")

    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("midway")

    monkeypatch.setattr(Pipeline, "generate", fail)
    run("sample", tiny_bundle, "--labels", "0", "--out", "x.npy", status=1)
    assert (here / "x.npy").read_text() == "older"


def test_seeds_and_noise(fails: Callable[..., str], tiny_bundle: Path, here: Path) -> None:
    np.save("z.npy", np.zeros((1, 2, 4, 4), np.float32))
    words = ["--labels", "0", "--noise", "z.npy", "--seeds", "1", "--out", "x.npy"]
    assert "both seeds and noise are given" in fails("sample", tiny_bundle, *words)


@pytest.mark.parametrize("option", ["--labels", "--seeds"])
def test_list_that_cannot_be_read(run: Run, tiny_bundle: Path, here: Path, option: str) -> None:
    """A mistake in the words: said in one piece, without a traceback."""
    given = {"--labels": "0", "--out": "x.npy"} | {option: "nowhere.npy"}
    words = [word for pair in given.items() for word in pair]
    result = run("sample", tiny_bundle, *words, status=2)
    assert "nowhere.npy: cannot be read as a .npy file" in result.stderr
    assert "Traceback" not in result.stderr
