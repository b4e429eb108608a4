"""Configs of served models, field by field as a server parses them."""

from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import read_manifest
from flowturbo_trt.serving.triton.config import (
    ConfigError,
    config_text,
    describe_model,
    read_config,
    read_settings,
)
from flowturbo_trt.serving.triton.options import ServerOptions
from flowturbo_trt.serving.triton.settings import ModelSettings, SettingsError

CPU = ModelSettings("onnxruntime", "cpu", ("H1P1R1",), bundles={"1": "abc"})
CUDA = replace(CPU, device="cuda", cancellation=False)


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return read_manifest(tiny_bundle)


def parsed(
    manifest: Manifest, settings: ModelSettings = CPU, server: ServerOptions | None = None
) -> triton.ModelConfig:
    config = describe_model("digits", manifest, settings, server or ServerOptions()).config
    return text_format.Parse(config_text(config), triton.ModelConfig())


def tensors(given: object) -> list[tuple[str, str, list[int], bool]]:
    return [
        (t.name, triton.DataType.Name(t.data_type), list(t.dims), getattr(t, "optional", False))
        for t in given  # type: ignore[attr-defined]
    ]


def test_what_the_bundle_says(manifest: Manifest) -> None:
    config = parsed(manifest)
    assert (config.name, config.backend, config.max_batch_size) == ("digits", "python", 3)
    assert tensors(config.input) == [
        ("label", "TYPE_INT64", [1], False),
        ("seed", "TYPE_UINT64", [1], False),
        ("guidance", "TYPE_FP32", [1], True),
    ]
    assert tensors(config.output) == [("image", "TYPE_UINT8", [8, 8, 3], False)]
    assert config.version_policy.latest.num_versions == 1
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert list(config.dynamic_batching.preferred_batch_size) == [3]
    assert not config.model_transaction_policy.decoupled
    assert not config.response_cache.enable
    assert {sample.batch_size for sample in config.model_warmup} == {1, 3}
    assert read_settings(config) == CPU


def test_default_queue(manifest: Manifest) -> None:
    """Nobody waits for company, and nobody waits without end."""
    batching = parsed(manifest).dynamic_batching
    policy = batching.default_queue_policy
    assert batching.max_queue_delay_microseconds == 0
    assert policy.timeout_action == triton.ModelQueuePolicy.REJECT
    assert policy.default_timeout_microseconds == 30_000_000
    assert policy.allow_timeout_override
    assert policy.max_queue_size == 256


def test_what_the_deployer_says(manifest: Manifest) -> None:
    server = ServerOptions(
        instances=3, gpus=(2, 0), max_queue_delay_us=500, queue_size=7, timeout_ms=20, response_cache=True
    )
    config = parsed(manifest, CUDA, server)
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (triton.ModelInstanceGroup.KIND_GPU, 3, [2, 0])
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 7
    assert config.dynamic_batching.default_queue_policy.default_timeout_microseconds == 20_000
    assert config.response_cache.enable


def test_instances_on_the_cpu(manifest: Manifest) -> None:
    (group,) = parsed(manifest, server=ServerOptions(instances=2)).instance_group
    assert (group.kind, group.count, list(group.gpus)) == (triton.ModelInstanceGroup.KIND_CPU, 2, [])


def test_all_gpus_by_default(manifest: Manifest) -> None:
    """For a server an empty list is all of them."""
    (group,) = parsed(manifest, CUDA).instance_group
    assert (group.kind, group.count, list(group.gpus)) == (triton.ModelInstanceGroup.KIND_GPU, 1, [])


def test_several_schedules_are_an_input(manifest: Manifest) -> None:
    one, several = parsed(manifest), parsed(manifest, replace(CPU, schedules=("H1P1R1", "H2")))
    assert tensors(several.input)[3:] == [("schedule", "TYPE_STRING", [1], True)]
    assert len(several.model_warmup) == 2 * len(one.model_warmup)
    # A tag of all requests says nothing that only holds for some.
    assert dict(one.metric_tags) == {"backend": "onnxruntime", "schedule": "H1P1R1"}
    assert dict(several.metric_tags) == {"backend": "onnxruntime"}


def test_previews_stream(manifest: Manifest) -> None:
    settings = replace(CUDA, previews_of="digits")
    server = ServerOptions(instances=3, gpus=(2, 0), response_cache=True, queue_size=7)
    config = parsed(manifest, settings, server)
    assert config.model_transaction_policy.decoupled
    assert tensors(config.output) == [
        ("image", "TYPE_UINT8", [8, 8, 3], False),
        ("step", "TYPE_INT32", [1], False),
        ("steps", "TYPE_INT32", [1], False),
        ("time", "TYPE_FP32", [1], False),
    ]
    assert tensors(config.input) == tensors(parsed(manifest).input)
    (group,) = config.instance_group
    assert (group.count, list(group.gpus)) == (1, [2])
    assert not config.response_cache.enable
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 7
    assert {sample.batch_size for sample in config.model_warmup} == {1}


def test_previews_run_on_the_first_gpu(manifest: Manifest) -> None:
    (group,) = parsed(manifest, replace(CUDA, previews_of="digits")).instance_group
    assert list(group.gpus) == [0]


def test_bundle_without_a_decoder(manifest: Manifest) -> None:
    latents = replace(manifest, model=replace(manifest.model, image=None))
    assert tensors(parsed(latents).output) == [("latent", "TYPE_FP32", [2, 4, 4], False)]


def test_bundle_of_one_batch_size(manifest: Manifest) -> None:
    config = parsed(replace(manifest, batches=(1,)))
    assert config.max_batch_size == 1
    assert list(config.dynamic_batching.preferred_batch_size) == []


def test_text_that_is_no_config(tmp_path: Path) -> None:
    file = tmp_path / "config.pbtxt"
    with pytest.raises(ConfigError, match="No such file"):
        read_config(file)
    file.write_text('name: "x"\nmax_batch_size: many\n')
    with pytest.raises(ConfigError, match=r"config.pbtxt: cannot be read \(line 2:17 .*many"):
        read_config(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(file)


def test_settings_that_nobody_wrote(tmp_path: Path) -> None:
    config = triton.ModelConfig()
    assert read_settings(config) is None
    config.parameters["flowturbo_trt"].string_value = "{}"
    with pytest.raises(SettingsError, match="holds no settings"):
        read_settings(config)
