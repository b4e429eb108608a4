"""Everything `make gpu-check` checks of one target."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flowturbo_trt.benchmarks.gpu.asking import SCHEDULE, Setting, in_turn
from flowturbo_trt.benchmarks.gpu.behaviour import (
    finite,
    fresh_results,
    one_graph,
    replays_leak_nothing,
    results_on_device,
    steps_and_whole,
    two_threads,
)
from flowturbo_trt.benchmarks.gpu.bundles import Wanted, build_bundle, digits_weights, random_weights
from flowturbo_trt.benchmarks.gpu.findings import Findings
from flowturbo_trt.benchmarks.gpu.parities import parity
from flowturbo_trt.benchmarks.gpu.processes import deployed_process
from flowturbo_trt.benchmarks.gpu.refusals import foreign_engine, full_device
from flowturbo_trt.benchmarks.gpu.targets import Target
from flowturbo_trt.sampling.errors import FlowTurboError

BATCHES = (1, 3)
DIGITS_SCHEDULES = ("H1P5R3", "AB2x8")
# Three of four channels guided; guided some of the time.
RANDOM_SCHEDULES = ("H1P5R3", "H1P2R2:guided=0.2..0.8")
# What plans of TensorRT for RTX are compiled for in turn until one runs; none is portable.
COMPILED_FOR: tuple[tuple[str, ...], ...] = ((), ("8.0",), ("8.9",), ("12.0",))


@dataclass(frozen=True)
class CheckOptions:
    """Where and what to check; bundles are built in `work`, and taken from there by the next run.

    The first of `precisions` is checked in all, the others for parity.
    """

    work: Path
    device: str = "cuda"
    model: str = "SiT-S/2"
    precisions: tuple[str, ...] = ("fp16", "bf16", "fp32")
    replays: int = 1000


def check_target(
    name: str, target: Target, options: CheckOptions, say: Callable[[str], None]
) -> dict[str, Any]:
    """Check one target and describe what came of it, for JSON."""
    if (missing := target.missing()) is not None:
        say(f"– {name}: not installed: {missing}")
        return {"target": name, "status": "not installed", "why": missing}
    tries = list(first_runs(target, options, options.work / name))
    found: dict[str, Any] = {"target": name, "plans": [t for t, _ in tries]}
    setting = tries[-1][1]
    if setting is None:
        why = str(tries[0][0]["why"])
        say(f"✗ {name}: does not run: {why}")
        return {**found, "status": "does not run", "why": why}
    say(f"✓ {name}: loads and runs {options.precisions[0]} digits ({tries[-1][0]['compiled_for']})")
    findings = Findings(lambda line: say(f"  {line}"))
    for what, check in checks(setting, options, findings, options.work / name):
        findings.run(what, check)
    return {**found, "status": "ran", "failed": findings.failed, "checks": findings.as_data()}


def first_runs(target: Target, options: CheckOptions, folder: Path) -> Any:
    """Yield for what was compiled and whether it ran, with the setting if so, until one does."""
    for compiled_for in COMPILED_FOR if target.backend == "tensorrt-rtx" else ((),):
        text = " and ".join(compiled_for) or "portable"
        wanted = Wanted(
            target.backend,
            options.precisions[0],
            BATCHES,
            (SCHEDULE, *DIGITS_SCHEDULES),
            targets=compiled_for,
        )
        try:
            out = folder / f"digits-{options.precisions[0]}-{text.replace(' ', '-')}"
            bundle = build_bundle(
                digits_weights(), out, wanted, folder / f"digits-{options.precisions[0]}-portable"
            )
            setting = Setting(target, bundle, options.device)
            with setting.pipeline() as pipeline:
                made = in_turn(setting)[0].of(pipeline)
            if not finite(made):
                raise FlowTurboError("its latents are not finite, or its images are all of one level")
        except FlowTurboError as error:
            yield {"compiled_for": text, "runs": False, "why": str(error)}, None
            continue
        yield {"compiled_for": text, "runs": True, "why": None}, setting
        return


def checks(
    setting: Setting, options: CheckOptions, findings: Findings, folder: Path
) -> list[tuple[str, Callable[[], None]]]:
    """Return the checks in the order of what is wanted most, and those that harm the process last."""
    first, *others = options.precisions
    return [
        ("parity of digits", partial(parity, setting, findings, f"digits {first}", DIGITS_SCHEDULES)),
        ("one graph", partial(one_graph, setting, findings)),
        ("fresh results", partial(fresh_results, setting, findings)),
        ("steps", partial(steps_and_whole, setting, findings)),
        ("results on the device", partial(results_on_device, setting, findings)),
        ("threads", partial(two_threads, setting, findings)),
        ("leaks", partial(replays_leak_nothing, setting, findings, options.replays)),
        ("a deployed process", partial(deployed_process, setting, findings)),
        ("random weights", partial(_random, setting, options, findings, folder)),
        *((f"digits in {other}", partial(_digits_in, other, setting, findings, folder)) for other in others),
        ("a full device", partial(full_device, setting, findings)),
        ("an engine for another GPU", partial(foreign_engine, setting, findings, digits_weights(), folder)),
    ]


def _random(setting: Setting, options: CheckOptions, findings: Findings, folder: Path) -> None:
    """Check a network of a published shape, guided in three of four channels, also without guidance."""
    wanted = Wanted(
        setting.target.backend,
        options.precisions[0],
        BATCHES,
        (SCHEDULE, *RANDOM_SCHEDULES),
        variants=("guided", "unguided"),
        targets=_compiled_for(setting),
    )
    weights = random_weights(options.work / "random", options.model)
    bundle = build_bundle(weights, folder / "random", wanted)
    random = Setting(setting.target, bundle, setting.device)
    parity(random, findings, f"{options.model} {options.precisions[0]}", RANDOM_SCHEDULES)
    fresh_results(random, findings)


def _digits_in(precision: str, setting: Setting, findings: Findings, folder: Path) -> None:
    """Check the digits' parity in another precision."""
    wanted = Wanted(
        setting.target.backend,
        precision,
        BATCHES,
        (SCHEDULE, *DIGITS_SCHEDULES),
        targets=_compiled_for(setting),
    )
    bundle = build_bundle(digits_weights(), folder / f"digits-{precision}", wanted, setting.path)
    parity(Setting(setting.target, bundle, setting.device), findings, f"digits {precision}", DIGITS_SCHEDULES)


def _compiled_for(setting: Setting) -> tuple[str, ...]:
    return setting.bundle.manifest.engines[0].targets
