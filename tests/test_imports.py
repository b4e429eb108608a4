"""The import rule: which of our packages may import which, and which start without torch."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAME = "flowturbo_trt"
CLI = ROOT / "flowturbo_trt.py"
CORE = {"sampling", "bundle", "runtime", "models", "export"}
MAY_IMPORT: dict[str, set[str]] = {
    "sampling": set(),
    "bundle": {"sampling"},
    "runtime": {"sampling", "bundle"},
    "models": {"sampling"},
    "training": {"sampling", "bundle", "models", "export"},
    "export": CORE - {"export"},
    "calibration": CORE | {"evaluation"},
    "generation": {"sampling", "bundle", "runtime"},
    "evaluation": CORE | {"generation"},
    "serving": {"sampling", "bundle", "runtime"},
    "commands": CORE | {"training", "calibration", "generation", "evaluation", "serving"},
}
# A deployed process imports these: they start without the libraries of the build machine.
DEPLOYED = ("sampling", "bundle", "runtime", "generation", "serving")
HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "diffusers", "safetensors"}
# Not in the wheel: they may use everything, by its full name.
OUTSIDE = ("tests", "examples", "benchmarks")


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join((NAME, *(part for part in parts if part != "__init__")))


def imported_names(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import at any depth, lazy and by string included."""
    package = (NAME, *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                base = package[: len(package) - node.level + 1] if node.level else ()
                origin = (*base, node.module) if node.module else base
                yield from ((node.lineno, ".".join((*origin, alias.name))) for alias in node.names)
            case ast.Call(func, [ast.Constant(value=str(name)), *_]):
                if ast.unparse(func).rpartition(".")[2] in ("import_module", "__import__"):
                    yield node.lineno, name
            # What `import flowturbo_trt` reaches is seen where it is used.
            case ast.Attribute(ast.Name(id=root), attribute) if root == NAME:
                yield node.lineno, f"{NAME}.{attribute}"
            # The registries name modules as strings.
            case ast.Constant(value=str(text)) if re.fullmatch(rf"{NAME}(\.\w+){{2,}}(:\w+)?", text):
                yield node.lineno, text.partition(":")[0]


def violations(path: Path, source: str) -> list[str]:
    """List what `source`, as the file `path`, imports against the rule."""
    own = path.relative_to(ROOT).parts[0]
    found = []
    for line, name in imported_names(path, source):
        head, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if head in MAY_IMPORT:
            found.append(f"{path.name}:{line}: {name} by bare name; write {NAME}.{name}")
        elif head == NAME and own in MAY_IMPORT and target not in MAY_IMPORT[own] | {own, "", "__version__"}:
            found.append(f"{path.name}:{line}: {own} may not import {name}")
        elif head in HEAVY and own in DEPLOYED:
            found.append(f"{path.name}:{line}: {own} must start without {head}")
    return found


def test_every_package_has_a_rule() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = config["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert {path for path in shipped if (ROOT / path).is_dir()} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", [CLI, *python_files(*MAY_IMPORT, *OUTSIDE)], ids=module_name)
def test_module_keeps_the_rule(path: Path) -> None:
    assert violations(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("runtime/pipeline.py", "def load():\n    import torch.nn", "must start without torch"),
        ("sampling/noise.py", "from onnx import helper", "must start without onnx"),
        ("bundle/store.py", "importlib.import_module('safetensors')", "must start without safetensors"),
        ("sampling/steps.py", "from flowturbo_trt.bundle import store", "sampling may not import"),
        ("bundle/store.py", "from ..runtime.pipeline import Pipeline", "bundle may not import"),
        ("runtime/backend.py", "LAZY = {'x': 'flowturbo_trt.export.build:X'}", "runtime may not import"),
        ("export/build.py", "from flowturbo_trt import training", "export may not import"),
        ("models/sit.py", "import flowturbo_trt\nflowturbo_trt.Pipeline", "models may not import"),
        ("export/build.py", "from runtime.backend import Backend", "by bare name"),
        ("tests/test_x.py", "import sampling", "by bare name"),
        ("examples/x.py", "__import__('export')", "by bare name"),
    ],
)
def test_rule_catches(file: str, source: str, complaint: str) -> None:
    assert [complaint in line for line in violations(ROOT / file, source)] == [True]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("runtime/pipeline.py", "from .backend import Backend\nfrom ..sampling import program"),
        ("bundle/__init__.py", "from . import store"),
        ("models/sit.py", "import torch\nfrom flowturbo_trt.sampling.errors import FlowTurboError"),
        ("runtime/pipeline.py", "log = logging.getLogger('flowturbo_trt')"),
        ("export/build.py", "import flowturbo_trt\nflowturbo_trt.__version__"),
        ("examples/digits/demo.py", "from flowturbo_trt.training import train_refiner"),
    ],
)
def test_rule_allows(file: str, source: str) -> None:
    assert violations(ROOT / file, source) == []


PROBE = """
import importlib, json, sys
name, heavy, modules = json.loads(sys.argv[1])
leaks = {}
for module in modules:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        # The library of a backend that this machine lacks is no leak.
        if error.name.partition(".")[0] in (name, *heavy):
            raise
    leaks[module] = [library for library in heavy if library in sys.modules]
print(json.dumps(leaks))
"""


def test_deployed_packages_leave_torch_unloaded() -> None:
    modules = [NAME, *map(module_name, python_files(*DEPLOYED))]
    probe = [sys.executable, "-c", PROBE, json.dumps([NAME, sorted(HEAVY), modules])]
    result = subprocess.run(probe, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {module: [] for module in modules}
