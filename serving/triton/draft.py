"""Drafts of models: what is to be put into a repository, in a folder beside it."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from flowturbo_trt.bundle.store import MANIFEST, Bundle, sha256
from flowturbo_trt.serving.triton.config import Described, config_text, describe_model
from flowturbo_trt.serving.triton.existing import Existing
from flowturbo_trt.serving.triton.layout import (
    BUNDLE,
    CONFIG,
    MODEL,
    PREVIEWS,
    ServedModel,
    missing_files,
    model_text,
)
from flowturbo_trt.serving.triton.options import ServerOptions
from flowturbo_trt.serving.triton.settings import ModelSettings
from flowturbo_trt.serving.triton.staging import Progress, check_space, copy_bundle
from flowturbo_trt.serving.triton.warmup import FOLDER


@dataclass(frozen=True)
class Plan:
    """What is to be there afterwards: a model with these settings, whose newest version has this bundle."""

    bundle: Bundle
    name: str
    settings: ModelSettings
    server: ServerOptions
    existing: Existing
    version: int
    is_new: bool


def make_plan(
    bundle: Bundle, name: str, settings: ModelSettings, server: ServerOptions, existing: Existing
) -> Plan:
    """Return what is to be done for a bundle: its next version, or the newest where that holds it."""
    found = sha256(bundle.path / MANIFEST)
    held = existing.version_of(found)
    version = existing.next_version() if held is None else held
    settings = replace(settings, bundles={**existing.bundles, str(version): found})
    return Plan(bundle, name, settings, server, existing, version, is_new=held is None)


def draft_model(plan: Plan, folder: Path, progress: Progress) -> tuple[str, ...] | None:
    """Put together what is missing of the model, in a new folder; returns what is reconfigured.

    That is None where nothing is missing. Raises RepositoryError where there is no room for it.
    """
    described = describe_model(plan.name, plan.bundle.manifest, plan.settings, plan.server)
    reconfigured = _draft_config(folder, described, plan.settings, plan.existing.model)
    if not plan.is_new:
        return reconfigured
    check_space(plan.bundle, folder.parent)
    copy_bundle(plan.bundle, folder / str(plan.version) / BUNDLE, progress)
    _write_model(folder / str(plan.version), previews=False)
    return reconfigured or ()


def draft_previews(plan: Plan, folder: Path) -> tuple[str, ...] | None:
    """Put together what is missing of the model that streams previews, as `draft_model` does."""
    # To be given up between steps costs it nothing more.
    settings = replace(plan.settings, previews_of=plan.name, cancellation=True)
    described = describe_model(plan.name + PREVIEWS, plan.bundle.manifest, settings, plan.server)
    before = plan.existing.previews
    reconfigured = _draft_config(folder, described, settings, before)
    # Of every version of the model, so that it follows that to an older one.
    missing = {*plan.existing.versions, plan.version} - set(before.versions if before else ())
    for version in missing:
        _write_model(folder / str(version), previews=True)
    return () if reconfigured is None and missing else reconfigured


def _draft_config(
    folder: Path, described: Described, settings: ModelSettings, before: ServedModel | None
) -> tuple[str, ...] | None:
    """Write config and warm-up unless they are there already; returns which parts of an older one differ."""
    if before is not None and described.config == before.config and not missing_files(before):
        return None
    (folder / FOLDER).mkdir(parents=True)
    for name, content in described.files.items():
        (folder / FOLDER / name).write_bytes(content)
    (folder / CONFIG).write_text(config_text(described.config), encoding="utf-8")
    return () if before is None else _differences(before, described.config, settings)


def _differences(before: ServedModel, config: ModelConfig, settings: ModelSettings) -> tuple[str, ...]:
    """Return the names of a config's parts, and of the settings in it, that are others than before."""
    parts = (field.name for field in ModelConfig.DESCRIPTOR.fields if field.name != "parameters")
    named = (field.name for field in fields(ModelSettings) if field.name != "bundles")
    return (
        *(name for name in parts if getattr(before.config, name) != getattr(config, name)),
        *(name for name in named if getattr(before.settings, name) != getattr(settings, name)),
    )


def _write_model(version: Path, *, previews: bool) -> None:
    version.mkdir(parents=True, exist_ok=True)
    (version / MODEL).write_text(model_text(previews=previews), encoding="utf-8")
