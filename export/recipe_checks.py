"""Recipes held against the networks, the configuration and the schedules of a build."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import nn

from flowturbo_trt.export.graphs import Exportable
from flowturbo_trt.export.networks import is_conditioning
from flowturbo_trt.export.quantization import PREFIX, WEIGHT, RecipeError
from flowturbo_trt.export.recipes import GivenRecipe, Recipes
from flowturbo_trt.export.sources import Sources
from flowturbo_trt.sampling.program import NETWORKS


def check_recipes(
    recipes: Recipes,
    items: Sequence[Exportable],
    sources: Sources,
    schedules: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """Raise RecipeError where a recipe was made for other networks than those to be exported.

    `say` is told what of a recipe and of a build have no counterpart: networks that stay as they are,
    networks that are not there, schedules that the gate did not judge.
    """
    networks = [item for item in items if item.network in NETWORKS]
    for given in recipes.by_kind.values():
        named = [item for item in networks if given.recipe.layers.get(item.name)]
        if not named:
            raise RecipeError(
                f"{given.path}: quantises {', '.join(given.recipe.layers) or 'nothing'}, and the build has "
                f"{', '.join(item.name for item in items)}; calibrate a bundle of the same variants"
            )
        _check_sources(given, named, sources.provenance)
        _check_guidance(given, networks, sources.guided_channels)
        for item in named:
            _check_layers(given, item)
        for text in (*_uncovered(given, networks), *_unjudged(given, schedules)):
            say(f"{given.path}: {text}")


def linear_modules(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers of a velocity network by name, but for those of its conditioning."""
    for path, part in module.named_modules():
        name = path.removeprefix(PREFIX)
        if isinstance(part, nn.Linear) and not is_conditioning(f"{name}{WEIGHT}"):
            yield name, part


def _check_sources(
    given: GivenRecipe, named: Sequence[Exportable], provenance: Mapping[str, Mapping[str, str]]
) -> None:
    """Hold checkpoints against the recipe's: those it quantises, and all that the gate's latents come of."""
    judged = given.recipe.sources
    for source in dict.fromkeys((*(item.checkpoint for item in named), *judged)):
        if source in provenance and judged.get(source) != provenance[source]["sha256"]:
            raise RecipeError(
                f"{given.path}: was made for another {source} checkpoint than the one given; calibrate a "
                "bundle of this one"
            )


def _check_guidance(given: GivenRecipe, networks: Sequence[Exportable], channels: int) -> None:
    judged = given.recipe.guided_channels
    if judged != channels and any(item.variant == "guided" for item in networks):
        raise RecipeError(
            f"{given.path}: was made with guided_channels {judged}, the configuration's are {channels}; "
            "calibrate a bundle of this configuration"
        )


def _check_layers(given: GivenRecipe, item: Exportable) -> None:
    known = dict(linear_modules(item.module))
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


def _uncovered(given: GivenRecipe, networks: Sequence[Exportable]) -> Iterator[str]:
    quantized = [name for name, layers in given.recipe.layers.items() if layers]
    built = [item.name for item in networks]
    for item in networks:
        others = [name for name in quantized if name.split()[0] == item.network]
        if others and item.name not in quantized:
            yield f"has no layers of {item.name}, only of {', '.join(others)}: it is not quantised"
    for name in quantized:
        if name not in built:
            yield f"quantises {name} as well, which this build does not have"


def _unjudged(given: GivenRecipe, schedules: Sequence[str]) -> Iterator[str]:
    judged = given.recipe.schedules
    if unjudged := [text for text in schedules if text not in judged]:
        yield (
            f"its gate judged {', '.join(judged) or 'no schedule'}, not {', '.join(unjudged)}; see what "
            "`flowturbo_trt verify --schedule` says"
        )
