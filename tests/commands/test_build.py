"""`build` and `inspect`: options, what they say of a bundle, and where they say it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from flowturbo_trt.bundle.manifest_json import to_json
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.sampling.program import VARIANTS
from flowturbo_trt.sampling.program_json import to_json as to_json_program
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.tests.bundles import changed_copy

Run = Callable[..., Result]
Document = Callable[..., dict[str, Any]]


@pytest.fixture
def words(tiny_options: BuildOptions, instant_export: list[str], here: Path) -> list[str]:
    """The command line of the tiny model; graphs are taken from its bundle."""
    return [
        "build",
        f"--predictor={tiny_options.predictor}",
        f"--refiner={tiny_options.refiner}",
        f"--decoder={tiny_options.decoder}",
        f"--config={tiny_options.config}",
    ]


def test_options_reach_the_bundle(run: Run, words: list[str]) -> None:
    more = ["--batch=4", "--batch=1", "--precision=onnxruntime=fp16", "--schedule=H2", "--schedule=H1R1"]
    run(*words, *more, "out")
    manifest = Bundle.open("out").manifest
    assert manifest.batches == (1, 4)
    assert list(manifest.programs) == ["H2", "H1R1"]
    assert {engine.precision for engine in manifest.engines} == {"fp16"}
    assert set(manifest.sources) == {"predictor", "refiner", "decoder"}


def test_defaults(run: Run, words: list[str]) -> None:
    """Those of BuildOptions, and no others."""
    run(*words, "out")
    manifest = Bundle.open("out").manifest
    assert manifest.batches == BuildOptions.batches
    assert {engine.backend for engine in manifest.engines} == set(BuildOptions.backends)
    assert {engine.variant for engine in manifest.engines} == {*BuildOptions.variants, None}
    assert manifest.options["conditioning"] == BuildOptions.conditioning


@pytest.mark.parametrize("conditioning", ["hoisted", "fused"])
def test_conditioning(run: Run, words: list[str], conditioning: str) -> None:
    told = run(*words, "--conditioning", conditioning, "out").stdout
    manifest = Bundle.open("out").manifest
    assert manifest.options["conditioning"] == conditioning
    assert manifest.engine("predictor", "guided", "onnxruntime").is_hoisted == (conditioning == "hoisted")
    assert ("predictor_conditioner" in told) == (conditioning == "hoisted")


def test_unknown_conditioning(run: Run, words: list[str]) -> None:
    text = " ".join(run(*words, "--conditioning", "both", "out", status=2).stderr.split())
    assert "'both' is not one of 'hoisted', 'fused'" in text


def test_interval_of_guidance_needs_both_variants(fails: Callable[..., str], words: list[str]) -> None:
    complaint = fails(*words, "--schedule", "H2:guided=0..0.5", "out")
    assert complaint == (
        "schedule H2:guided=0..0.5 is guided some of the time; add --variant guided --variant unguided"
    )


def test_without_decoder_and_refiner(run: Run, words: list[str]) -> None:
    predictor, _, _, config = words[1:]
    run("build", predictor, config, "--decoder", "none", "out")
    manifest = Bundle.open("out").manifest
    assert manifest.model.image is None
    assert manifest.model.refiner_config is None
    assert manifest.default_schedule == "H8"


def test_options_of_a_configuration_file(run: Run, words: list[str], here: Path) -> None:
    """Single values stand for lists of one; the command line replaces a list as a whole."""
    names = dict(word.removeprefix("--").split("=", 1) for word in words[1:])
    text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in names.items())
    (here / "options.toml").write_text(f'{text}\nbatch = 2\nschedule = ["H2", "H3"]\n')
    run("build", "--config-file", "options.toml", "out")
    manifest = Bundle.open("out").manifest
    assert manifest.batches == (2,)
    assert list(manifest.programs) == ["H2", "H3"]
    assert manifest.options["batches"] == [2]
    run("build", "--config-file", "options.toml", "--batch", 5, "--batch", 1, "out")
    assert Bundle.open("out").manifest.batches == (1, 5)


def test_document(document: Document, words: list[str]) -> None:
    found = document(*words, "out")
    assert found["bundle"] == "out"
    assert found["bytes"] == sum(path.stat().st_size for path in Path("out").rglob("*.onnx")) > 0


def test_what_people_are_told(run: Run, words: list[str]) -> None:
    result = run(*words, "out")
    assert result.stderr.splitlines()[0] == "[0/1] reading the checkpoints"
    assert result.stderr.splitlines()[-1] == "[100/100] writing the manifest"
    assert "bundle     out" in result.stdout
    assert run(*words, "out", "-q").stderr == ""


def test_rebuilding_replaces(run: Run, words: list[str], here: Path) -> None:
    run(*words, "--schedule", "H2", "out")
    told = run(*words, "--schedule", "H3", "out").stderr
    assert f"onnx decoder: reused, finished in {here / 'out'}" in told
    assert list(Bundle.open("out").manifest.programs) == ["H3"]
    assert {path.name for path in here.iterdir()} == {"out", "out.build.log"}


def test_interrupt_leaves_the_older_bundle(
    run: Run, words: list[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*words, "--schedule", "H2", "out")

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flowturbo_trt.export.build.describe", interrupt)
    result = run(*words, "--schedule", "H3", "out", status=130)
    assert result.stderr.splitlines()[-1] == "interrupted"
    assert list(Bundle.open("out").manifest.programs) == ["H2"]
    assert {path.name for path in here.iterdir()} == {"out", "out.build.log", ".out.build"}


def test_options_are_checked_before_anything_is_fetched(
    run: Run, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gigabytes are not fetched for a build that cannot be."""
    monkeypatch.setattr("urllib.request.urlopen", lambda *arguments, **options: pytest.fail("fetched"))
    words[1] = "--predictor=SiT-XL/2-256"
    assert run(*words, "--download", "--batch=0", "out", status=1).stderr.startswith("error: batch")


