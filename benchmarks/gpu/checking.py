"""Everything `make gpu-check` checks of one target."""

from collections.abc import Callable, Iterator
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
from flowturbo_trt.benchmarks.gpu.findings import Findings, reason_of
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


class NoImageError(FlowTurboError):
    """A backend that runs, and gives nothing."""


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
) -> Iterator[dict[str, Any]]:
    """Check one target; yield what is known of it so far, for JSON, after each check."""
    if (missing := target.missing()) is not None:
        say(f"– {name}: not installed: {missing}")
        yield {"target": name, "status": "not installed", "why": missing}
        return
    tries = list(first_runs(target, options, options.work / name))
    found: dict[str, Any] = {"target": name, "plans": [described for described, _ in tries]}
    described, setting = tries[-1]
    if setting is None:
        why = str(tries[0][0]["why"])
        say(f"✗ {name}: does not run: {why}")
        yield {**found, "status": "does not run", "why": why}
        return
    say(f"✓ {name}: loads and runs {options.precisions[0]} digits ({described['compiled_for']})")
    findings = Findings(lambda line: say(f"  {line}"))
    planned = checks(setting, options, findings, options.work / name)
    for done, (what, check) in enumerate(planned, start=1):
        findings.run(what, check)
        progress = {"checks_left": len(planned) - done, "failed": findings.failed}
        yield {**found, "status": "ran", **progress, "checks": findings.as_data()}


def first_runs(
    target: Target, options: CheckOptions, folder: Path
) -> Iterator[tuple[dict[str, Any], Setting | None]]:
    """Yield what digits were compiled for and whether they ran, with the setting if so, until some do."""
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
                raise NoImageError("its latents are not finite, or its images are all of one level")
        except Exception as error:  # whatever goes wrong on an unknown machine is a finding
            yield {"compiled_for": text, "runs": False, "why": reason_of(error)}, None
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
        ("fresh results", partial(fresh_results, setting, findings, "digits")),
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
    fresh_results(random, findings, options.model)


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
