"""C++ projects around a bundle: an example program, the library's sources, and the bundle's engines."""

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from flowturbo_trt.bundle.amend import with_schedule
from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.bundle.writing import check_place, finish, remove, sync, unwritable
from flowturbo_trt.runtime.backend import default_backend
from flowturbo_trt.runtime.conditioning import needed_engines, null_values
from flowturbo_trt.runtime.programs import find_program
from flowturbo_trt.sampling.errors import FlowTurboError

# Backend → the preset in example/CMakePresets.json that configures the library for it.
PRESETS = {"onnxruntime": "onnxruntime", "tensorrt-rtx": "tensorrt", "tensorrt": "tensorrt"}
SOURCES = Path(__file__).parent / "cpp"
EXAMPLE = SOURCES / "example"
LIBRARY = ("CMakeLists.txt", "cmake", "include", "src")
CONDITIONS = ("label",)


class ProjectError(FlowTurboError):
    """A folder that a C++ project cannot be put into, or a bundle that C++ cannot run."""


@dataclass(frozen=True)
class Project:
    """A C++ project on the disk: it builds with `preset` and runs on `backend`."""

    path: Path
    manifest: Manifest
    backend: str
    preset: str


def write_project(
    source: Path, out: Path, *, backend: str | None = None, schedule: str | None = None
) -> Project:
    """Write a CMake project around a bundle: the example, the library's sources, and the bundle's engines.

    `backend` is by default what the bundle is run on; the project's bundle holds its engines alone.
    `schedule` becomes the default there, lowered where the bundle has no program of it. Everything is
    checked before anything is written, and a failure leaves nothing. Raises ProjectError, BundleError,
    ScheduleError.
    """
    bundle = Bundle.open(source)
    chosen = backend or default_backend(bundle.manifest)
    manifest = plan_bundle(bundle.manifest, chosen, schedule)
    for name in manifest.files:
        bundle.file(name)
    out = _check_place(out, bundle.path)
    try:
        _write(bundle, manifest, out)
    except OSError as error:
        raise unwritable(out, error) from error
    return Project(out, manifest, chosen, PRESETS[chosen])


def plan_bundle(manifest: Manifest, backend: str, schedule: str | None) -> Manifest:
    """Return what a C++ program needs of a manifest; raises where the program could not run it."""
    if backend not in PRESETS:
        raise ProjectError(
            f"backend {backend!r}: C++ runs {', '.join(PRESETS)}; build the bundle with one of these"
        )
    engines = tuple(engine for engine in manifest.engines if engine.backend == backend)
    if not engines:
        built = ", ".join(dict.fromkeys(engine.backend for engine in manifest.engines)) or "none"
        raise ProjectError(
            f"the bundle has no engines for {backend} (it has: {built}); rebuild it with --backend {backend}"
        )
    files = {name: manifest.files[name] for engine in engines for name in engine.files}
    reduced = replace(manifest, graphs=(), engines=engines, files=files)
    if schedule is not None:
        reduced = with_schedule(reduced, reduced.schedule(schedule), default=True)
    _check_runs(reduced, backend)
    return reduced


def _check_runs(manifest: Manifest, backend: str) -> None:
    names = tuple(condition.name for condition in manifest.model.conditions)
    if names != CONDITIONS:
        raise ProjectError(f"the model's conditions are {list(names)}, C++ takes {list(CONDITIONS)} alone")
    if manifest.model.image is None:
        raise ProjectError("the bundle has no decoder, which the example needs; rebuild it with --decoder")
    for variant in manifest.programs[manifest.default_schedule]:
        program = find_program(manifest, None, variant)
        for network, evaluated in needed_engines(manifest, program, backend):
            engine = manifest.engine(network, evaluated, backend)
            if engine.is_hoisted and evaluated == "guided":
                null_values(manifest.model.conditions)
            if not engine.is_conditioner:
                for batch in manifest.batches:
                    manifest.engine(network, evaluated, backend, batch)


def _check_place(out: Path, bundle: Path) -> Path:
    """Return `out` as an absolute path; raises ProjectError where something is there already."""
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ProjectError(f"{out}: exists already; give a new path")
    if out.resolve().is_relative_to(bundle.resolve()):
        raise ProjectError(f"{out}: is within the bundle, which holds its own files only; give another path")
    return check_place(out)


def _write(bundle: Bundle, manifest: Manifest, out: Path) -> None:
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        shutil.copytree(EXAMPLE, draft, dirs_exist_ok=True)
        for name in LIBRARY:
            copy = shutil.copytree if (SOURCES / name).is_dir() else shutil.copy
            (draft / "library").mkdir(exist_ok=True)
            copy(SOURCES / name, draft / "library" / name)
        for name in manifest.files:
            (draft / "bundle" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(bundle.path / name, draft / "bundle" / name)
        finish(draft / "bundle", manifest)
        # Unlike an exchange, this cannot remove what somebody else puts there meanwhile.
        os.rename(draft, out)
    except BaseException:
        remove(draft)
        raise
    sync([out])
