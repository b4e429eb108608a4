"""Images made with a version of a model, as its instances would make them, but on this machine."""

import numpy as np

from flowturbo_trt.bundle.gpus import GpuError, gpus
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import Request, make_request
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.serving.triton.layout import ServedModel
from flowturbo_trt.serving.triton.staging import Progress
from flowturbo_trt.serving.triton.warmup import cases, guidance_for


class NotHereError(FlowTurboError):
    """A model that this machine cannot run, which is no fault of the model's."""


class TrialError(FlowTurboError):
    """A model that loads and makes what is no image."""


def try_version(model: ServedModel, version: int, progress: Progress) -> int:
    """Generate a batch of every built size with every schedule and variant; returns how many were made.

    Raises NotHereError on a machine without the GPU that the model asks for, and the error of whatever
    does not run.
    """
    settings = model.settings
    if settings.device == "cuda":
        try:
            gpus()
        except GpuError as error:
            raise NotHereError(f"{error}, and the model runs on one; check it where it is served") from error
    with Pipeline.load(
        model.bundle(version),
        backend=settings.backend,
        device=settings.device,
        threads=settings.threads,
        provider=settings.provider,
    ) as pipeline:
        manifest = pipeline.manifest
        all_cases = list(cases(manifest, settings, manifest.batches))
        for done, (schedule, variant, batch) in enumerate(all_cases):
            progress(f"{model.folder.name}: {schedule}, {variant}, batch {batch}", done, len(all_cases))
            _run(pipeline, schedule, _request(pipeline, variant, batch))
    return len(all_cases)


def _request(pipeline: Pipeline, variant: str, batch: int) -> Request:
    model = pipeline.manifest.model
    conditions = {condition.name: [condition.minimum] * batch for condition in model.conditions}
    return make_request(model, conditions, None, guidance_for(pipeline.manifest, variant), None)


def _run(pipeline: Pipeline, schedule: str, request: Request) -> None:
    generated = pipeline.generate(request, schedule, decode=pipeline.manifest.model.image is not None)
    if not np.isfinite(generated.latents).all():
        raise TrialError(
            f"{schedule}, batch {len(request)}: latents hold NaN or infinities; see `flowturbo_trt verify`"
        )
