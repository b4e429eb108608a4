"""What torch is told and asked on a GPU, as far as it shows without one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.torch_reference import (
    GraphedCalls,
    TorchNetworks,
    TorchOptions,
    load_torch_networks,
)
from flowturbo_trt.evaluation.torch_weights import rebuild_whole
from flowturbo_trt.sampling.program import Program
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace

# What hands a value of the device's to Python, or makes a shape of one.
WAITS = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::equal"}


class Recorder(TorchDispatchMode):
    """Lists the operators that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.called: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.append(func.name().partition(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torch claim a GPU, and restore what it is then told."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    old = (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark)
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = True, True, False
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = old


def inputs(bundle: Bundle, batch: int) -> tuple[Any, ...]:
    noise = np.random.default_rng(0).standard_normal((batch, *bundle.manifest.model.latent), dtype=np.float32)
    return noise, {"label": np.arange(batch) % 3}, np.full(batch, 1.7, dtype=np.float32)


def test_float32_is_float32_on_a_gpu(tiny_bundle: Path, gpu: None) -> None:
    load_torch_networks(Bundle.open(tiny_bundle), TorchOptions(device="cuda"))
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.benchmark


def test_compiled_for_a_gpu_with_graphs(
    tiny_bundle: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def compile_(module: torch.nn.Module, **options: Any) -> Callable[..., torch.Tensor]:
        asked.append(options)
        return module

    monkeypatch.setattr(torch, "compile", compile_)
    networks = TorchNetworks(Bundle.open(tiny_bundle), TorchOptions(device="cuda", compiled=True))
    assert isinstance(networks._compiled(torch.nn.Identity()), GraphedCalls)
    assert asked == [{"fullgraph": True, "dynamic": False, "mode": "max-autotune"}]


def test_results_of_a_graph_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Heun step holds the result of one call while the next is made."""
    steps: list[str] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append("step"))
    place = torch.zeros(2)

    def graph(state: torch.Tensor) -> torch.Tensor:
        steps.append("call")
        return place.copy_(state)

    calls = GraphedCalls(graph)
    first, second = calls(state=torch.tensor([1.0, 2.0])), calls(state=torch.tensor([3.0, 4.0]))
    assert first.tolist() == [1, 2]
    assert second.tolist() == [3, 4]
    assert steps == ["step", "call", "step", "call"]


def test_channels_last_is_the_same_decoder(golden_bundle: Path) -> None:
    bundle = Bundle.open(golden_bundle)
    program = trace(Schedule.parse("E1"), "guided")
    given = inputs(bundle, 2)
    networks = load_torch_networks(bundle, TorchOptions(channels_last=True))
    images = networks.run(program, *given)
    decoder = networks._module("decoder", None, rebuild_whole)
    weight = decoder.decoder.decoder.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    expected = load_torch_networks(bundle).run(program, *given)
    assert images.std() > 0
    assert np.abs(images.astype(int) - expected.astype(int)).max() <= 1


def programs() -> dict[str, Program]:
    texts = ("H1P1R2", "AB2x3", "H2R1:guided=0.4..1")
    return {text: trace(Schedule.parse(text), "guided") for text in texts}


@pytest.mark.parametrize("text", programs())
def test_nothing_waits_for_the_device_within_a_run(golden_bundle: Path, text: str) -> None:
    bundle = Bundle.open(golden_bundle)
    networks = load_torch_networks(bundle)
    program, given = programs()[text], inputs(bundle, 2)
    networks.run(program, *given)
    with Recorder() as recorder:
        networks.run(program, *given)
    assert "aten::linear" in recorder.called
    assert not WAITS & set(recorder.called)
