"""Configs of served models: what the server is told of a model, as protobuf messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import (
    TYPE_FP32,
    TYPE_INT32,
    TYPE_INT64,
    TYPE_STRING,
    TYPE_UINT8,
    TYPE_UINT64,
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelQueuePolicy,
)

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.serving.triton.options import ServerOptions
from flowturbo_trt.serving.triton.settings import PARAMETER, ModelSettings, SettingsError
from flowturbo_trt.serving.triton.warmup import make_warmup


class ConfigError(FlowTurboError):
    """A config.pbtxt that cannot be read."""


@dataclass(frozen=True)
class Described:
    """A model's config, and the files of its warm-up by name, which it needs beside it."""

    config: ModelConfig
    files: Mapping[str, bytes]


def describe_model(
    name: str, manifest: Manifest, settings: ModelSettings, server: ServerOptions
) -> Described:
    """Return the config of a model that serves a bundle: with images, or latents where it has no decoder.

    The one that streams previews has one instance, which holds the engines once more, and no response
    cache: that does not take several responses.
    """
    previews = settings.previews_of is not None
    batches = (min(manifest.batches),) if previews else manifest.batches
    warmup = make_warmup(manifest, settings, batches)
    config = ModelConfig(
        name=name,
        backend="python",
        max_batch_size=max(manifest.batches),
        input=_inputs(manifest, settings),
        output=_outputs(manifest, previews=previews),
        dynamic_batching=_batching(manifest, server),
        model_warmup=warmup.samples,
        metric_tags=_tags(settings),
    )
    config.version_policy.latest.num_versions = 1
    config.parameters[PARAMETER].string_value = settings.to_json()
    if previews:
        config.model_transaction_policy.decoupled = True
        config.instance_group.append(_instances(settings, 1, server.gpus[:1] or (0,)))
        return Described(config, warmup.files)
    config.instance_group.append(_instances(settings, server.instances, server.gpus))
    if server.response_cache:
        config.response_cache.enable = True
    return Described(config, warmup.files)


def _inputs(manifest: Manifest, settings: ModelSettings) -> list[ModelInput]:
    inputs = [
        ModelInput(name=condition.name, data_type=TYPE_INT64, dims=[1])
        for condition in manifest.model.conditions
    ]
    inputs.append(ModelInput(name="seed", data_type=TYPE_UINT64, dims=[1]))
    inputs.append(ModelInput(name="guidance", data_type=TYPE_FP32, dims=[1], optional=True))
    if len(settings.schedules) > 1:
        inputs.append(ModelInput(name="schedule", data_type=TYPE_STRING, dims=[1], optional=True))
    return inputs


def _outputs(manifest: Manifest, *, previews: bool) -> list[ModelOutput]:
    model = manifest.model
    if model.image is None:
        return [ModelOutput(name="latent", data_type=TYPE_FP32, dims=model.latent)]
    outputs = [ModelOutput(name="image", data_type=TYPE_UINT8, dims=(*model.image, 3))]
    if previews:
        outputs.append(ModelOutput(name="step", data_type=TYPE_INT32, dims=[1]))
        outputs.append(ModelOutput(name="steps", data_type=TYPE_INT32, dims=[1]))
        outputs.append(ModelOutput(name="time", data_type=TYPE_FP32, dims=[1]))
    return outputs


def _batching(manifest: Manifest, server: ServerOptions) -> ModelDynamicBatching:
    policy = ModelQueuePolicy(
        timeout_action=ModelQueuePolicy.REJECT,
        default_timeout_microseconds=1000 * server.timeout_ms,
        allow_timeout_override=True,
        max_queue_size=server.queue_size,
    )
    return ModelDynamicBatching(
        # Those that need no padding.
        preferred_batch_size=sorted(batch for batch in manifest.batches if batch > 1),
        max_queue_delay_microseconds=server.max_queue_delay_us,
        default_queue_policy=policy,
    )


def _tags(settings: ModelSettings) -> dict[str, str]:
    """Return what the server's metrics tell beside model and version: what holds for every request."""
    schedule = {"schedule": settings.schedules[0]} if len(settings.schedules) == 1 else {}
    return {"backend": settings.backend, **schedule}


def _instances(settings: ModelSettings, count: int, gpus: Sequence[int]) -> ModelInstanceGroup:
    if settings.device == "cpu":
        return ModelInstanceGroup(kind=ModelInstanceGroup.KIND_CPU, count=count)
    return ModelInstanceGroup(kind=ModelInstanceGroup.KIND_GPU, count=count, gpus=gpus)


def config_text(config: ModelConfig) -> str:
    """Return the text that `read_config` reads."""
    text: str = text_format.MessageToString(config, as_utf8=True)
    return text


def read_config(file: Path) -> ModelConfig:
    """Read a config.pbtxt; raises ConfigError, which names the line."""
    try:
        text = file.read_text(encoding="utf-8")
        config: ModelConfig = text_format.Parse(text, ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"line {error}"
        raise ConfigError(f"{file}: cannot be read ({reason}); restore it or remove the model") from error
    return config


def read_settings(config: ModelConfig) -> ModelSettings | None:
    """Return the settings in a config, None where it has none; raises SettingsError."""
    if PARAMETER not in config.parameters:
        return None
    settings = ModelSettings.from_json(config.parameters[PARAMETER].string_value)
    hashes = settings.bundles.values() if isinstance(settings.bundles, dict) else (None,)
    texts = (settings.backend, settings.device, *settings.schedules, *hashes)
    if not settings.schedules or not all(isinstance(text, str) for text in texts):
        raise SettingsError(
            f"parameter {PARAMETER} holds {settings}, expected a backend, a device, schedules and the sha256 "
            "of bundles; write the repository again with `flowturbo_trt triton`"
        )
    return settings
