"""New versions on a real server under load: no request fails, and the way back is open."""

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from flowturbo_trt.benchmarks.serving_requests import Answers, Row, ask_grpc, until
from flowturbo_trt.benchmarks.triton_server import Installation, TritonServer, start
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.serving.triton.options import ModelOptions, ServerOptions
from flowturbo_trt.serving.triton.repository import write_repository
from flowturbo_trt.tests.bundles import changed_copy

OPTIONS = ModelOptions(schedules=("H1P1R1",), threads=1)
# Without guidance of its own: the bundles differ in their default.
ROW = Row(3, 7)
CLIENTS = 4
Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def newer(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with another default guidance."""

    def change(data: dict[str, Any]) -> None:
        data["model"]["guidance"]["default"] = 4.0

    return changed_copy(digits_bundle, tmp_path_factory.mktemp("newer"), change)


@pytest.fixture
def repository(digits_bundle: Path, tmp_path: Path) -> Path:
    write_repository(digits_bundle, tmp_path / "repository", "digits", OPTIONS, ServerOptions())
    return tmp_path / "repository"


@pytest.fixture
def server(repository: Path, triton_server: Installation) -> Iterator[TritonServer]:
    with start(repository, models=["digits"], installation=triton_server) as server:
        yield server


@pytest.fixture
def old(answers: Answers) -> Images:
    return answers([Row(3, 7, schedule="H1P1R1")])


@pytest.fixture
def new(newer: Path) -> Images:
    return Pipeline.load(newer, threads=1)([3], seeds=[7], schedule="H1P1R1")


class Load:
    """Clients that ask for the same image all the time, and what they got."""

    def __init__(self, server: TritonServer) -> None:
        self._server = server
        self._over = threading.Event()
        self.images: list[Images] = []

    def run(self) -> None:
        """Ask until `end`; whatever goes wrong is raised."""
        with tritonclient.grpc.InferenceServerClient(self._server.grpc) as client:
            while not self._over.is_set():
                self.images.append(ask_grpc(client, "digits", [ROW]))

    def go_on(self) -> None:
        """Wait until every client has been answered anew."""
        count = len(self.images)
        until(lambda: len(self.images) >= count + 2 * CLIENTS)

    def end(self) -> None:
        self._over.set()


@contextmanager
def under_load(server: TritonServer) -> Iterator[Load]:
    """Keep clients asking; raises what any of them has met."""
    load = Load(server)
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(load.run) for _ in range(CLIENTS)]
        try:
            load.go_on()
            yield load
            load.go_on()
        finally:
            load.end()
    for client in clients:
        client.result()


def test_newer_version_takes_over_and_gives_way_again(
    repository: Path, newer: Path, server: TritonServer, grpc: Any, old: Images, new: Images
) -> None:
    with under_load(server) as load:
        write_repository(newer, repository, "digits", OPTIONS, ServerOptions())
        # Until it is told, the server goes on as it was.
        np.testing.assert_array_equal(ask_grpc(grpc, "digits", [ROW]), old)
        grpc.load_model("digits")
        np.testing.assert_array_equal(ask_grpc(grpc, "digits", [ROW]), new)
        load.go_on()
        shutil.rmtree(repository / "digits" / "2")
        grpc.load_model("digits")
        np.testing.assert_array_equal(ask_grpc(grpc, "digits", [ROW]), old)
    found = [_which(image, old, new) for image in load.images]
    assert set(found) == {"old", "new"}
    assert found[0] == found[-1] == "old"


@pytest.mark.parametrize("altered", ["manifest", "weights"])
def test_version_that_was_altered_does_not_take_over(
    repository: Path, newer: Path, server: TritonServer, grpc: Any, old: Images, altered: str
) -> None:
    write_repository(newer, repository, "digits", OPTIONS, ServerOptions())
    bundle = repository / "digits" / "2" / "bundle"
    if altered == "manifest":
        data = json.loads((bundle / "manifest.json").read_text())
        (bundle / "manifest.json").write_text(json.dumps(data, indent=3))
    else:
        file = bundle / "onnx" / "predictor.guided.onnx"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    told = "its manifest has sha256" if altered == "manifest" else "its content is not what was built"
    with pytest.raises(InferenceServerException, match=told):
        grpc.load_model("digits")
    np.testing.assert_array_equal(ask_grpc(grpc, "digits", [ROW]), old)


def _which(image: Images, old: Images, new: Images) -> str:
    names = [name for name, one in (("old", old), ("new", new)) if np.array_equal(image, one)]
    return names[0] if names else "neither"
