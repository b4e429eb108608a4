"""What doctor says of OpenVINO: installed or not, and the precisions that the processor has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowturbo_trt.evaluation.doctor.asked import ask_bundle
from flowturbo_trt.evaluation.doctor.diagnosis import diagnose
from flowturbo_trt.evaluation.doctor.facts import Facts
from flowturbo_trt.evaluation.doctor.probes import Answer, ask
from flowturbo_trt.tests.bundles import changed_copy
from flowturbo_trt.tests.evaluation.doctor.machines import FACTS, absent, found

BROKEN = Answer(error="ImportError: libtbb.so.12: cannot open shared object file")


def with_openvino(*precisions: str) -> Facts:
    """Return the facts of the usual machine, with an OpenVINO that has some precisions there."""
    answer = Answer(version="2026.4.1", details={"devices": {"cpu": list(precisions)}})
    return answering(Answer(version="openvino 2026.4.1"), answer)


def answering(compiler: Answer, backend: Answer) -> Facts:
    return replace(
        FACTS,
        compilers={**FACTS.compilers, "openvino": compiler},
        backends={**FACTS.backends, "openvino": backend},
        registries=replace(
            FACTS.registries,
            details={
                **FACTS.registries.details,
                "compilers": [*FACTS.registries.details["compilers"], "openvino"],
                "backends": ["onnxruntime", "openvino"],
            },
        ),
    )


def bundle_for_openvino(bundle: Path, folder: Path) -> Path:
    def change(manifest: dict[str, Any]) -> None:
        for engine in manifest["engines"]:
            engine.update(backend="openvino", precision="bf16")

    return changed_copy(bundle, folder, change)


def test_processor_with_bf16(tiny_bundle: Path, tmp_path: Path) -> None:
    facts = with_openvino("fp32", "bf16")
    diagnosis = diagnose(facts)
    assert (diagnosis.builds, diagnosis.runs["openvino"]) == (("onnxruntime", "openvino"), ("cpu",))
    assert found(diagnosis, "on openvino").detail == "2026.4.1; cpu: fp32, bf16"
    assert found(diagnosis, "for openvino").detail == "openvino 2026.4.1, builds on any machine"
    assert ask_bundle(bundle_for_openvino(tiny_bundle, tmp_path), facts).possible


def test_processor_without_bf16(tiny_bundle: Path, tmp_path: Path) -> None:
    facts = with_openvino("fp32")
    assert found(facts, "on openvino").detail == "2026.4.1; cpu: fp32"
    asked = ask_bundle(bundle_for_openvino(tiny_bundle, tmp_path), facts)
    assert not asked.possible
    (finding,) = (finding for finding in asked.findings if finding.name == "openvino bf16")
    assert "openvino has no bf16 arithmetic on cpu" in finding.detail
    assert finding.remedy == "rebuild it with --precision openvino=fp32"


def test_not_installed() -> None:
    """It is an extra: no problem, and the extra is named."""
    diagnosis = diagnose(answering(absent("openvino"), absent("openvino")))
    for name in ("for openvino", "on openvino"):
        finding = found(diagnosis, name)
        assert (finding.status, finding.detail) == ("not needed", "not installed")
        assert finding.remedy.endswith("pip install 'flowturbo_trt[openvino]'")
    assert "openvino" not in (*diagnosis.builds, *diagnosis.runs)


def test_installed_and_broken() -> None:
    diagnosis = diagnose(answering(BROKEN, BROKEN))
    for name, remedy in (
        ("for openvino", "pip install --force-reinstall openvino"),
        ("on openvino", "mend openvino, see above"),
    ):
        finding = found(diagnosis, name)
        assert (finding.status, finding.remedy) == ("problem", remedy)
        assert "libtbb" in finding.detail


def test_this_machine() -> None:
    pytest.importorskip("openvino")
    answer = ask("openvino")
    assert answer.works, answer.error
    assert answer.details["devices"]["cpu"][0] == "fp32"
    assert ask("compiler", "openvino").version == f"openvino {answer.version}"


@pytest.mark.parametrize("words", [("openvino",), ("compiler", "openvino")])
def test_missing_module_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """Also where the compiler says it in words of its own."""
    (tmp_path / "openvino.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'openvino'\", name='openvino')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert ask(*words).missing == "openvino"
