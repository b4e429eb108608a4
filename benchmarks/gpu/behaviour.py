"""How a pipeline behaves over many requests: fresh results, graphs, threads, memory, device results."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from flowturbo_trt.benchmarks.gpu.asking import Asked, Setting, different_bytes, in_turn, made_once
from flowturbo_trt.benchmarks.gpu.findings import Findings
from flowturbo_trt.runtime.device import Device
from flowturbo_trt.runtime.pipeline import Generated, Pipeline, Step
from flowturbo_trt.runtime.programs import find_program

NO_DEVICE = "no GPU: results are made in host memory"
SAME = "0 bytes differ"
# Requests of each of two threads.
REQUESTS_PER_THREAD = 20


def fresh_results(setting: Setting, findings: Findings, what: str) -> None:
    """Ask one pipeline for requests that differ in one thing each, and a fresh pipeline for each of them."""
    with setting.pipeline() as pipeline:
        for asked in in_turn(setting):
            wrong = different_bytes(asked.of(pipeline), made_once(_anew(setting, pipeline), asked))
            findings.check(f"{what}: {asked.what}, as a fresh pipeline gives it", wrong, SAME, met=wrong == 0)


def steps_and_whole(setting: Setting, findings: Findings) -> None:
    """Run step by step, with a callback, and as a whole."""
    first = in_turn(setting)[0]
    seen: list[int] = []

    def remember(step: Step) -> None:
        seen.append(step.index)

    with setting.pipeline() as pipeline:
        whole = first.of(pipeline)
        stepped = pipeline.generate(first.request, first.schedule, on_step=remember)
        wrong = different_bytes(stepped, whole)
        steps = len(find_program(pipeline.manifest, first.schedule, "guided").steps)
    findings.check("graphs of single steps, as the graph of the whole", wrong, SAME, met=wrong == 0)
    findings.check("callbacks of a trajectory", len(seen), f"{steps}", met=seen == list(range(steps)))


def one_graph(setting: Setting, findings: Findings) -> None:
    """Count what a run without callbacks launches on the device."""
    name = "graphs launched by a run"
    with setting.pipeline() as pipeline:
        device = pipeline._backend.device
        if device is None:
            findings.skip(name, NO_DEVICE)
            return
        first = in_turn(setting)[0]
        first.of(pipeline)
        with _counting(device) as counted:
            first.of(pipeline)
        if not setting.target.captures and counted["launch_graph"] == 0:
            findings.skip(name, "this backend's calls could not be captured: they are launched one by one")
            return
        alone = counted["launch_graph"] == 1 and counted["launch"] == 0
        why = f"and {counted['launch']} kernels beside it"
        findings.check(name, counted["launch_graph"], "1, and no kernel beside it", met=alone, why=why)


def replays_leak_nothing(setting: Setting, findings: Findings, replays: int) -> None:
    """Answer many requests of two schedules, on the host and on the device, and compare the free memory."""
    name = f"bytes of device memory lost in {replays} replays"
    with setting.pipeline() as pipeline:
        device = pipeline._backend.device
        if device is None:
            findings.skip(name, NO_DEVICE)
            return
        rounds = in_turn(setting)
        for asked in rounds:
            _answer_everywhere(pipeline, asked)
        before, _ = device.memory()
        for index in range(replays):
            _answer_everywhere(pipeline, rounds[index % len(rounds)])
        after, _ = device.memory()
        findings.check(name, before - after, "0", met=after >= before)


def two_threads(setting: Setting, findings: Findings) -> None:
    """Let two pipelines answer in two threads, then two threads ask one pipeline."""
    first, second = setting.request(first_seed=500), setting.request(first_label=2, first_seed=900)
    asked = [Asked("first", first), Asked("second", second)]
    with setting.pipeline() as one, setting.pipeline() as other:
        expected = [asked[0].of(one), asked[1].of(other)]
        for what, pipelines in (
            ("two pipelines in two threads", (one, other)),
            ("two threads on one pipeline", (one, one)),
        ):
            wrong = _ask_at_once(pipelines, asked, expected)
            findings.check(f"{what}, as one after the other", wrong, SAME, met=wrong == 0)


def results_on_device(setting: Setting, findings: Findings) -> None:
    """Take over results with torch through DLPack, where torch has CUDA, and copy them to the host."""
    names = ("results left on the device, as on the host", "the same through torch.from_dlpack")
    with setting.pipeline() as pipeline:
        if pipeline._backend.device is None:
            for name in names:
                findings.skip(name, NO_DEVICE)
            return
        first = in_turn(setting)[0]
        expected = first.of(pipeline)
        made = pipeline.generate_on_device(first.request, first.schedule)
        assert made.images is not None
        wrong = different_bytes(Generated(made.latents.host(), made.images.host()), expected)
        findings.check(names[0], wrong, SAME, met=wrong == 0)
        torch = _torch_with_cuda()
        if torch is None:
            findings.skip(names[1], "torch is not installed, or without CUDA")
            return
        latents, images = torch.from_dlpack(made.latents), torch.from_dlpack(made.images)
        taken = Generated(latents.cpu().numpy(), images.cpu().numpy())
        wrong = different_bytes(taken, expected)
        findings.check(names[1], wrong, SAME, met=wrong == 0 and latents.is_cuda and images.is_cuda)


def _anew(setting: Setting, pipeline: Pipeline) -> Any:
    """Return what makes a fresh pipeline.

    ONNX Runtime picks kernels anew, by timing them, in each process's session: there only the buffers
    and graphs are fresh.
    """
    if setting.target.backend == "onnxruntime":
        return lambda: _Sharing(setting.bundle, pipeline._backend)
    return setting.pipeline


class _Sharing(Pipeline):
    """A pipeline on another's backend, which it leaves open."""

    def close(self) -> None:
        self._lanes.close()


def _answer_everywhere(pipeline: Pipeline, asked: Asked) -> None:
    asked.of(pipeline)
    made = pipeline.generate_on_device(asked.request, asked.schedule)
    del made


def _ask_at_once(pipelines: tuple[Pipeline, Pipeline], asked: list[Asked], expected: list[Generated]) -> int:
    """Return the bytes that differ in the answers to two threads that ask over and over."""
    wrong = [0, 0]
    broken: list[BaseException] = []

    def ask(index: int) -> None:
        try:
            for _ in range(REQUESTS_PER_THREAD):
                found = asked[index].of(pipelines[index])
                wrong[index] += different_bytes(found, expected[index])
        except BaseException as error:
            broken.append(error)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if broken:
        raise broken[0]
    return sum(wrong)


@contextmanager
def _counting(device: Device) -> Iterator[dict[str, int]]:
    """Count a device's launches of graphs and kernels."""
    counted = {"launch_graph": 0, "launch": 0}
    replaced: Any = device

    def counting(name: str) -> Any:
        real = getattr(device, name)

        def call(*arguments: Any) -> None:
            counted[name] += 1
            real(*arguments)

        return call

    for name in counted:
        setattr(replaced, name, counting(name))
    try:
        yield counted
    finally:
        for name in counted:
            delattr(replaced, name)


def _torch_with_cuda() -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        return None
    return torch if torch.cuda.is_available() else None


def finite(generated: Generated) -> bool:
    """Tell whether latents are numbers, and images not all of one level."""
    images = generated.images
    assert images is not None
    return bool(np.isfinite(generated.latents).all() and images.std() > 0)
