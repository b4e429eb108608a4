"""What a new backend in host memory takes: this file's class, and a row on each side that names it.

This file is the example CONTRIBUTING.md points to: a backend that binds no memory and copies results,
which costs a little and is all there is to it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Engine
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.commands.group import cli
from flowturbo_trt.export.compile import COMPILERS, CompilerRow
from flowturbo_trt.runtime.backend import BACKENDS, BackendRow
from flowturbo_trt.runtime.host_backend import HostBackend
from flowturbo_trt.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from flowturbo_trt.export.options import BuildOptions

Arrays = Mapping[str, NDArray[Any]]


# runtime/backend_plain.py: the one file …
class PlainBackend(HostBackend):
    """A session without bound memory: what it returns is copied to where it is wanted."""

    def __init__(self, bundle: Bundle, device: str, threads: int) -> None:
        super().__init__(bundle, "plain")

    def load(self, described: Engine) -> "PlainEngine":
        path = self._bundle.file(described.file)
        return PlainEngine(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]))


class PlainEngine:
    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        names = list(outputs)

        def call() -> None:
            for name, found in zip(names, self._session.run(names, dict(inputs)), strict=True):
                np.copyto(outputs[name], found)

        return call


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    # … and its row, to run and to build.
    monkeypatch.setitem(BACKENDS, "plain", BackendRow(f"{__name__}:PlainBackend"))
    compiler = CompilerRow("flowturbo_trt.export.compile_onnxruntime:open_compiler", "fp32", as_is=("fp32",))
    monkeypatch.setitem(COMPILERS, "plain", compiler)


@pytest.fixture
def bundle(tiny_options: "BuildOptions", tmp_path: Path, instant_export: list[str]) -> Path:
    from flowturbo_trt.export.build import build

    return build(replace(tiny_options, backends=("plain",)), tmp_path / "bundle").path


def test_makes_the_same_images(bundle: Path, tiny_pipeline: Pipeline) -> None:
    # The only backend the bundle was built for is its default.
    images = Pipeline.load(bundle)(labels=[0, 1, 2, 1], seeds=[3, 4, 5, 6], schedule="H1P1R1")
    expected = tiny_pipeline(labels=[0, 1, 2, 1], seeds=[3, 4, 5, 6], schedule="H1P1R1")
    np.testing.assert_array_equal(images, expected)


def test_commands_know_it(bundle: Path) -> None:
    for command in (["verify", "--backend", "plain"], ["inspect"]):
        name, *options = command
        with pytest.raises(SystemExit) as stop:
            cli([name, str(bundle), *options])
        assert stop.value.code == 0
