"""`flowturbo_trt doctor`."""

import itertools
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click

from flowturbo_trt.commands.common import CHECK_FAILED, Console, make_command
from flowturbo_trt.evaluation.doctor.diagnosis import Diagnosis, diagnose
from flowturbo_trt.evaluation.doctor.facts import Facts, gather
from flowturbo_trt.evaluation.doctor.findings import Asked, Finding
from flowturbo_trt.models.published import NAMED_MODELS

SIGNS = {"ok": "✓", "problem": "✗", "not needed": "–"}


@make_command(name="doctor", short_help="Say what this machine can build and run, and why not.")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--model",
    type=click.Choice(list(NAMED_MODELS)),
    help="Tell whether this published model can be built here.",
)
@click.option(
    "--batch", "batches", type=click.IntRange(min=1), multiple=True, help="Batch size to run --model at."
)
def command(console: Console, bundle: Path | None, model: str | None, batches: tuple[int, ...]) -> None:
    """Say what this machine can build and run, and why not; and whether BUNDLE runs here.

    \b
    flowturbo_trt doctor
    flowturbo_trt doctor bundle
    flowturbo_trt doctor --model SiT-XL/2 --batch 8

    ✓ works, ✗ does not and → says what helps, – is not needed. The exit status is 3 when nothing runs
    here, BUNDLE does not, or the model cannot be built.
    """
    if batches and model is None:
        raise click.UsageError("--batch is for --model; give the model too")
    console.info("trying the libraries …")
    facts = gather()
    diagnosis = diagnose(facts)
    answers = asked(facts, diagnosis, bundle, model, batches)
    findings = (*diagnosis.findings, *(finding for answer in answers for finding in answer.findings))
    possible = bool(diagnosis.runs) and all(answer.possible for answer in answers)
    document = {
        "command": "doctor",
        "possible": possible,
        "builds": diagnosis.builds,
        "runs": diagnosis.runs,
        "asked": {answer.what: answer.possible for answer in answers},
        "findings": [asdict(finding) for finding in findings],
    }
    console.result(document, f"{table(findings)}\n\n{summary(diagnosis, answers)}")
    if not possible:
        sys.exit(CHECK_FAILED)


def asked(
    facts: Facts, diagnosis: Diagnosis, bundle: Path | None, model: str | None, batches: tuple[int, ...]
) -> list[Asked]:
    """Answer what was asked for beside the machine itself."""
    if not facts.registries.works:
        # Loading what reads bundles would end like the child that has tried NumPy.
        given = [f"bundle {bundle}"] * (bundle is not None) + [f"model {model}"] * (model is not None)
        remedy = "mend numpy, see above"
        unread = [Finding(what, "all", "problem", "not looked at", remedy) for what in given]
        return [Asked(finding.group, (finding,), False) for finding in unread]
    from flowturbo_trt.evaluation.doctor.asked import ask_bundle
    from flowturbo_trt.evaluation.doctor.asked_model import ask_model

    answers = []
    if bundle is not None:
        answers.append(ask_bundle(bundle, facts))
    if model is not None:
        answers.append(ask_model(model, batches, facts, diagnosis))
    return answers


def table(findings: Iterable[Finding]) -> str:
    """Lay findings out by group, each remedy on a line of its own."""
    lines = []
    for group, found in itertools.groupby(findings, key=_group):
        members = list(found)
        width = max(len(finding.name) for finding in members)
        lines += ["", group]
        for finding in members:
            lines.append(f"  {SIGNS[finding.status]} {finding.name:{width}}  {finding.detail}")
            if finding.remedy:
                lines.append(f"    {'':{width}}  → {finding.remedy}")
    return "\n".join(lines[1:])


def _group(finding: Finding) -> str:
    return finding.group


def summary(diagnosis: Diagnosis, answers: Iterable[Asked]) -> str:
    """Say in a few lines what is possible."""
    runs = ", ".join(f"{backend} on {' and '.join(devices)}" for backend, devices in diagnosis.runs.items())
    lines = [f"can build for: {', '.join(diagnosis.builds) or 'nothing'}", f"can run: {runs or 'nothing'}"]
    lines += [
        f"{answer.what}: {'possible' if answer.possible else 'not possible'} here" for answer in answers
    ]
    return "\n".join(lines)
