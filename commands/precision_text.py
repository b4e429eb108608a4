"""What `calibrate precision` found, laid out for people."""

from collections.abc import Iterator
from pathlib import Path

from flowturbo_trt.calibration.precision.mixed_precision import excess, nearest_groups
from flowturbo_trt.calibration.precision.quantize import Calibrated


def title(found: Calibrated) -> str:
    """Say what a heat map is of."""
    return f"{found.recipe.kind}: error with one group of layers alone in 8 bits"


def lines(found: Calibrated) -> Iterator[str]:
    """Lay out what was found for people."""
    gate, choice = found.gate, found.choice
    count = sum(map(len, found.recipe.layers.values()))
    yield f"{found.recipe.kind}, {count} layers; ranges by {found.arrangement}"
    if choice.put_back:
        yield f"put back to floating point: {', '.join(group.name for group in choice.put_back)}"
    if not choice.met:
        yield missed(found)
    yield "velocity error by call, on the recorded inputs that ranges were chosen on, mean and worst:"
    for call in gate.velocity:
        where = f"{call['schedule']} {call['network']} t = {call['t']:.3f}"
        yield f"  {where}  {call['mean']:.4f}  {call['worst']:.4f}"
    for drift in gate.drifts:
        text = f"{drift.schedule}: latents move by {drift.mean:.4f}, at worst {drift.worst:.4f}"
        if drift.psnr_mean is not None:
            text += f"; images {drift.psnr_mean:.1f} dB, at worst {drift.psnr_worst:.1f} dB"
        yield text
    for agreement in gate.agreements:
        text = f"{agreement.schedule}: Fréchet distance between both {agreement.frechet_distance:.4g}"
        if agreement.float32 is not None:
            text += f"; recognised {agreement.quantized:.1%}, in float32 {agreement.float32:.1%}"
        yield text
    for speed in gate.speeds:
        times = f"{speed.quantized:.1f} ms, in float32 {speed.float32:.1f} ms"
        yield f"{speed.schedule} at batch {speed.batch}: {times}"
    yield f"engines: {gate.quantized_bytes / 1e6:.1f} MB, in float32 {gate.float32_bytes / 1e6:.1f} MB"
    yield from gate.notes
    yield from map(str, gate.checks)


def missed(found: Calibrated) -> str:
    """Name the groups that come nearest to a budget, where nothing is as far within it as was aimed for."""
    near = nearest_groups(found.sensitivity, found.budgets)
    told = ", ".join(
        f"{group.name} ({', '.join(f'{s} {e:.4g}' for s, e in found.sensitivity.of(group).items())})"
        for group in near
    )
    if excess(found.sensitivity.of(near[0]), found.budgets) > 1:
        return f"nothing meets the budget; nearest, alone in 8 bits: {told}"
    aims = ", ".join(f"{schedule} {aim:.4g}" for schedule, aim in found.aims.items())
    return f"nothing is as far within the budget as other noise asks for ({aims}); alone in 8 bits: {told}"


def conclusion(found: Calibrated, out: Path) -> str:
    if found.gate.passed:
        return f"passed: {out}" if found.gate.timed else f"passed by its errors, speed not measured: {out}"
    return f"did not pass: {out} is refused by `build` without --force"
