"""`train`: a refiner from a latent cache, taken by `build`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowturbo_trt.bundle.store import Bundle, sha256
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.models.sit import SiT, SiTConfig
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.tests.bundles import TINY_CONFIG, latents
from flowturbo_trt.tests.training.runs import h1r1, newest

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., Result]
Document = Callable[..., dict[str, Any]]


@pytest.fixture
def words(tiny_options: BuildOptions, here: Path) -> list[str]:
    """Three steps of training on a cache of ten latents."""
    random = torch.Generator().manual_seed(1)
    mean = torch.randn(10, 2, 4, 4, generator=random)
    cache = {"mean": mean, "std": 0.1 * torch.ones_like(mean), "label": torch.arange(10) % 3}
    save_file(cache, here / "latents.safetensors")
    given = [f"--predictor={tiny_options.predictor}", f"--config={tiny_options.config}"]
    return ["train", *given, "--data=latents.safetensors", "--out=run", "--batch=4", "--steps=3"]


def test_document(document: Document, words: list[str]) -> None:
    found = document(*words)
    assert found["steps"] == 3
    assert found["weights"] == str(Path("run") / "refiner.safetensors")
    assert 0 < found["loss"] < 100
    assert Path(found["weights"]).is_file()


def test_what_people_are_told(run: Run, words: list[str]) -> None:
    result = run(*words)
    assert result.stdout.startswith("3 steps, last loss ")
    assert result.stderr.splitlines()[-1].startswith("[3/3] loss ")


def test_options_reach_the_training(run: Run, words: list[str]) -> None:
    run(*words, "--learning-rate=0.01")
    run(*words, "--learning-rate=0.02", "--out=second", "--quiet")
    name = "final_layer.linear.weight"
    first, second = (load_file(f"{folder}/refiner.safetensors")[name] for folder in ("run", "second"))
    assert not torch.equal(first, second)


def test_finished_run_has_nothing_to_do(run: Run, document: Document, words: list[str]) -> None:
    run(*words)
    before = sha256(Path("run/refiner.safetensors"))
    assert document(*words)["loss"] is None
    assert run(*words).stdout.startswith("3 steps, done before: ")
    assert sha256(Path("run/refiner.safetensors")) == before


def test_continued_with_other_options(run: Run, fails: Callable[..., str], words: list[str]) -> None:
    run(*words)
    before = sha256(Path("run/refiner.safetensors"))
    assert "seed=0, now 1" in fails(*words, "--seed=1")
    assert sha256(Path("run/refiner.safetensors")) == before


def test_build_takes_the_refiner(
    run: Run, words: list[str], tiny_options: BuildOptions, instant_export: list[str]
) -> None:
    run(*words)
    given = [f"--predictor={tiny_options.predictor}", f"--config={tiny_options.config}", "--decoder=none"]
    run("build", *given, "--refiner=run/refiner.safetensors", "--schedule=H1R1", "out")
    manifest = Bundle.open("out").manifest
    assert manifest.sources["refiner"]["sha256"] == sha256(Path("run/refiner.safetensors"))
    assert manifest.model.refiner_config is not None
    assert manifest.model.refiner_config["depth"] == 1
    conditioners = ["predictor_conditioner.onnx", "refiner_conditioner.onnx"]
    assert instant_export == ["predictor.guided.onnx", "refiner.guided.onnx", *conditioners]


def test_refiner_of_another_width_and_depth(
    run: Run, words: list[str], tiny_options: BuildOptions, here: Path
) -> None:
    """Through ONNX Runtime it gives what torch gives: its heads are not the predictor's."""
    run(*words, "--width=24", "--heads=6", "--depth=2", "--learning-rate=0.05", "--ema=0", "--no-tensorboard")
    given = [f"--predictor={tiny_options.predictor}", f"--config={tiny_options.config}", "--decoder=none"]
    run("build", *given, "--refiner=run/refiner.safetensors", "--batch=2", "--conditioning=fused", "out")
    pipeline = Pipeline.load("out", threads=1)
    found = latents(pipeline, [0, 1], "H1R1", seeds=[0, 1], guidance=1.5)
    predictor = SiT(SiTConfig(**TINY_CONFIG))
    refiner = SiT(SiTConfig(**TINY_CONFIG | {"hidden_size": 24, "num_heads": 6, "depth": 2}), refines=True)
    predictor.load_state_dict(load_file(tiny_options.predictor))
    refiner.load_state_dict(load_file("run/refiner.safetensors"))
    expected = h1r1(predictor, refiner, 2, guidance=1.5).numpy()
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)
    assert refiner.final_layer.linear.weight.abs().max() > 0.05


def test_options_of_a_configuration_file(document: Document, words: list[str], here: Path) -> None:
    (here / "options.toml").write_text("steps = 2\nlearning-rate = 1e-3\nema = 0\n")
    found = document(*[word for word in words if "steps" not in word], "--config-file", "options.toml")
    assert found["steps"] == 2


def trained_with(folder: Path) -> dict[str, Any]:
    """Return the options in the newest checkpoint of a run."""
    with safe_open(newest(folder), "pt") as file:
        config: dict[str, Any] = json.loads(file.metadata()["run"])["config"]
    return config


