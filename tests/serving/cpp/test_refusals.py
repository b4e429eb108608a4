"""What the C++ library refuses of options, requests and schedules, of bundles that it can read."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.tests.bundles import changed_copy
from flowturbo_trt.tests.serving.cpp.library import CPipeline, Library, LibraryError, refused

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def tiny(cpp_library: Library, tiny_bundle: Path) -> Iterator[CPipeline]:
    with cpp_library.load(tiny_bundle, threads=1) as pipeline:
        yield pipeline


@pytest.mark.parametrize(
    ("labels", "given", "match"),
    [
        ([], {}, "^request: no labels"),
        ([0, 3], {}, "^request: label 3 is out of range; the model knows 0 to 2"),
        ([-1], {}, "^request: label -1 is out of range"),
        ([0, 1, 2], {"guidance": [1, 2]}, "^request: 2 guidance scales for 3 images"),
        ([0], {"guidance": np.inf}, "^request: guidance is inf"),
        ([0], {"guidance": np.nan}, "^request: guidance is -?nan"),
        ([0], {"schedule": "H9"}, "^schedule: schedule 'H9' is not in the bundle, which has H1P1R1, H2;"),
    ],
)
def test_request(tiny: CPipeline, labels: list[int], given: dict[str, Any], match: str) -> None:
    with pytest.raises(LibraryError, match=match):
        tiny.images(labels, **given)
    assert tiny.images([0]).any()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"backend": b"openvino"}, "^backend: backend 'openvino' is not in this library; use onnxruntime"),
        ({"device": b"cuda"}, "^backend: device 'cuda'"),
        ({"threads": -1}, "^backend: threads is -1"),
    ],
)
def test_load_options(cpp_library: Library, tiny_bundle: Path, options: dict[str, Any], match: str) -> None:
    refused(cpp_library, tiny_bundle, match, **options)


def test_bundle_without_a_decoder(cpp_library: Library, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = changed_copy(tiny_bundle, tmp_path, lambda m: m["model"].update(image=None))
    with cpp_library.load(bundle) as pipeline:
        assert pipeline.latents([0]).any()
        with pytest.raises(LibraryError, match=r"^request: .*the bundle has no decoder"):
            pipeline.run("flowturbo_generate", [0], np.zeros(9, dtype=np.uint8), 9)


def halve_times(program: dict[str, Any]) -> None:
    for item in (*program["steps"], *program["instructions"]):
        item.update({key: item[key] / 2 for key in ("t", "s", "time") if key in item})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (halve_times, "^schedule: 'H2': runs from 0 to 0.5; generation needs 0 to 1"),
        (lambda program: program["inputs"].update(source=0), "^schedule: 'H2': .*more inputs than noise"),
    ],
    ids=("span", "inputs"),
)
def test_program_that_generates_nothing(
    cpp_library: Library, tiny_bundle: Path, tmp_path: Path, change: Change, match: str
) -> None:
    bundle = changed_copy(tiny_bundle, tmp_path, lambda m: change(m["programs"]["H2"]["guided"]))
    with cpp_library.load(bundle) as pipeline:
        with pytest.raises(LibraryError, match=match):
            pipeline.images([0], schedule="H2")
        assert pipeline.images([0]).any()
