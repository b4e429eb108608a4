"""What an instance of a served model runs: its settings, and a pipeline on its version's bundle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import BundleError
from flowturbo_trt.bundle.store import sha256
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.programs import find_program
from flowturbo_trt.serving.triton.settings import PARAMETER, ModelSettings, SettingsError


@dataclass(frozen=True)
class Instance:
    """An instance that has been loaded: of which model and version, with which settings and pipeline."""

    model: str
    version: str
    settings: ModelSettings
    pipeline: Pipeline

    @property
    def decodes(self) -> bool:
        """Whether the bundle makes images; without a decoder it gives latents."""
        return self.pipeline.manifest.model.image is not None

    @property
    def output(self) -> str:
        """Return the name of the output tensor."""
        return "image" if self.decodes else "latent"

    def empty_rows(self, count: int) -> NDArray[Any]:
        """Return memory for rows of the output: (n,H,W,3) uint8 images, or (n,C,H,W) float32 latents."""
        model = self.pipeline.manifest.model
        if model.image is None:
            return np.empty((count, *model.latent), dtype=np.float32)
        return np.empty((count, *model.image, 3), dtype=np.uint8)


def open_instance(args: Mapping[str, str]) -> Instance:
    """Load what a server's arguments to `initialize` name.

    Raises SettingsError, BundleError for a bundle that is not the one that was put there, BackendError and
    ScheduleError.
    """
    settings, version = _settings(args), args["model_version"]
    folder = Path(args["model_repository"])
    if settings.previews_of is not None:
        folder = folder.parent / settings.previews_of
    bundle = folder / version / "bundle"
    _check_bundle(bundle, settings, version)
    cuda = settings.device == "cuda"
    pipeline = Pipeline.load(
        bundle,
        backend=settings.backend,
        device=f"cuda:{args['model_instance_device_id']}" if cuda else settings.device,
        threads=settings.threads,
        provider=settings.provider,
    )
    # A schedule that cannot run is told of now, not by the first request for it.
    for schedule in settings.schedules:
        for variant in pipeline.manifest.programs[pipeline.manifest.default_schedule]:
            find_program(pipeline.manifest, schedule, variant)
    return Instance(args["model_name"], version, settings, pipeline)


def _settings(args: Mapping[str, str]) -> ModelSettings:
    parameters = json.loads(args["model_config"]).get("parameters", {})
    if PARAMETER not in parameters:
        raise SettingsError(
            f"the config of {args['model_name']} has no parameter {PARAMETER}; write the repository again "
            "with `flowturbo_trt triton`"
        )
    return ModelSettings.from_json(parameters[PARAMETER]["string_value"])


def _check_bundle(bundle: Path, settings: ModelSettings, version: str) -> None:
    manifest = bundle / "manifest.json"
    try:
        found = sha256(manifest)
    except OSError as error:
        raise BundleError(
            f"{manifest}: {error.strerror}; write this version again with `flowturbo_trt triton`"
        ) from error
    if found != (expected := settings.bundles.get(version, "none")):
        raise BundleError(
            f"{bundle}: its manifest has sha256 {found[:12]}…, the config expects {expected[:12]}… for "
            f"version {version}; write this version again with `flowturbo_trt triton`"
        )