def test_preset(run: Run, words: list[str], here: Path) -> None:
    """Options win, on the command line and in a file: even those that say the default."""
    (here / "options.toml").write_text("clip = 0.5\npreset = 'text-to-image'\n")
    run(*words, "--config-file=options.toml", "--learning-rate=5e-5", "--no-tensorboard")
    found = trained_with(here / "run")
    assert (found["batch"], found["steps"]) == (4, 3)
    assert (found["clip"], found["learning_rate"], found["warmup"]) == (0.5, 5e-5, 100)
    run(*words, "--out=second", "--no-tensorboard")
    found = trained_with(here / "second")
    assert (found["clip"], found["learning_rate"], found["warmup"]) == (0, 5e-5, 0)


@pytest.mark.parametrize(("channels", "expected"), [("all", 2), (1, 1)])
def test_guidance_is_on_the_models_channels(
    run: Run, words: list[str], here: Path, channels: str | int, expected: int
) -> None:
    """As its configuration says."""
    (here / "config.json").write_text(json.dumps(TINY_CONFIG | {"guided_channels": channels}))
    words = [word for word in words if not word.startswith("--config")]
    run(*words, "--config=config.json", "--guidance-high=3", "--init=predictor", "--accumulate=2")
    found = trained_with(here / "run")
    assert (found["guided_channels"], found["guidance_low"], found["guidance_high"]) == (expected, 1, 3)


def test_on_policy(run: Run, fails: Callable[..., str], words: list[str], here: Path) -> None:
    """Without data, over guidance scales around the model's own, which is 2."""
    given = [word for word in words if not word.startswith("--data")]
    run(*given, "--on-policy=H1R1 H1P1R2:single")
    found = trained_with(here / "run")
    assert (found["on_policy"], found["guidance_low"], found["guidance_high"]) == ("H1R1 H1P1R2:single", 1, 3)
    run(*given, "--on-policy=H1R1", "--guidance-low=0.5", "--out=second")
    found = trained_with(here / "second")
    assert (found["guidance_low"], found["guidance_high"]) == (0.5, 1)
    told = fails(*words, "--on-policy=H1R1", "--flip", "--max-delta=0.2")
    assert "--data, --flip, --max-delta: of no use with --on-policy" in told
    assert "H4, which calls no refiner; add R" in fails(*given, "--on-policy=H1R1 H4")
    assert "is no schedule" in fails(*given, "--on-policy=H1R1,H2R2")
    assert "give --data to learn from, or --on-policy" in fails(*given)


def test_refiner_trained_further(run: Run, fails: Callable[..., str], words: list[str], here: Path) -> None:
    """A step of no rate leaves it as it was; another one to start from is another run."""
    run(*words, "--depth=2", "--ema=0", "--learning-rate=0.01")
    first = load_file("run/refiner.safetensors")
    further = [*words, "--init=run/refiner.safetensors", "--out=second", "--learning-rate=1e-30", "--ema=0"]
    run(*further)
    second = load_file("second/refiner.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert trained_with(here / "second")["refiner"] == sha256(here / "run" / "refiner.safetensors")
    assert "--depth: a refiner that is trained further has its shape" in fails(*further, "--depth=3")
    assert "nowhere.pt: no such file" in fails(*words, "--init=nowhere.pt", "--out=third")
    run(*words, "--out=run2", "--seed=1")
    assert "was trained with refiner=" in fails(*further, "--init=run2/refiner.safetensors")


def test_previews_and_event_files(
    run: Run, fails: Callable[..., str], words: list[str], tiny_options: BuildOptions, here: Path
) -> None:
    previews = ["--preview-every=2", "--preview-schedule=H1R1"]
    assert "--preview-every needs --decoder" in fails(*words, *previews)
    assert "starts with R" in fails(
        *words, "--preview-every=1", "--preview-schedule=R1", f"--decoder={tiny_options.decoder}"
    )
    run(*words, *previews, f"--decoder={tiny_options.decoder}")
    files = sorted(
        str(path.relative_to(here / "run")) for path in (here / "run").rglob("*") if path.is_file()
    )
    assert "previews/step-00000002.png" in files
    assert Image.open(here / "run" / "previews" / "step-00000002.png").size == (32, 32)
    assert any(name.startswith("tensorboard/events") for name in files)


def test_without_event_files(run: Run, words: list[str], here: Path) -> None:
    run(*words, "--no-tensorboard")
    assert not (here / "run" / "tensorboard").exists()


def test_two_processes_of_a_launcher(words: list[str], here: Path) -> None:
    """The first one alone speaks, and the metrics are of the whole batch."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = [str(Path(__file__).parents[2] / "flowturbo_trt.py"), *words, "--device=cpu", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *launcher, *program, "--no-tensorboard"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["steps"], found["processes"]) == (3, 2)
    assert "loss" in result.stderr
    assert [json.loads(line)["step"] for line in (here / "run" / "metrics.jsonl").open()] == [1, 2, 3]
