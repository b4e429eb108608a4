"""Writing repositories: versions, settings, previews, and what is told of them."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.bundle.store import Bundle, sha256
from flowturbo_trt.serving.triton.layout import model_text
from flowturbo_trt.serving.triton.options import ModelOptions, ServerOptions
from flowturbo_trt.serving.triton.repository import write_repository
from flowturbo_trt.serving.triton.staging import RepositoryError
from flowturbo_trt.tests.bundles import edit_manifest
from flowturbo_trt.tests.serving.triton.repositories import check_whole, content, read, siblings, write


def test_first_version(tiny_bundle: Path, repository: Path) -> None:
    written = write(tiny_bundle, repository)
    folder = repository / "digits"
    model = read(folder)
    check_whole(repository)
    manifest_sha256 = sha256(tiny_bundle / "manifest.json")
    assert [path.name for path in repository.iterdir()] == ["digits"]
    assert model.versions == (1,)
    assert (folder / "1" / "model.py").read_text() == model_text(previews=False)
    assert model.settings == written.settings
    assert model.settings.bundles == {"1": manifest_sha256}
    assert content(folder / "1" / "bundle") == content(tiny_bundle)
    assert not any(path.is_symlink() for path in repository.rglob("*"))
    assert (written.version, written.change, written.sha256) == (1, "version", manifest_sha256)
    assert (written.reconfigured, written.unfit, written.models) == ((), {}, ("digits",))
    assert siblings(repository) == set()


def test_model_code_runs_the_installed_package() -> None:
    for previews, module in ((False, "model"), (True, "previews")):
        text = model_text(previews=previews)
        assert f"from flowturbo_trt.serving.triton.{module} import TritonPythonModel\n" in text
        assert len(text.splitlines()) <= 5
        compile(text, "model.py", "exec")


def test_name_of_the_folder_by_default(newer: Path, repository: Path) -> None:
    assert write_repository(newer, repository).name == "changed"
    assert (repository / "changed" / "1").is_dir()


def test_repository_in_folders_that_do_not_exist(tiny_bundle: Path, tmp_path: Path) -> None:
    write(tiny_bundle, tmp_path / "deep" / "down" / "models")
    check_whole(tmp_path / "deep" / "down" / "models")


def test_next_version(tiny_bundle: Path, newer: Path, repository: Path) -> None:
    """The older one stays as it was, and is still known by its hash."""
    first = write(tiny_bundle, repository)
    before = content(repository / "digits" / "1")
    second = write(newer, repository)
    assert (second.version, second.change, second.reconfigured) == (2, "version", ())
    assert read(repository / "digits").settings.bundles == {"1": first.sha256, "2": second.sha256}
    assert content(repository / "digits" / "1") == before
    assert Bundle.open(repository / "digits" / "2" / "bundle").manifest.licence == "newer"
    check_whole(repository)


def test_folders_that_are_no_versions(tiny_bundle: Path, newer: Path, repository: Path) -> None:
    """A server passes over what begins with a zero or is no number."""
    write(tiny_bundle, repository)
    for name in ("007", "0", "old"):
        (repository / "digits" / name).mkdir()
    (repository / "digits" / "9").write_text("no folder")
    assert read(repository / "digits").versions == (1,)
    assert write(newer, repository).version == 2


def test_same_bundle_again(tiny_bundle: Path, repository: Path) -> None:
    """A deployment that is run again changes nothing, not even a time that a polling server would see."""
    write(tiny_bundle, repository, previews=True)
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    again = write(tiny_bundle, repository, previews=True)
    assert (again.version, again.change) == (1, "nothing")
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == before


def test_same_bundle_with_other_options(tiny_bundle: Path, repository: Path) -> None:
    write(tiny_bundle, repository)
    again = write(
        tiny_bundle,
        repository,
        model=ModelOptions(schedules=("H2", "H1P1R1"), threads=1),
        server=ServerOptions(instances=2),
    )
    assert (again.version, again.change) == (1, "config")
    assert set(again.reconfigured) == {
        *("input", "instance_group", "metric_tags", "model_warmup"),
        *("schedules", "threads"),
    }
    assert read(repository / "digits").settings.schedules == ("H2", "H1P1R1")
    assert read(repository / "digits").versions == (1,)
    check_whole(repository)


def test_a_damaged_version_is_not_kept(tiny_bundle: Path, repository: Path) -> None:
    """The same bundle again mends what a disk or a hand did, as a version that servers will load."""
    write(tiny_bundle, repository)
    model = repository / "digits" / "1" / "model.py"
    model.write_text("raise SystemExit")
    assert write(tiny_bundle, repository).version == 2
    engine = next((repository / "digits" / "2" / "bundle").rglob("*.onnx"))
    engine.write_bytes(bytes(engine.stat().st_size))
    assert write(tiny_bundle, repository).version == 3


def test_lost_warmup_is_written_again(tiny_bundle: Path, repository: Path) -> None:
    write(tiny_bundle, repository)
    next((repository / "digits" / "warmup").glob("label.*")).unlink()
    assert write(tiny_bundle, repository).change == "config"
    check_whole(repository)


def test_rollback(tiny_bundle: Path, newer: Path, repository: Path) -> None:
    """The number of a version that was removed is not used again: caches of a running server know it."""
    first = write(tiny_bundle, repository)
    write(newer, repository)
    shutil.rmtree(repository / "digits" / "2")
    check_whole(repository)
    assert write(tiny_bundle, repository).change == "nothing"
    third = write(newer, repository)
    assert third.version == 3
    assert read(repository / "digits").settings.bundles["1"] == first.sha256
    check_whole(repository)
    # Forward to what lies in the repository itself.
    fourth = write(repository / "digits" / "1" / "bundle", repository)
    assert (fourth.version, fourth.sha256) == (4, first.sha256)


def test_older_version_that_cannot_run_so(tiny_bundle: Path, newer: Path, repository: Path) -> None:
    def without_refiner(manifest: dict[str, Any]) -> None:
        manifest["engines"] = [e for e in manifest["engines"] if "refiner" not in e["network"]]
        manifest["programs"] = {"H2": manifest["programs"]["H2"]}
        manifest["default_schedule"] = "H2"

    edit_manifest(newer, without_refiner)
    write(newer, repository)
    second = write(tiny_bundle, repository)
    assert second.settings.schedules == ("H1P1R1",)
    assert list(second.unfit) == [1]
    assert "no guided refiner engine" in second.unfit[1]
    assert write(tiny_bundle, repository, model=ModelOptions(schedules=("H2",))).unfit == {}


def test_previews(tiny_bundle: Path, newer: Path, repository: Path) -> None:
    written = write(tiny_bundle, repository, previews=True, model=ModelOptions(cancellation=False))
    assert written.models == ("digits", "digits_previews")
    streaming = read(repository / "digits_previews")
    assert (streaming.settings.previews_of, streaming.settings.cancellation) == ("digits", True)
    assert streaming.config.model_transaction_policy.decoupled
    assert streaming.bundle(1) == repository / "digits" / "1" / "bundle"
    assert (repository / "digits_previews" / "1" / "model.py").read_text() == model_text(previews=True)
    write(newer, repository, previews=True)
    assert read(repository / "digits_previews").versions == (1, 2)
    assert read(repository / "digits_previews").settings.bundles.keys() == {"1", "2"}
    check_whole(repository)


def test_previews_added_later(tiny_bundle: Path, newer: Path, repository: Path) -> None:
    """Of every version there is, so that they follow the model back to an older one."""
    write(tiny_bundle, repository)
    write(newer, repository)
    added = write(newer, repository, previews=True)
    assert (added.change, added.version, added.reconfigured) == ("config", 2, ())
    assert read(repository / "digits_previews").versions == (1, 2)
    check_whole(repository)


def test_previews_are_not_left_behind(tiny_bundle: Path, newer: Path, repository: Path) -> None:
    write(tiny_bundle, repository, previews=True)
    with pytest.raises(RepositoryError, match="digits_previews: would go on with older versions; add --pre"):
        write(newer, repository)


def test_start_command(tiny_bundle: Path, tmp_path: Path) -> None:
    """Strict in everything, and with the cache that the config asks for."""
    place = tmp_path / "my models"
    written = write(tiny_bundle, place, server=ServerOptions(response_cache=True), previews=True)
    words = written.start_command
    assert words.startswith(f"tritonserver '--model-repository={place}' ")
    for flag in ("--disable-auto-complete-config", "--strict-readiness=true", "--exit-on-error=true"):
        assert flag in words
    assert "--load-model=digits --load-model=digits_previews" in words
    assert "--cache-config=local,size=" in words
    assert "cache" not in write_repository(tiny_bundle, place, "faces").start_command
