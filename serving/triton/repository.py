"""Writing model repositories for Triton: every call for a model adds a version, or changes its settings.

A server goes on with what it has loaded until it is told to load the model again, or polls the
repository; whenever it looks, it finds a model that is whole.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.serving.triton.draft import Plan, draft_model, draft_previews, make_plan
from flowturbo_trt.serving.triton.existing import check_older, find_existing
from flowturbo_trt.serving.triton.layout import PREVIEWS
from flowturbo_trt.serving.triton.options import (
    ModelOptions,
    ServerOptions,
    ServingOptionsError,
    make_settings,
)
from flowturbo_trt.serving.triton.settings import ModelSettings
from flowturbo_trt.serving.triton.staging import Progress, RepositoryError, check_place, publish, staged

# Names go into paths and addresses.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Written:
    """What a repository holds now: its models, the newest version, and the sha256 of that bundle's manifest.

    `change` says what was written: a version, a config alone (the bundle was there), or nothing.
    `reconfigured` names the parts of an older config that are others now, `unfit` the reason for each
    older version that cannot run with these settings.
    """

    repository: Path
    models: tuple[str, ...]
    version: int
    sha256: str
    settings: ModelSettings
    server: ServerOptions
    change: Literal["version", "config", "nothing"]
    reconfigured: tuple[str, ...]
    unfit: Mapping[int, str]

    @property
    def name(self) -> str:
        return self.models[0]

    @property
    def start_command(self) -> str:
        """What starts a server on this model: strict, and loading new versions when it is told to."""
        words = [
            "tritonserver",
            f"--model-repository={self.repository}",
            "--disable-auto-complete-config",
            "--strict-readiness=true",
            "--exit-on-error=true",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self.models),
        ]
        if self.server.response_cache:
            words.append(f"--cache-config=local,size={CACHE_BYTES}")
        return shlex.join(words)

    @property
    def load_commands(self) -> tuple[str, ...]:
        """What tells a server that runs on this machine to load the newest version, without a pause."""
        return tuple(f"curl -X POST localhost:8000/v2/repository/models/{m}/load" for m in self.models)


def write_repository(
    bundle_path: Path,
    repository: Path,
    name: str | None = None,
    model: ModelOptions | None = None,
    server: ServerOptions | None = None,
    *,
    previews: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Written:
    """Put a bundle into a model repository as the next version of a model, by default named as its folder.

    The bundle that the newest version holds is not written again; its config is, where the options are
    others. Raises BundleError, ScheduleError, ServingOptionsError, RepositoryError, ConfigError and
    SettingsError, before anything is written but for a disk that fills up or fails.
    """
    server = server or ServerOptions()
    bundle = Bundle.open(bundle_path)
    name = check_name(bundle_path.resolve().name if name is None else name)
    settings = make_settings(bundle.manifest, model or ModelOptions(), server)
    if previews and bundle.manifest.model.image is None:
        raise ServingOptionsError("previews: the bundle has no decoder to make them; build it with --decoder")
    place = _place_beside(repository, bundle)
    progress("checking the bundle", 0, 1)
    bundle.check_all()
    progress("checking the bundle", 1, 1)
    with staged(place, name) as folder:
        existing = find_existing(place, name, previews=previews)
        unfit = check_older(existing, bundle.manifest, settings)
        plan = make_plan(bundle, name, settings, server, existing)
        changes = [draft_model(plan, folder / name, progress)]
        if previews:
            changes.append(draft_previews(plan, folder / (name + PREVIEWS)))
        for draft in sorted(folder.iterdir()):
            publish(draft, place / draft.name)
    return _written(place, plan, changes, unfit, previews=previews)


def _place_beside(repository: Path, bundle: Bundle) -> Path:
    """Return where a repository is, or will be; raises RepositoryError for a place within the bundle."""
    place = check_place(repository)
    if place.is_relative_to(bundle.path.resolve()):
        raise RepositoryError(f"{place}: lies in the bundle; give a folder elsewhere")
    return place


def _written(
    place: Path,
    plan: Plan,
    changes: list[tuple[str, ...] | None],
    unfit: Mapping[int, str],
    *,
    previews: bool,
) -> Written:
    is_changed = any(fields is not None for fields in changes)
    return Written(
        repository=place,
        models=(plan.name, plan.name + PREVIEWS) if previews else (plan.name,),
        version=plan.version,
        sha256=plan.settings.bundles[str(plan.version)],
        settings=plan.settings,
        server=plan.server,
        change="version" if plan.is_new else "config" if is_changed else "nothing",
        reconfigured=tuple(dict.fromkeys(field for fields in changes for field in fields or ())),
        unfit=unfit,
    )


def check_name(name: str) -> str:
    """Return the name of a model; raises RepositoryError for one that addresses cannot hold."""
    if _NAME.fullmatch(name) is None:
        raise RepositoryError(
            f"{name!r} cannot be the name of a model; give one of letters, digits, dots, dashes and "
            "underscores with --name"
        )
    return name
