"""Checking repositories: what is as it should be, and every fault that is planted."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flowturbo_trt.serving.triton.checks import Finding, check_repository
from flowturbo_trt.serving.triton.config import config_text, read_config
from flowturbo_trt.serving.triton.options import ModelOptions, ServerOptions
from flowturbo_trt.serving.triton.repository import write_repository
from flowturbo_trt.serving.triton.settings import PARAMETER, ModelSettings
from flowturbo_trt.serving.triton.staging import RepositoryError
from flowturbo_trt.tests.bundles import changed_copy, edit_manifest

MODEL = ModelOptions(schedules=("H1P1R1", "H2"), threads=1)


@pytest.fixture(scope="module")
def written(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("written") / "models"
    write_repository(tiny_bundle, repository, "tiny", MODEL, previews=True)
    return repository


@pytest.fixture
def repository(written: Path, tmp_path: Path) -> Path:
    """A repository to damage: `tiny`, and `tiny_previews`."""
    return Path(shutil.copytree(written, tmp_path / "models"))


def failed(repository: Path) -> list[Finding]:
    return [finding for finding in check_repository(repository) if finding.status != "passed"]


def the_fault(repository: Path) -> Finding:
    (finding,) = failed(repository)
    return finding


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def edit_settings(folder: Path, change: Callable[[ModelSettings], ModelSettings]) -> None:
    config = read_config(folder / "config.pbtxt")
    settings = change(ModelSettings.from_json(config.parameters[PARAMETER].string_value))
    config.parameters[PARAMETER].string_value = settings.to_json()
    (folder / "config.pbtxt").write_text(config_text(config))


def test_what_was_written_holds(written: Path) -> None:
    told = []
    findings = check_repository(written, lambda what, done, total: told.append(what))
    assert {finding.status for finding in findings} == {"passed"}
    assert [(finding.model, finding.what) for finding in findings] == [
        ("tiny", "version 1"),
        ("tiny", "config.pbtxt"),
        ("tiny", "running version 1"),
        ("tiny_previews", "version 1"),
        ("tiny_previews", "previews"),
        ("tiny_previews", "config.pbtxt"),
        ("tiny_previews", "running version 1"),
    ]
    # Two schedules at two batch sizes.
    assert findings[2].detail == "4 batches with H1P1R1, H2 on onnxruntime (cpu)"
    assert "tiny: H2, guided, batch 3" in told


def test_all_options_hold(golden_bundle: Path, tmp_path: Path) -> None:
    server = ServerOptions(
        instances=2, max_queue_delay_us=100, queue_size=0, timeout_ms=0, response_cache=True
    )
    model = ModelOptions(backend="onnxruntime", provider="cpu", threads=1)
    write_repository(golden_bundle, tmp_path, "golden", model, server)
    assert failed(tmp_path) == []
    # A variant each.
    assert check_repository(tmp_path)[-1].detail.startswith("4 batches with H1P5R3")


def test_bundle_without_a_decoder(tiny_bundle: Path, tmp_path: Path) -> None:
    latents = changed_copy(tiny_bundle, tmp_path, lambda data: data["model"].update(image=None))
    write_repository(latents, tmp_path / "models", "latents", MODEL)
    assert failed(tmp_path / "models") == []


def test_what_the_deployer_tuned_holds(repository: Path) -> None:
    file = repository / "tiny" / "config.pbtxt"
    config = read_config(file)
    config.dynamic_batching.max_queue_delay_microseconds = 77
    config.dynamic_batching.preferred_batch_size[:] = [2]
    config.instance_group[0].count = 3
    config.metric_tags["team"] = "images"
    del config.model_warmup[:]
    file.write_text(config_text(config))
    assert failed(repository) == []


def test_altered_code(repository: Path) -> None:
    with (repository / "tiny" / "1" / "model.py").open("a") as file:
        file.write("import os\n")
    fault = the_fault(repository)
    assert (fault.model, fault.what) == ("tiny", "version 1")
    assert fault.detail.endswith("model.py: is not what `flowturbo_trt triton` writes")


def test_missing_code(repository: Path) -> None:
    (repository / "tiny" / "1" / "model.py").unlink()
    assert "model.py: cannot be read" in the_fault(repository).detail


def test_altered_weight(repository: Path) -> None:
    """In the bundle, which both models run: told of each, and neither is run."""
    engine = next((repository / "tiny" / "1" / "bundle").rglob("predictor*.onnx"))
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)
    findings = failed(repository)
    assert {(finding.model, finding.what) for finding in findings} == {
        (model, what) for model in ("tiny", "tiny_previews") for what in ("version 1", "running version 1")
    }
    assert all(f"{engine}: its content is not what was built" in finding.detail for finding in findings)


def test_damage_in_an_older_version(tiny_bundle: Path, repository: Path, tmp_path: Path) -> None:
    newer = changed_copy(tiny_bundle, tmp_path, lambda data: data.update(licence="newer"))
    write_repository(newer, repository, "tiny", MODEL, previews=True)
    assert failed(repository) == []
    (repository / "tiny" / "1" / "bundle" / "onnx" / "stray.onnx").write_text("unlisted")
    assert {(finding.model, finding.what) for finding in failed(repository)} == {
        ("tiny", "version 1"),
        ("tiny_previews", "version 1"),
    }


def test_bundle_of_another_model(tiny_bundle: Path, repository: Path) -> None:
    """A whole bundle, but none that the config was written for."""
    edit_manifest(repository / "tiny" / "1" / "bundle", lambda data: data.update(licence="another"))
    details = {finding.detail for finding in failed(repository)}
    path = repository / "tiny" / "1" / "bundle"
    assert details == {f"{path}: is not the bundle that the config names for version 1"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("max_batch_size: 3", "max_batch_size: 4", "max_batch_size is 4, expected 3; write it again"),
        ("TYPE_UINT8", "TYPE_INT8", "output is .* data_type: TYPE_INT8 .*, expected .* TYPE_UINT8"),
        (
            "optional: true\n}\noutput",
            "}\noutput",
            'input is name: "schedule" .* dims: 1, expected .* optional: true',
        ),
        ("dims: 1\n  optional: true\n}\ninput", "dims: 2\n}\ninput", 'input is name: "guidance" .* dims: 2'),
        ("output {", 'output {\n  name: "x"\n}\noutput {', 'output is name: "x", expected name: "im'),
        ('backend: "python"', 'backend: "onnxruntime"', "backend is onnxruntime, expected python"),
        ('name: "tiny"', 'name: "tony"', "name is tony, expected tiny"),
        ("preferred_batch_size: 3", "preferred_batch_size: 9", "prefers batches of 9, expected 1 to 3"),
        ("KIND_CPU", "KIND_GPU", "has instances that are not KIND_CPU"),
    ],
)
def test_edited_config(repository: Path, old: str, new: str, words: str) -> None:
    edit(repository / "tiny" / "config.pbtxt", old, new)
    fault = the_fault(repository)
    assert (fault.model, fault.what) == ("tiny", "config.pbtxt")
    assert fault.detail.startswith(f"{repository / 'tiny' / 'config.pbtxt'}: ")
    assert re.search(words, fault.detail)


def test_config_that_nobody_can_read(repository: Path) -> None:
    """What depends on it is told of as well."""
    edit(repository / "tiny" / "config.pbtxt", "max_batch_size: 3", "max_batch_size: 3 {")
    findings = failed(repository)
    assert {finding.model for finding in findings} == {"tiny", "tiny_previews"}
    assert all("config.pbtxt: cannot be read (line " in finding.detail for finding in findings)


def test_folder_that_would_stop_a_strict_server(repository: Path) -> None:
    (repository / "left over").mkdir()
    fault = the_fault(repository)
    assert (fault.model, fault.what) == ("left over", "config.pbtxt")


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"backend": 3',
        "[]",
        '{"backend": "onnxruntime", "device": "cpu"}',
        '{"backend": "onnxruntime", "device": "cpu", "schedules": []}',
        '{"backend": 3, "device": "cpu", "schedules": ["H1"]}',
        '{"backend": "onnxruntime", "device": "cpu", "schedules": ["H1"], "bundles": ["1"]}',
        '{"backend": "onnxruntime", "device": "cpu", "schedules": ["H1"], "bundles": {"1": 2}}',
        '{"backend": "onnxruntime", "device": "cpu", "schedules": ["H1"], "colour": "red"}',
    ],
)
def test_settings_garbage(repository: Path, text: str) -> None:
    config = read_config(repository / "tiny_previews" / "config.pbtxt")
    config.parameters[PARAMETER].string_value = text
    (repository / "tiny_previews" / "config.pbtxt").write_text(config_text(config))
    fault = the_fault(repository)
    assert fault.model == "tiny_previews"
    assert "parameter flowturbo_trt holds" in fault.detail


def test_settings_that_the_bundle_cannot_run(repository: Path) -> None:
    for name in ("tiny", "tiny_previews"):
        edit_settings(repository / name, lambda settings: replace(settings, backend="openvino"))
    findings = failed(repository)
    assert {finding.what for finding in findings} == {"config.pbtxt", "running version 1"}
    assert all("engine for openvino" in finding.detail for finding in findings)


def test_no_version(repository: Path) -> None:
    shutil.rmtree(repository / "tiny" / "1")
    findings = failed(repository)
    assert ("tiny", "versions") in {(finding.model, finding.what) for finding in findings}
    assert any("holds none; write a bundle" in finding.detail for finding in findings)


def test_version_without_its_bundle(repository: Path) -> None:
    shutil.rmtree(repository / "tiny" / "1" / "bundle")
    assert all("no bundle here" in finding.detail for finding in failed(repository))
    assert len(failed(repository)) == 2


def test_lost_warmup(repository: Path) -> None:
    file = next((repository / "tiny" / "warmup").glob("guidance.*"))
    file.unlink()
    assert the_fault(repository).detail == f"{file}: is missing; write it again"


def test_previews_of_another_version(tiny_bundle: Path, repository: Path, tmp_path: Path) -> None:
    newer = changed_copy(tiny_bundle, tmp_path, lambda data: data.update(licence="newer"))
    write_repository(newer, repository, "tiny", MODEL, previews=True)
    shutil.rmtree(repository / "tiny_previews" / "2")
    fault = the_fault(repository)
    assert (fault.model, fault.what) == ("tiny_previews", "previews")
    assert "previews are of version 1, tiny serves 2; write it again with --previews" in fault.detail


def test_previews_of_nothing(repository: Path) -> None:
    shutil.rmtree(repository / "tiny")
    assert any("No such file" in finding.detail for finding in failed(repository))


def test_previews_with_other_settings(repository: Path) -> None:
    edit_settings(repository / "tiny_previews", lambda settings: replace(settings, threads=2))
    assert "has other settings than tiny" in the_fault(repository).detail


def test_rollback_holds(tiny_bundle: Path, repository: Path, tmp_path: Path) -> None:
    newer = changed_copy(tiny_bundle, tmp_path, lambda data: data.update(licence="newer"))
    write_repository(newer, repository, "tiny", MODEL, previews=True)
    for name in ("tiny", "tiny_previews"):
        shutil.rmtree(repository / name / "2")
    assert failed(repository) == []


def test_models_of_others_are_passed_over(repository: Path) -> None:
    (repository / "resnet").mkdir()
    (repository / "resnet" / "config.pbtxt").write_text('name: "resnet"\nplatform: "onnxruntime_onnx"\n')
    (repository / "README").write_text("notes")
    assert failed(repository) == []
    assert "resnet" not in {finding.model for finding in check_repository(repository)}


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="is no folder; give the folder of the model repository"):
        check_repository(tmp_path / "models")
    with pytest.raises(RepositoryError, match="holds no model of flowturbo_trt; write one with"):
        check_repository(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(RepositoryError, match="is a bundle; give the folder of the model repository"):
        check_repository(tmp_path)
