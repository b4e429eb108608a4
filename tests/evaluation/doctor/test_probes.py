"""Questions asked of child processes: made-up libraries, and the ONNX Runtime that is here."""

from pathlib import Path

import onnx
import pytest

from flowturbo_trt.evaluation.doctor.probes import ELEMENT_TYPES, ask, matmul_model


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module `made_up`, to be written."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "made_up.py"


def test_library_that_works(library: Path) -> None:
    library.write_text("print('hello'); __version__ = '1.2'")
    answer = ask("library", "made_up")
    assert (answer.works, answer.version, answer.said) == (True, "1.2", "hello")


def test_library_that_is_not_there() -> None:
    answer = ask("library", "made_up")
    assert (answer.works, answer.missing) == (False, "made_up")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import os; os.abort()", "its process was killed by SIGABRT"),
        ("import os; os.kill(os.getpid(), 11)", "its process was killed by SIGSEGV"),
        ("import os; os._exit(7)", "its process ended with status 7:"),
        ("import os; os._exit(0)", "its process ended without a word"),
        (
            "raise OSError('libx.so: cannot open\\nshared object file')",
            "OSError: libx.so: cannot open shared",
        ),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import there_is_none", "No module named 'there_is_none'"),
        ("import time; time.sleep(60)", "no answer within 3 s"),
    ],
)
def test_library_that_is_broken(library: Path, source: str, error: str) -> None:
    library.write_text(source)
    answer = ask("library", "made_up", timeout=3)
    assert not answer.works
    assert answer.error.startswith(error)


def test_lazy_part_that_is_not_there(library: Path) -> None:
    library.write_text("")
    assert "has no attribute 'Part'" in ask("library", "made_up", "Part").error


TENSORRT = """
__version__ = "11.0"
class Logger:
    ERROR = 1
    def __init__(self, level): pass
"""


@pytest.mark.parametrize(
    ("builder", "builds"),
    [
        ("class Builder:\n    def __init__(self, log): pass", True),
        ("def Builder(log): return None", False),
        ("def Builder(log): raise TypeError('pybind11::init(): factory function returned nullptr')", False),
    ],
)
@pytest.mark.parametrize("portable", ["", "ComputeCapability = 1"])
def test_tensorrt(library: Path, builder: str, builds: bool, portable: str) -> None:
    library.write_text(f"{TENSORRT}\n{builder}\n{portable}")
    answer = ask("tensorrt", "made_up")
    assert answer.details == {"builds": builds, "bound": not portable}


@pytest.mark.parametrize("element", ELEMENT_TYPES.values())
def test_model_is_valid(element: int) -> None:
    model = onnx.load_from_string(matmul_model(element))
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    assert model.graph.input[0].type.tensor_type.elem_type == element


def test_onnxruntime_multiplies() -> None:
    answer = ask("onnxruntime", "cpu", "cpu")
    assert list(answer.details["devices"]) == ["cpu"]
    assert "fp32" in answer.details["devices"]["cpu"]


def test_registries() -> None:
    details = ask("registries").details
    assert "onnxruntime" in details["backends"]
    assert {*details["gpu"], *details["backends"]} <= {*details["compilers"], *details["backends"]}
    assert details["precisions"].keys() == set(details["compilers"])
