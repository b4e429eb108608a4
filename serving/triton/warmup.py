"""What a server runs before it calls a model ready: every program at every batch size, with valid values."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tritonclient.grpc.model_config_pb2 import TYPE_FP32, TYPE_INT64, TYPE_STRING, TYPE_UINT64, ModelWarmup

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.serving.triton.settings import ModelSettings

FOLDER = "warmup"
# For a bundle whose default is none.
_SOME_GUIDANCE = 2.0


@dataclass(frozen=True)
class Warmup:
    """Samples for a config, and the files beside it that they name: one row each, as the server has them."""

    samples: tuple[ModelWarmup, ...]
    files: Mapping[str, bytes]


def make_warmup(manifest: Manifest, settings: ModelSettings, batches: Sequence[int]) -> Warmup:
    """Return the warm-up of a model at these batch sizes; the server repeats a sample's row for its batch."""
    samples, files = [], {}
    for schedule, variant, batch in cases(manifest, settings, batches):
        sample = ModelWarmup(name=f"{schedule}, {variant}, batch {batch}", batch_size=batch, count=1)
        sample.inputs["seed"].CopyFrom(ModelWarmup.Input(data_type=TYPE_UINT64, dims=[1], zero_data=True))
        for name, data_type, content in _row(manifest, settings, schedule, variant):
            # By their content: a config that is being replaced still finds its own.
            file = f"{name}.{hashlib.sha256(content).hexdigest()[:12]}"
            files[file] = content
            sample.inputs[name].CopyFrom(
                ModelWarmup.Input(data_type=data_type, dims=[1], input_data_file=file)
            )
        samples.append(sample)
    return Warmup(tuple(samples), files)


def guidance_for(manifest: Manifest, variant: str) -> float:
    """Return a guidance scale that a variant serves."""
    default = manifest.model.guidance.default
    return 1.0 if variant == "unguided" else default if default != 1 else _SOME_GUIDANCE


def cases(
    manifest: Manifest, settings: ModelSettings, batches: Sequence[int]
) -> Iterator[tuple[str, str, int]]:
    """Yield what a model runs at these batch sizes: schedule, variant and batch."""
    for schedule in settings.schedules:
        for variant in manifest.programs[manifest.default_schedule]:
            for batch in batches:
                yield schedule, variant, batch


def _row(
    manifest: Manifest, settings: ModelSettings, schedule: str, variant: str
) -> Iterator[tuple[str, int, bytes]]:
    """Yield name, type and bytes of the inputs of a row that a program serves."""
    for condition in manifest.model.conditions:
        yield condition.name, TYPE_INT64, np.array(condition.minimum, dtype="<i8").tobytes()
    guidance = guidance_for(manifest, variant)
    yield "guidance", TYPE_FP32, np.array(guidance, dtype="<f4").tobytes()
    if len(settings.schedules) > 1:
        text = schedule.encode()
        yield "schedule", TYPE_STRING, len(text).to_bytes(4, "little") + text