def test_inspect(run: Run, golden_bundle: Path) -> None:
    text = run("inspect", golden_bundle).stdout
    manifest = Bundle.open(golden_bundle).manifest
    for line in (
        "model      sit depth 3, width 96, patch 2, 10 classes; refiner depth 1",
        "shapes     latents 4×8×8, images 16×16",
        "guidance   3 of 4 channels, default scale 1.5",
        "schedule   H1P5R3 (default): 7 predictor, 6 refiner evaluations",
        "schedule   H2P3R0: 7 predictor evaluations",
        f"all {len(manifest.files)} files are as they were built",
    ):
        assert line in text.splitlines()
    assert f"predictor predictor.pt (ema, {manifest.sources['predictor']['sha256'][:12]})" in text
    for engine in manifest.engines:
        (row,) = [line for line in text.splitlines() if line.endswith(engine.file)]
        assert row.split()[0] == engine.network
        assert {engine.backend, engine.precision} <= set(row.split())
        # A conditioner knows no batches: how many rows a call of it has is said as such.
        assert ("64 rows" in row) == engine.is_conditioner
        assert ("1,2" in row.split()) == (not engine.is_conditioner)


def test_inspect_tells_the_variants_of_a_mixed_schedule_apart(
    run: Run, golden_bundle: Path, tmp_path: Path
) -> None:
    """Half the work of some evaluations is what such a schedule is for."""
    text = "H1P1R2:guided=0.1..0.6"
    programs = {variant: to_json_program(trace(Schedule.parse(text), variant)) for variant in VARIANTS}
    copy = changed_copy(golden_bundle, tmp_path, lambda data: data["programs"].update({text: programs}))
    counts = trace(Schedule.parse(text), "guided").evaluations()
    assert counts["predictor", "guided"] * counts["predictor", "unguided"] > 0
    lines = run("inspect", copy).stdout.splitlines()
    (line,) = (line for line in lines if line.startswith(f"schedule   {text}"))
    assert line == (
        f"schedule   {text}: {counts['predictor', 'unguided']} predictor unguided, "
        f"{counts['predictor', 'guided']} predictor guided, {counts['refiner', 'guided']} refiner evaluations"
    )


def test_inspect_document(document: Document, golden_bundle: Path) -> None:
    found = document("inspect", golden_bundle)
    manifest = Bundle.open(golden_bundle).manifest
    assert found["bundle"] == str(golden_bundle)
    assert found["manifest"] == json.loads(to_json(manifest))


def test_inspect_reads_every_file(fails: Callable[..., str], tiny_copy: Path) -> None:
    """Also what no default schedule needs."""
    file = tiny_copy / "onnx" / "decoder.onnx"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    line = fails("inspect", tiny_copy)
    assert line.startswith(f"{file}: ")
    assert "sha256 differs" in line


def test_traceback_on_request(run: Run, here: Path) -> None:
    result = run("inspect", "nowhere", "-v", status=1)
    assert type(result.exception).__name__ == "BundleError"


def test_recipe(run: Run, words: list[str], tiny_bundle: Path, here: Path) -> None:
    """One that did not pass its gate, and both of what `build` and `inspect` say of it."""
    from flowturbo_trt.tests.export.recipes import recipe_for, saved

    saved(recipe_for(tiny_bundle), here / "r.json", passed=False)
    options = ["--precision=onnxruntime=int8", "--recipe=r.json", "out"]
    assert run(*words, *options, status=1).stderr.startswith("error: r.json: did not pass its gate")
    assert not (here / "out").exists()
    result = run(*words, *options, "--force")
    assert "r.json: did not pass its gate, as `calibrate precision` told; it is built" in result.stderr
    for text in (result.stdout, run("inspect", "out").stdout):
        (line,) = (line for line in text.splitlines() if line.startswith("recipe"))
        assert line.startswith("recipe     int8 r.json (")
        verdict = "DID NOT PASS its gate, built with --force; speed measured on onnxruntime"
        assert line.endswith(f"): {verdict}")
    assert Bundle.open("out").manifest.engine("predictor", "guided", "onnxruntime").precision == "int8"
