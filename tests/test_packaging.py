"""The sdist, the wheel and the editable install: one import name, nothing lost, no torch in the base."""

import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from hatchling.build import build_editable
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import flowturbo_trt

ROOT = Path(__file__).resolve().parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
SHIPPED = CONFIG["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
NAME = "flowturbo_trt"
DIST_INFO = f"{NAME}-{flowturbo_trt.__version__}.dist-info"


def build(out: Path, *options: str) -> Path:
    """Run the build frontend on the tree and return the wheel it leaves in `out`."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *options, str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel made from the sdist, as an index would serve both."""
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run_installed(unpacked: Path, code: str) -> str:
    """Run `code` where only the unpacked wheel and the dependencies can be imported, not the tree."""
    # -S leaves out the .pth file of an editable install, which would put the tree on the path.
    libraries = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    paths = ":".join((str(unpacked), *libraries))
    command = [sys.executable, "-S", "-c", code]
    result = subprocess.run(command, cwd=unpacked, env={"PYTHONPATH": paths}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def files_of(path: Path) -> set[str]:
    found = path.rglob("*") if path.is_dir() else [path]
    return {
        f"{NAME}/{file.relative_to(ROOT).as_posix()}"
        for file in found
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_wheel_holds_one_name_with_every_file(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith(f"{DIST_INFO}/")}
    expected = {f"{NAME}/__init__.py"}.union(*(files_of(ROOT / path) for path in SHIPPED))
    assert names == expected
    assert f"{NAME}/py.typed" in names


def test_tree_and_sdist_build_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    assert build(tmp_path, "--wheel").read_bytes() == wheel.read_bytes()


def test_base_install_brings_no_torch(unpacked: Path) -> None:
    metadata = message_from_string((unpacked / DIST_INFO / "METADATA").read_text())
    required = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    base = {need.name for need in required if "extra" not in str(need.marker)}
    assert "numpy" in base
    assert base.isdisjoint({"torch", "onnx", "onnxscript", "onnx-ir", "diffusers", "safetensors"})


def test_wheel_imports_away_from_the_tree(unpacked: Path) -> None:
    code = (
        "import flowturbo_trt, importlib.resources\n"
        "from flowturbo_trt.sampling import schedule\n"
        "marker = importlib.resources.files('flowturbo_trt') / 'py.typed'\n"
        "print(flowturbo_trt.__file__, schedule.__file__, marker)"
    )
    package = unpacked / NAME
    expected = (package / "__init__.py", package / "sampling" / "schedule.py", package / "py.typed")
    assert run_installed(unpacked, code).split() == [str(path) for path in expected]


def test_console_script_is_there(unpacked: Path) -> None:
    code = (
        "from importlib.metadata import distribution\n"
        "(script,) = distribution('flowturbo_trt').entry_points.select(group='console_scripts')\n"
        "print(script.name, callable(script.load()))"
    )
    assert run_installed(unpacked, code).split() == [NAME, "True"]


def test_editable_install_is_a_path_to_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    editable = zipfile.ZipFile(tmp_path / build_editable(str(tmp_path)))
    (pth,) = (name for name in editable.namelist() if not name.startswith(f"{DIST_INFO}/"))
    assert pth.endswith(".pth")
    assert editable.read(pth).decode().split() == [str(ROOT)]


def test_tree_runs_as_a_script(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "flowturbo_trt.py"), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_lock_covers_what_is_declared() -> None:
    """Every requirement of any extra that applies here is pinned, to a version that is allowed."""
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    pinned = {}
    for line in lines:
        if not line.startswith("#"):
            name, _, version = line.partition("==")
            pinned[canonicalize_name(name)] = version
    extras = CONFIG["project"]["optional-dependencies"]
    declared = [*CONFIG["project"]["dependencies"], *extras["dev"], *extras["export"], *extras["verify"]]
    for text in declared:
        requirement = Requirement(text)
        applies = requirement.marker is None or requirement.marker.evaluate()
        if applies and requirement.name != NAME:
            version = pinned[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), text
