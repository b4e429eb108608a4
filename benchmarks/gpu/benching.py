"""Measuring one case after the other: every contestant in turn within one run."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.benchmarks.gpu.bundles import Wanted, build_bundle, random_weights
from flowturbo_trt.benchmarks.gpu.cases import GUIDANCE, TORCH, Case
from flowturbo_trt.benchmarks.gpu.contestants import Contestant, Engines, Torch, Work, faster_layout
from flowturbo_trt.benchmarks.gpu.findings import reason_of
from flowturbo_trt.benchmarks.gpu.limits import count, floors
from flowturbo_trt.benchmarks.gpu.targets import Target
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.metrics import relative_l2
from flowturbo_trt.evaluation.speed.latency import Stability, Timing, measure
from flowturbo_trt.evaluation.torch_reference import TorchNetworks, TorchOptions
from flowturbo_trt.export.options import CONDITIONING
from flowturbo_trt.sampling.errors import FlowTurboError

Say = Callable[[str], None]


class NotInstalledError(FlowTurboError):
    """A contestant that this machine lacks."""


@dataclass(frozen=True)
class BenchOptions:
    """Where to measure, on bundles for `batches` that are built in `work` and kept there.

    `compiled_for` are the compute capabilities of TensorRT for RTX's plans, none for portable ones.
    """

    work: Path
    device: str = "cuda"
    batches: tuple[int, ...] = (1, 2, 4, 8)
    schedules: tuple[str, ...] = ("H1P5R3", "H8P9R5", "AB2x8")
    against: tuple[str, ...] = TORCH
    compiled_for: tuple[str, ...] = ()
    stability: Stability = field(default_factory=partial(Stability, precision=0.01, seconds=20.0))


def contestant_names(targets: dict[str, Target], options: BenchOptions) -> list[str]:
    """Return the names of all that take turns in a case."""
    engines = [f"{name}, {conditioning}" for name in targets for conditioning in CONDITIONING]
    return [*engines, *options.against]


class Bench:
    """Measures cases of one model; bundles and torch's networks are kept from case to case."""

    def __init__(self, targets: dict[str, Target], options: BenchOptions, gpu: str | None, say: Say) -> None:
        self._targets = targets
        self._options = options
        self._gpu = gpu
        self._say = say
        self._bundles: dict[tuple[str, str, str, str], Bundle] = {}
        self._torch: dict[tuple[str, str, str], TorchNetworks] = {}
        self._exact: dict[str, TorchNetworks] = {}
        self._precision = ""

    def measure(self, case: Case) -> dict[str, Any]:
        """Measure a case and describe it, for JSON; what one contestant cannot do is its failure alone."""
        if case.precision != self._precision:
            # Of one precision networks are compiled for many cases; of two they fill the memory.
            self._torch.clear()
            self._precision = case.precision
        found: dict[str, Contestant] = {}
        entries: dict[str, dict[str, Any]] = {}
        bundle = self._graphs("fused", case)
        work = Work.of(case, bundle, self._options.device)
        expected = self._reference(bundle, work)
        try:
            for name in contestant_names(self._targets, self._options):
                self._say(f"{case}: getting {name} ready")
                try:
                    found[name] = self._load(name, case, bundle, work)
                except Exception as error:  # compilers and drivers fail in their own ways
                    entries[name] = {"failure": reason_of(error)}
                    self._say(f"{case}: {name} does not run: {entries[name]['failure']}")
            self._say(f"{case}: timing {len(found)} in turn")
            timings = measure(dict(found), self._options.stability) if found else {}
            least = floors(self._gpu, bundle.manifest.model, work.program, case.batch, case.precision)
            for name, contestant in found.items():
                entries[name] = describe(contestant, timings[name], case.batch, expected, least)
        finally:
            for contestant in found.values():
                contestant.close()
        counted = count(bundle.manifest.model, work.program, case.batch, case.precision)
        head = {**asdict(case), "guidance": GUIDANCE, "floor_ms": least, "counted": counted}
        return {**head, "contestants": entries}

    def _load(self, name: str, case: Case, bundle: Bundle, work: Work) -> Contestant:
        if name in TORCH:
            return Torch.load(self._networks(name, case, bundle), work)
        target_name, conditioning = name.split(", ")
        target = self._targets[target_name]
        if (missing := target.missing()) is not None:
            raise NotInstalledError(f"not installed: {missing}")
        engines = self._bundle(target.backend, conditioning, case)
        return Engines.load(target, engines, conditioning, work)

    def _graphs(self, conditioning: str, case: Case) -> Bundle:
        """Return a bundle of the float32 graphs, which all engines are compiled from and torch is made of."""
        return self._build("onnxruntime", conditioning, "fp32", case, None)

    def _bundle(self, backend: str, conditioning: str, case: Case) -> Bundle:
        graphs = self._graphs(conditioning, case)
        return self._build(backend, conditioning, case.precision, case, graphs.path)

    def _build(
        self, backend: str, conditioning: str, precision: str, case: Case, graphs: Path | None
    ) -> Bundle:
        key = (case.model, backend, conditioning, precision)
        if key not in self._bundles:
            options = self._options
            folder = options.work / case.model.replace("/", "-")
            weights = random_weights(folder / "weights", case.model)
            wanted = Wanted(
                backend,
                precision,
                options.batches,
                options.schedules,
                conditioning=conditioning,
                targets=options.compiled_for if backend == "tensorrt-rtx" else (),
            )
            out = folder / f"{conditioning}-{backend}-{precision}"
            self._say(f"{case}: building {out.name}")
            self._bundles[key] = build_bundle(weights, out, wanted, graphs)
        return self._bundles[key]

    def _networks(self, name: str, case: Case, bundle: Bundle) -> TorchNetworks:
        key = (name, case.model, case.precision)
        if key not in self._torch:
            options = TorchOptions(self._options.device, case.precision, name == "torch-compile")
            last = faster_layout(bundle, options, case.batch)
            self._torch[key] = TorchNetworks(
                bundle, TorchOptions(options.device, options.precision, options.compiled, channels_last=last)
            )
        return self._torch[key]

    def _reference(self, bundle: Bundle, work: Work) -> NDArray[np.float32]:
        """Return the latents (B,C,H,W) of the float32 networks, which TF32 has no part in."""
        networks = self._exact.setdefault(
            work.case.model, TorchNetworks(bundle, TorchOptions(self._options.device))
        )
        request = work.request
        assert request.noise is not None
        latents: NDArray[np.float32] = networks.run(
            work.program, request.noise, request.conditions, request.guidance, decode=False
        )
        return latents


def describe(
    contestant: Contestant,
    timing: Timing,
    batch: int,
    expected: NDArray[np.float32],
    least: dict[str, float] | None,
) -> dict[str, Any]:
    """Put together what is known of a contestant; one whose latents are no numbers has failed."""
    error = relative_l2(contestant.latents(), expected)
    if not np.isfinite(error):
        return {"failure": "its latents are not finite"}
    low, high = timing.interval
    return {
        "median_ms": 1000 * timing.median,
        "interval_ms": [1000 * low, 1000 * high] if np.isfinite([low, high]).all() else None,
        "ms_per_image": 1000 * timing.median / batch,
        "samples": len(timing.samples),
        "stable": timing.stable,
        "share_of_floor": least and least[contestant.conditioning] / (1000 * timing.median),
        "relative_l2": error,
        "stages_ms": contestant.stages(),
        **contestant.facts,
    }
