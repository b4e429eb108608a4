"""Reading and damaging repositories that tests write: what `write_repository` is tested with."""

from pathlib import Path
from typing import Any

from flowturbo_trt.serving.triton.existing import fault_of
from flowturbo_trt.serving.triton.layout import ServedModel, missing_files, read_model
from flowturbo_trt.serving.triton.repository import Written, write_repository


def write(bundle: Path, repository: Path, **given: Any) -> Written:
    return write_repository(bundle, repository, "digits", **given)


def read(folder: Path) -> ServedModel:
    model = read_model(folder)
    assert model is not None
    return model


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def check_whole(repository: Path) -> None:
    """Hold what is there against what a strict server needs, of models that may be loaded any moment."""
    for folder in repository.iterdir() if repository.exists() else ():
        model = read(folder)
        assert model.versions
        assert missing_files(model) == ()
        for version in model.versions:
            assert fault_of(model, version) is None
        assert {path.name for path in folder.iterdir()} == {
            "config.pbtxt",
            "warmup",
            *map(str, model.versions),
        }


def siblings(repository: Path) -> set[str]:
    """Return what lies beside the repository that no test put there."""
    return {path.name for path in repository.parent.iterdir()} - {"newer", "models"}
