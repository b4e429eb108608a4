"""Engines and trajectories against the float32 graphs on the CPU."""

from flowturbo_trt.benchmarks.gpu.asking import Setting
from flowturbo_trt.benchmarks.gpu.findings import Finding, Findings, Status
from flowturbo_trt.evaluation.parity.options import ParityOptions
from flowturbo_trt.evaluation.parity.results import EngineParity, TrajectoryParity
from flowturbo_trt.evaluation.parity.verification import verify


def parity(setting: Setting, findings: Findings, what: str, schedules: tuple[str, ...]) -> None:
    """Verify each network call by call, and each trajectory at every batch size."""
    target = setting.target
    report = verify(
        setting.bundle,
        ParityOptions(
            backends=(target.backend,),
            schedules=schedules,
            device=setting.device,
            provider=target.provider,
        ),
    )
    for engine in report.engines:
        for finding in _of_engine(engine, what):
            findings.add(finding)
    for trajectory in report.trajectories:
        for finding in _of_trajectory(trajectory, what):
            findings.add(finding)


def _of_engine(found: EngineParity, what: str) -> list[Finding]:
    name = f"{what}: {found.engine.name}"
    call, image = found.worst_call, found.worst_image
    why = found.failure or found.file_fault or found.not_run
    if call is not None:
        allowed = call.amplification * found.limits.call_relative_l2
        limit = f"relative L2 at most {allowed:.2g}"
        return [Finding(name, found.status, call.relative_l2, limit, why)]
    if image is not None:
        return [Finding(name, found.status, image.psnr, f"dB at least {found.limits.decoder_psnr:g}", why)]
    return [Finding(name, found.status, why=why)]


def _of_trajectory(found: TrajectoryParity, what: str) -> list[Finding]:
    name = f"{what}: {found.schedule} {found.variant}, batch {found.batch}"
    if found.failure is not None or found.not_run is not None or found.limits is None:
        return [Finding(name, found.status, why=found.failure or found.not_run)]
    within = found.relative_l2 <= found.allowed
    limit = f"relative L2 at most {found.allowed:.2g}"
    results = [Finding(name, _status(within), found.relative_l2, limit)]
    if found.image is not None:
        least = found.limits.image_psnr
        results.append(
            Finding(
                f"{name}, images",
                _status(found.image.psnr >= least),
                found.image.psnr,
                f"dB at least {least:g}",
            )
        )
    return results


def _status(holds: bool) -> Status:
    return "passed" if holds else "failed"
