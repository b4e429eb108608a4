"""`build` with recipes: which engines are in 8 bits, what the manifest says, and what is refused early."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle, sha256
from flowturbo_trt.export.build import build
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.export.quantization import QuantizedLinear, Recipe, RecipeError, save_recipe
from flowturbo_trt.tests.export.recipes import recipe_for, saved

INT8 = {"precisions": ("int8",)}


@pytest.fixture(scope="module")
def recipe(tiny_bundle: Path) -> Recipe:
    return recipe_for(tiny_bundle)


@pytest.fixture
def made(tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str]) -> Callable[..., Manifest]:
    """Give a function that builds the tiny model with changed options and returns the manifest."""
    return lambda **changes: build(replace(tiny_options, **changes), tmp_path / "bundle").manifest


@pytest.fixture
def refused(tiny_options: BuildOptions, tmp_path: Path, instant_export: list[str]) -> Callable[..., str]:
    """Give a function that returns what a build is refused for, before anything is exported."""

    def complaint(*recipes: Path, **changes: Any) -> str:
        options = replace(tiny_options, **INT8 | changes, recipes=recipes)
        with pytest.raises(RecipeError) as caught:
            build(options, tmp_path / "bundle")
        assert instant_export == []
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return complaint


def types_of(file: Path) -> set[int]:
    return {tensor.data_type for tensor in onnx.load(file).graph.initializer}


@pytest.mark.parametrize("networks", [("predictor guided",), ("predictor guided", "refiner guided")])
def test_what_is_named_is_in_8_bits(
    made: Callable[..., Manifest], tiny_bundle: Path, tmp_path: Path, networks: tuple[str, ...]
) -> None:
    """Conditioners, decoder and other networks keep the default precision: they are the float32 graphs."""
    recipe = saved(recipe_for(tiny_bundle, networks=networks), tmp_path / "r.json")
    manifest = made(**INT8, recipes=(recipe,))
    graphs = {graph.name: graph.file for graph in manifest.graphs}
    for engine in manifest.engines:
        if engine.name in networks:
            assert engine.precision == "int8"
            assert engine.file == f"engines/onnxruntime/{engine.name.replace(' ', '.')}.int8.onnx"
            assert TensorProto.INT8 in types_of(tmp_path / "bundle" / engine.file)
        else:
            assert (engine.precision, engine.file) == ("fp32", graphs[engine.name])


def test_variant_that_is_not_named(made: Callable[..., Manifest], recipe: Recipe, tmp_path: Path) -> None:
    """Its activations were never seen."""
    layers = {"predictor unguided": recipe.layers["predictor guided"]}
    options = {**INT8, "recipes": (saved(recipe, tmp_path / "r.json", layers=layers),)}
    with pytest.raises(
        RecipeError, match=r"quantises predictor unguided, and the build has predictor guided"
    ):
        made(**options)


def test_precision_of_one_backend(made: Callable[..., Manifest], recipe: Recipe, tmp_path: Path) -> None:
    path = saved(recipe, tmp_path / "r.json")
    manifest = made(backends=("onnxruntime", "openvino"), precisions=("openvino=int8",), recipes=(path,))
    found = {(e.backend, e.precision) for e in manifest.engines if e.name == "predictor guided"}
    assert found == {("onnxruntime", "fp32"), ("openvino", "int8")}
    assert manifest.engine("predictor", "guided", "openvino").file.startswith("engines/openvino/")


def test_what_the_manifest_says(made: Callable[..., Manifest], recipe: Recipe, tmp_path: Path) -> None:
    path = saved(recipe, tmp_path / "r.json")
    options = made(**INT8, recipes=(path,)).options
    assert options["recipes"] == [
        {
            "file": "r.json",
            "sha256": sha256(path),
            "kind": "int8",
            "passed": True,
            "timed": ["onnxruntime"],
            "emulated": [],
            "schedules": ["H1P1R1", "H2"],
            "findings": {"budgets": {"H1P1R1": 0.01}},
        }
    ]
    assert options["force"] is False


def test_gate_that_did_not_hold(
    tiny_options: BuildOptions,
    refused: Callable[..., str],
    instant_export: list[str],
    recipe: Recipe,
    tmp_path: Path,
) -> None:
    path = saved(recipe, tmp_path / "r.json", passed=False)
    assert refused(path) == (
        f"{path}: did not pass its gate, as `calibrate precision` told; calibrate with another budget, or "
        "build it nevertheless with --force"
    )
    told: list[str] = []
    options = replace(tiny_options, **INT8, recipes=(path,), force=True)
    manifest = build(options, tmp_path / "bundle", say=told.append).manifest
    assert (
        told[0] == f"{path}: did not pass its gate, as `calibrate precision` told; it is built nevertheless"
    )
    assert manifest.options["force"] is True
    assert manifest.options["recipes"][0]["passed"] is False
    assert manifest.engine("predictor", "guided", "onnxruntime").precision == "int8"


def test_another_recipe_is_another_engine(
    tiny_options: BuildOptions, instant_export: list[str], recipe: Recipe, tmp_path: Path
) -> None:
    """And the same one under another name is not."""
    files = {}
    told: list[str] = []
    (first, layer), *rest = recipe.layers["predictor guided"].items()
    changed = {"predictor guided": {first: replace(layer, scale=2 * layer.scale), **dict(rest)}}
    for name, changes in (("a", {}), ("b", {}), ("c", {"layers": changed})):
        path = saved(recipe, tmp_path / f"{name}.json", **changes)
        told.clear()
        bundle = build(replace(tiny_options, **INT8, recipes=(path,)), tmp_path / "bundle", say=told.append)
        engine = bundle.manifest.engine("predictor", "guided", "onnxruntime")
        files[name] = bundle.manifest.files[engine.file].sha256
    assert files["a"] == files["b"] != files["c"]
    assert any(text.startswith("onnxruntime predictor guided: made anew, for recipe") for text in told)


def test_needs_a_recipe(refused: Callable[..., str]) -> None:
    assert refused() == (
        "precision int8 for onnxruntime needs a recipe of kind int8; make one with `flowturbo_trt calibrate "
        "precision --kind int8` and give it with --recipe"
    )


@pytest.mark.parametrize("precisions", [(), ("fp16",)])
def test_recipe_that_nothing_takes(
    refused: Callable[..., str], recipe: Recipe, tmp_path: Path, precisions: tuple[str, ...]
) -> None:
    complaint = refused(saved(recipe, tmp_path / "r.json"), precisions=precisions)
    assert "is of kind int8, and nothing is built in int8; add --precision BACKEND=int8" in complaint


def test_recipe_of_the_other_kind(refused: Callable[..., str], recipe: Recipe, tmp_path: Path) -> None:
    assert "is of kind fp8, and nothing is built in fp8" in refused(
        saved(recipe, tmp_path / "r.json", kind="fp8")
    )


def test_two_recipes_of_one_kind(refused: Callable[..., str], recipe: Recipe, tmp_path: Path) -> None:
    paths = [saved(recipe, tmp_path / name) for name in ("a.json", "b.json")]
    assert refused(*paths) == f"{paths[1]}: is of kind int8 like {paths[0]}; leave one of them out"


@pytest.mark.parametrize("sources", [{}, {"predictor": "0" * 64}])
def test_recipe_of_other_checkpoints(
    refused: Callable[..., str], recipe: Recipe, tmp_path: Path, sources: dict[str, str]
) -> None:
    complaint = refused(saved(recipe, tmp_path / "r.json", sources=sources))
    assert "was made for another predictor checkpoint than the one given; calibrate a bundle" in complaint


@pytest.mark.parametrize(
    "name", ["blocks.1.mlp.fc1", "fc1", "blocks.0.mlp", "t_embedder.mlp.0", "blocks.0.adaLN_modulation.1"]
)
@pytest.mark.parametrize("conditioning", ["hoisted", "fused"])
def test_recipe_of_other_layers(
    tiny_options: BuildOptions, tmp_path: Path, recipe: Recipe, name: str, conditioning: str
) -> None:
    """What depends on time and label alone is none that a recipe may name."""
    layers = {"predictor guided": {name: QuantizedLinear(0.1)}}
    path = saved(recipe, tmp_path / "r.json", layers=layers)
    options = replace(tiny_options, **INT8, recipes=(path,), conditioning=conditioning)
    with pytest.raises(RecipeError, match=rf"quantises predictor guided {name}, which is no linear layer"):
        build(options, tmp_path / "bundle")


def test_recipe_of_another_width(refused: Callable[..., str], recipe: Recipe, tmp_path: Path) -> None:
    layers = {"predictor guided": {"blocks.0.mlp.fc2": QuantizedLinear(0.1, (1.0,) * 16)}}
    complaint = refused(saved(recipe, tmp_path / "r.json", layers=layers))
    assert "smooths 16 channels of predictor guided blocks.0.mlp.fc2, which has 64" in complaint


@pytest.mark.parametrize("layers", [{}, {"predictor guided": {}}, {"decoder": {"a": QuantizedLinear(1.0)}}])
def test_recipe_of_nothing(
    refused: Callable[..., str], recipe: Recipe, tmp_path: Path, layers: dict[str, Any]
) -> None:
    assert "; calibrate a bundle of the same variants" in refused(
        saved(recipe, tmp_path / "r.json", layers=layers)
    )


def test_damaged_recipe(refused: Callable[..., str], recipe: Recipe, tmp_path: Path) -> None:
    save_recipe(recipe, tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    (tmp_path / "r.json").write_text(text[: len(text) // 2])
    assert refused(tmp_path / "r.json").startswith(f"{tmp_path / 'r.json'}: cannot be read")


def test_two_kinds_in_one_bundle(
    made: Callable[..., Manifest], tiny_bundle: Path, recipe: Recipe, tmp_path: Path
) -> None:
    recipes = (saved(recipe, tmp_path / "8.json"), saved(recipe_for(tiny_bundle, "fp8"), tmp_path / "f.json"))
    backends, precisions = ("onnxruntime", "openvino"), ("onnxruntime=fp8", "openvino=int8")
    manifest = made(backends=backends, precisions=precisions, recipes=recipes, force=True)
    kinds = [manifest.engine("predictor", "guided", backend).precision for backend in backends]
    assert kinds == ["fp8", "int8"]
    file = tmp_path / "bundle" / manifest.engine("predictor", "guided", "onnxruntime").file
    assert TensorProto.FLOAT8E4M3FN in types_of(file)
    Bundle.open(tmp_path / "bundle").check_all()


def test_speed_that_nobody_measured(
    tiny_options: BuildOptions, instant_export: list[str], recipe: Recipe, tmp_path: Path
) -> None:
    told: list[str] = []
    path = saved(recipe, tmp_path / "r.json")
    options = replace(tiny_options, **INT8, recipes=(path,), backends=("onnxruntime", "openvino"))
    build(options, tmp_path / "bundle", say=told.append)
    assert [text for text in told if "speed" in text] == [
        f"{path}: speed of int8 on openvino was not measured: compare with `flowturbo_trt bench` there"
    ]


def test_emulated_arithmetic(
    tiny_options: BuildOptions, tiny_bundle: Path, instant_export: list[str], tmp_path: Path
) -> None:
    """ONNX Runtime rounds to fp8 and computes in float32: that is for those who ask for it."""
    path = saved(recipe_for(tiny_bundle, "fp8"), tmp_path / "r.json", timed=())
    options = replace(tiny_options, precisions=("fp8",), recipes=(path,))
    with pytest.raises(RecipeError) as caught:
        build(options, tmp_path / "bundle")
    assert instant_export == []
    assert str(caught.value) == (
        f"{path}: is for onnxruntime, which only emulates fp8 and is no faster for it; build fp8 for another "
        "backend, or build it nevertheless with --force"
    )
    told: list[str] = []
    manifest = build(replace(options, force=True), tmp_path / "bundle", say=told.append).manifest
    assert told[0] == (
        f"{path}: is for onnxruntime, which only emulates fp8 and is no faster for it; it is built "
        "nevertheless"
    )
    assert not any("not measured" in text for text in told)
    assert manifest.options["recipes"][0]["emulated"] == ["onnxruntime"]
