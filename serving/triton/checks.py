"""Checks of a model repository as it lies there: its configs, its bundles, and images made with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from flowturbo_trt.bundle.manifest import BundleError, Manifest
from flowturbo_trt.bundle.store import MANIFEST, read_manifest
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.serving.triton.config import ConfigError, describe_model
from flowturbo_trt.serving.triton.existing import fault_of
from flowturbo_trt.serving.triton.layout import CONFIG, ServedModel, missing_files, read_model
from flowturbo_trt.serving.triton.options import ServerOptions, check_runs
from flowturbo_trt.serving.triton.settings import SettingsError
from flowturbo_trt.serving.triton.staging import Progress, RepositoryError
from flowturbo_trt.serving.triton.trial import NotHereError, try_version
from flowturbo_trt.serving.triton.warmup import FOLDER

Status = Literal["passed", "failed", "not run"]
# What follows from a bundle and its settings; the rest of a config is the deployer's to tune.
_FOLLOWING = ("name", "backend", "max_batch_size", "input", "output", "model_transaction_policy")


@dataclass(frozen=True)
class Finding:
    """What was looked at in a model, and what was found."""

    model: str
    what: str
    status: Status
    detail: str


def check_repository(
    repository: Path, progress: Progress = lambda what, done, total: None
) -> tuple[Finding, ...]:
    """Check every model of ours in a repository; raises RepositoryError where there is none.

    The newest version of each is loaded and makes images at every batch size. Models of others are passed
    over, but for configs that would keep a strict server from starting.
    """
    if not repository.is_dir() or (repository / MANIFEST).exists():
        what = "a bundle" if repository.is_dir() else "no folder"
        raise RepositoryError(f"{repository}: is {what}; give the folder of the model repository")
    folders = sorted(path for path in repository.iterdir() if path.is_dir())
    findings = [finding for folder in folders for finding in _check_folder(folder, progress)]
    if not findings:
        raise RepositoryError(
            f"{repository}: holds no model of flowturbo_trt; write one with `flowturbo_trt triton BUNDLE "
            f"{repository}`"
        )
    return tuple(findings)


def _check_folder(folder: Path, progress: Progress) -> Iterator[Finding]:
    try:
        model = read_model(folder)
    except (ConfigError, SettingsError) as error:
        yield Finding(folder.name, CONFIG, "failed", str(error))
        return
    if model is None:
        return
    if not model.versions:
        yield _held(folder.name, "versions", f"{folder}: holds none; write a bundle to it again", "")
        return
    newest = model.versions[-1]
    for version in model.versions:
        progress(f"checking {folder.name} version {version}", 0, 1)
        yield _held(folder.name, f"version {version}", fault_of(model, version), "as it was written")
    if model.is_previews:
        yield _held(folder.name, "previews", _previews_fault(model), f"of {model.settings.previews_of}")
    try:
        manifest = read_manifest(model.bundle(newest))
    except BundleError:
        # Found with its version above.
        return
    fits = f"fits the bundle of version {newest}"
    yield _held(folder.name, CONFIG, _config_fault(model, manifest), fits)
    yield _tried(model, newest, progress)


def _held(model: str, what: str, fault: str | None, detail: str) -> Finding:
    return Finding(model, what, "passed" if fault is None else "failed", fault or detail)


def _tried(model: ServedModel, version: int, progress: Progress) -> Finding:
    what = f"running version {version}"
    try:
        runs = try_version(model, version, progress)
    except NotHereError as error:
        return Finding(model.folder.name, what, "not run", str(error))
    except FlowTurboError as error:
        return Finding(model.folder.name, what, "failed", str(error))
    settings = model.settings
    detail = f"{runs} batches with {', '.join(settings.schedules)} on {settings.backend} ({settings.device})"
    return Finding(model.folder.name, what, "passed", detail)


def _previews_fault(model: ServedModel) -> str | None:
    """Hold a model that streams previews against the one they are of."""
    name = str(model.settings.previews_of)
    folder, remedy = model.folder.with_name(name), "write it again with --previews"
    try:
        streamed = read_model(folder)
    except (ConfigError, SettingsError) as error:
        return str(error)
    if streamed is None or streamed.is_previews:
        return f"{folder}: is no model to stream previews of; {remedy}"
    shown, served = max(model.versions), max(streamed.versions, default=None)
    if shown != served:
        return f"previews are of version {shown}, {name} serves {served}; {remedy}"
    alike = replace(model.settings, previews_of=None, cancellation=streamed.settings.cancellation)
    return None if alike == streamed.settings else f"has other settings than {name}; {remedy}"


def _config_fault(model: ServedModel, manifest: Manifest) -> str | None:
    """Hold a config against the one that follows from its bundle and settings."""
    try:
        check_runs(manifest, model.settings)
    except FlowTurboError as error:
        return str(error)
    file, config = model.folder / CONFIG, model.config
    expected = describe_model(model.folder.name, manifest, model.settings, ServerOptions()).config
    for part in _FOLLOWING:
        for found, follows in _items(getattr(config, part), getattr(expected, part)):
            if found != follows:
                return f"{file}: {part} is {_line(found)}, expected {_line(follows)}; write it again"
    for size in config.dynamic_batching.preferred_batch_size:
        if not 1 <= size <= config.max_batch_size:
            return f"{file}: prefers batches of {size}, expected 1 to {config.max_batch_size}"
    (kind,) = (group.kind for group in expected.instance_group)
    if {group.kind for group in config.instance_group} != {kind}:
        wanted = "KIND_CPU" if model.settings.device == "cpu" else "KIND_GPU"
        return f"{file}: has instances that are not {wanted}, which the settings are for; write it again"
    if missing := missing_files(model):
        return f"{model.folder / FOLDER / missing[0]}: is missing; write it again"
    return None


def _items(found: Any, follows: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the items of a part that is repeated, None where one has no more, or the part itself."""
    repeated = isinstance(follows, Sequence) and not isinstance(follows, str)
    yield from zip_longest(found, follows) if repeated else [(found, follows)]


def _line(value: Any) -> str:
    """Return a part of a config on a line."""
    text = "missing" if value is None else " ".join(str(value).split())
    return text or "empty"
