"""`train`: a refiner from a latent cache, taken by `build`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

from flowturbo_trt.bundle.store import Bundle, sha256
from flowturbo_trt.export.options import BuildOptions

Run = Callable[..., Result]
Document = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring on networks of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def test_options_of_a_configuration_file(document: Document, words: list[str], here: Path) -> None:
    (here / "options.toml").write_text("steps = 2\nlearning-rate = 1e-3\nema = 0\n")
    found = document(*[word for word in words if "steps" not in word], "--config-file", "options.toml")
    assert found["steps"] == 2
