"""The recipes of a build: read, held against what is built, and asked what of a network is in 8 bits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from flowturbo_trt.bundle.store import sha256
from flowturbo_trt.export.compile import COMPILERS, QUANTIZED, Quantization
from flowturbo_trt.export.graphs import Exportable
from flowturbo_trt.export.networks import is_conditioning
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.export.quantization import PREFIX, WEIGHT, Recipe, RecipeError, load_recipe
from flowturbo_trt.sampling.program import NETWORKS


@dataclass(frozen=True)
class GivenRecipe:
    """A recipe and the file it was read from."""

    path: Path
    recipe: Recipe


@dataclass(frozen=True)
class Recipes:
    """The recipes of a build, by kind."""

    by_kind: Mapping[str, GivenRecipe]

    def quantization(self, backend: str, precision: str, network: str) -> Quantization | None:
        """Return what of a network ("predictor guided") is in 8 bits on a backend; None: nothing."""
        if precision not in QUANTIZED:
            return None
        layers = self.by_kind[precision].recipe.layers.get(network)
        return Quantization(layers, COMPILERS[backend].precision) if layers else None

    def describe(self) -> list[dict[str, Any]]:
        """Return what the manifest is to say about them."""
        return [
            {
                "file": given.path.name,
                "sha256": sha256(given.path),
                "kind": kind,
                "passed": given.recipe.passed,
                "findings": dict(given.recipe.findings),
            }
            for kind, given in self.by_kind.items()
        ]


def load_recipes(options: BuildOptions, say: Callable[[str], None]) -> Recipes:
    """Read a build's recipes; raises RecipeError where they are not those its precisions need.

    `say` is told of one whose gate did not hold, which `force` lets pass.
    """
    wanted = {p: b for b in options.backends if (p := options.precision_of(b)) in QUANTIZED}
    by_kind: dict[str, GivenRecipe] = {}
    for path in options.recipes:
        recipe = load_recipe(path)
        kind = recipe.kind
        if kind in by_kind:
            raise RecipeError(f"{path}: is of kind {kind} like {by_kind[kind].path}; leave one of them out")
        if kind not in wanted:
            raise RecipeError(
                f"{path}: is of kind {kind}, and nothing is built in {kind}; add --precision BACKEND={kind}, "
                "or leave it out"
            )
        by_kind[kind] = GivenRecipe(path, recipe)
        _check_gate(by_kind[kind], options.force, say)
    for kind, backend in wanted.items():
        if kind not in by_kind:
            raise RecipeError(
                f"precision {kind} for {backend} needs a recipe of kind {kind}; make one with `flowturbo_trt "
                f"calibrate precision --kind {kind}` and give it with --recipe"
            )
    return Recipes(by_kind)


def check_recipes(
    recipes: Recipes, items: Sequence[Exportable], provenance: Mapping[str, Mapping[str, str]]
) -> None:
    """Raise RecipeError where a recipe was made for other networks than those to be exported."""
    for given in recipes.by_kind.values():
        named = [item for item in items if item.network in NETWORKS and given.recipe.layers.get(item.name)]
        if not named:
            raise RecipeError(
                f"{given.path}: quantises {', '.join(given.recipe.layers) or 'nothing'}, and the build has "
                f"{', '.join(item.name for item in items)}; calibrate a bundle of the same variants"
            )
        for item in named:
            if given.recipe.sources.get(item.checkpoint) != provenance[item.checkpoint]["sha256"]:
                raise RecipeError(
                    f"{given.path}: was made for another {item.checkpoint} checkpoint than the one given; "
                    "calibrate a bundle of this one"
                )
            _check_layers(given, item)


def _check_gate(given: GivenRecipe, force: bool, say: Callable[[str], None]) -> None:
    if given.recipe.passed:
        return
    if not force:
        raise RecipeError(
            f"{given.path}: did not pass its gate, which `calibrate precision` tells about; calibrate with "
            "another budget, or build it nevertheless with --force"
        )
    say(f"{given.path}: did not pass its gate, and is built nevertheless")


def _check_layers(given: GivenRecipe, item: Exportable) -> None:
    known = dict(_linear_modules(item.module))
    for name, layer in given.recipe.layers[item.name].items():
        if name not in known:
            raise RecipeError(
                f"{given.path}: quantises {item.name} {name}, which is no linear layer there; calibrate a "
                "bundle of this model"
            )
        if layer.smooth and len(layer.smooth) != known[name].in_features:
            raise RecipeError(
                f"{given.path}: smooths {len(layer.smooth)} channels of {item.name} {name}, which has "
                f"{known[name].in_features}; calibrate a bundle of this model"
            )


def _linear_modules(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers of a velocity network by name, but for those of its conditioning."""
    for path, part in module.named_modules():
        name = path.removeprefix(PREFIX)
        if isinstance(part, nn.Linear) and not is_conditioning(f"{name}{WEIGHT}"):
            yield name, part
