"""What is refused: other models in the place, other models than before, and what cannot be served."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.serving.triton.config import ConfigError
from flowturbo_trt.serving.triton.options import ModelOptions, ServerOptions, ServingOptionsError
from flowturbo_trt.serving.triton.repository import write_repository
from flowturbo_trt.serving.triton.settings import SettingsError
from flowturbo_trt.serving.triton.staging import RepositoryError
from flowturbo_trt.tests.bundles import edit_manifest
from flowturbo_trt.tests.serving.triton.repositories import content, siblings, write


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "two words", "ä", "-x"])
def test_names_that_no_address_holds(tiny_bundle: Path, repository: Path, name: str) -> None:
    with pytest.raises(RepositoryError, match="cannot be the name of a model; give one of letters"):
        write_repository(tiny_bundle, repository, name)
    assert not repository.exists()


def test_model_of_somebody_else(tiny_bundle: Path, repository: Path) -> None:
    (repository / "digits" / "1").mkdir(parents=True)
    with pytest.raises(RepositoryError, match="exists and is no model that `flowturbo_trt triton` wrote"):
        write(tiny_bundle, repository)
    (repository / "digits" / "config.pbtxt").write_text('name: "digits"\n')
    with pytest.raises(RepositoryError, match="exists and is no model that `flowturbo_trt triton` wrote"):
        write(tiny_bundle, repository)
    (repository / "digits" / "config.pbtxt").write_text("name: digits\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        write(tiny_bundle, repository)


def test_names_of_previews(tiny_bundle: Path, repository: Path) -> None:
    write(tiny_bundle, repository, previews=True)
    with pytest.raises(RepositoryError, match="streams the previews of digits; give another --name"):
        write_repository(tiny_bundle, repository, "digits_previews")
    write_repository(tiny_bundle, repository, "faces_previews")
    with pytest.raises(RepositoryError, match="faces_previews: is a model of its own; give another --name"):
        write_repository(tiny_bundle, repository, "faces", previews=True)


def change_classes(manifest: dict[str, Any]) -> None:
    manifest["model"]["conditions"][0]["maximum"] += 1


def drop_decoder(manifest: dict[str, Any]) -> None:
    manifest["model"]["image"] = None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_classes, "is another model, whose conditions are label 0 to 2 and not label 0 to 3; give an"),
        (drop_decoder, r"is another model, whose image is \(8, 8\) and not None; give another --name"),
    ],
)
def test_bundle_of_another_model(
    tiny_bundle: Path, newer: Path, repository: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    write(tiny_bundle, repository)
    before = content(repository)
    edit_manifest(newer, change)
    with pytest.raises(RepositoryError, match=words):
        write(newer, repository)
    assert content(repository) == before
    assert siblings(repository) == set()


def test_older_version_that_nothing_can_serve(tiny_bundle: Path, newer: Path, repository: Path) -> None:
    write(tiny_bundle, repository)
    (repository / "digits" / "1" / "bundle" / "manifest.json").write_text("{")
    with pytest.raises(RepositoryError, match=r"digits/1: cannot be served .*; remove that folder"):
        write(newer, repository)


def test_settings_that_were_lost(tiny_bundle: Path, repository: Path) -> None:
    write(tiny_bundle, repository)
    file = repository / "digits" / "config.pbtxt"
    file.write_text(file.read_text().replace("schedules", "plans"))
    with pytest.raises(SettingsError, match="write the repository again"):
        write(tiny_bundle, repository)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"model": ModelOptions(schedules=("banana",))}, FlowTurboError, "no schedule"),
        ({"model": ModelOptions(backend="tensorrt")}, BundleError, "no guided predictor engine for tensorrt"),
        ({"server": ServerOptions(gpus=(0,))}, ServingOptionsError, "runs on the CPU"),
    ],
)
def test_refused_before_anything_is_written(
    tiny_bundle: Path, repository: Path, given: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        write(tiny_bundle, repository, **given)
    assert list(repository.parent.iterdir()) == []


def test_damaged_bundle(newer: Path, repository: Path) -> None:
    """Also in a file that no engine of this model reads."""
    graph = next(newer.rglob("*.onnx"))
    graph.write_bytes(bytes(graph.stat().st_size))
    # Of the bundle itself, before it is copied.
    with pytest.raises(BundleError, match=rf"^{graph}: its content .* \(sha256 differs"):
        write(newer, repository)
    assert not repository.exists()


def test_previews_without_a_decoder(newer: Path, repository: Path) -> None:
    edit_manifest(newer, drop_decoder)
    with pytest.raises(ServingOptionsError, match="previews: the bundle has no decoder"):
        write(newer, repository, previews=True)


def test_bundle_and_repository_in_the_wrong_order(tiny_bundle: Path, newer: Path) -> None:
    with pytest.raises(RepositoryError, match="is a bundle; give the folder of the model repository"):
        write(tiny_bundle, newer)
    with pytest.raises(RepositoryError, match="lies in the bundle; give a folder elsewhere"):
        write(newer, newer / "models")
