"""The whole interface of the library, used and misused, under sanitizers: no report, and no leak."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.benchmarks.cpp_builds import ROOT, Toolchain, exclusive
from flowturbo_trt.tests.bundles import edit_manifest

SOURCE = Path(__file__).parent / "sanitized"
SANITIZERS = "address,undefined"
Drive = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def drive(cpp_toolchain: Toolchain, cpp_sanitized_build: Path) -> Drive:
    """Give a function that runs the driver on bundles: `all`, `share`, `broken`, or a planted `leak`."""
    folder = ROOT / "build" / "cpp" / "sanitized-driver"
    variables = (f"-DSANITIZE={SANITIZERS}", f"-DLIBRARY={cpp_sanitized_build}")
    with exclusive(folder):
        cpp_toolchain.build(SOURCE, folder, *variables)

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        # What the machine's own settings would switch off is what is tested.
        environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
        command = [str(folder / "driver"), *map(str, words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def test_leaks_are_seen(drive: Drive) -> None:
    done = drive("leak", "once")
    assert done.returncode != 0
    assert "detected memory leaks" in done.stderr


@pytest.mark.parametrize("bundle", ["tiny_bundle", "tiny_fused_bundle", "digits_bundle"])
def test_use_and_mistakes(drive: Drive, request: pytest.FixtureRequest, bundle: str) -> None:
    done = drive("all", request.getfixturevalue(bundle))
    assert (done.returncode, done.stderr) == (0, "")
    *refusals, last = done.stdout.splitlines()
    assert len(refusals) == 11
    assert all(line.startswith("refused: ") for line in refusals)
    assert last == "done"


def test_threads(drive: Drive, tiny_bundle: Path) -> None:
    done = drive("share", tiny_bundle)
    assert (done.returncode, done.stderr) == (0, "")


def test_broken_bundles(drive: Drive, tiny_bundle: Path, tmp_path: Path) -> None:
    """Damage that is found at different times: reading, sizes, hashes, and what a session says of a file."""
    folders = [Path(shutil.copytree(tiny_bundle, tmp_path / name)) for name in "abcdef"]
    no_json, missing, shorter, altered, lost_network, swapped = folders
    (no_json / "manifest.json").write_bytes(b'{"format": "flowturbo_trt bundle", "version": \xff')
    (missing / "onnx" / "decoder.onnx").unlink()
    graph = shorter / "onnx" / "decoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    graph = altered / "onnx" / "predictor.guided.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    edit_manifest(lost_network, lambda manifest: manifest["engines"].clear())

    def swap(manifest: dict[str, Any]) -> None:
        for engine in manifest["engines"]:
            engine["file"] = "onnx/decoder.onnx"

    edit_manifest(swapped, swap)
    done = drive("broken", *folders)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("refused: ") == len(folders)
