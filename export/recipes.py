"""The recipes of a build: read, held against its options, and asked what of a network is in 8 bits."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowturbo_trt.bundle.store import sha256
from flowturbo_trt.export.compile import COMPILERS, QUANTIZED, Quantization
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.export.quantization import Recipe, RecipeError, load_recipe
from flowturbo_trt.export.recipe_notes import RecipeNote


@dataclass(frozen=True)
class GivenRecipe:
    """A recipe, the file it was read from, and the backends whose engines it is for."""

    path: Path
    recipe: Recipe
    backends: tuple[str, ...]

    @property
    def emulated(self) -> tuple[str, ...]:
        return tuple(name for name in self.backends if self.recipe.kind in COMPILERS[name].emulates)

    def describe(self) -> dict[str, Any]:
        """Return what the manifest is to say about it (recipe_notes.RecipeNote), as plain data."""
        recipe = self.recipe
        note = RecipeNote(
            self.path.name,
            sha256(self.path),
            recipe.kind,
            recipe.passed,
            recipe.timed,
            self.emulated,
            recipe.schedules,
            dict(recipe.findings),
        )
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(note).items()
        }


@dataclass(frozen=True)
class Recipes:
    """The recipes of a build, by kind."""

    by_kind: Mapping[str, GivenRecipe]

    def apply(self, options: BuildOptions, backend: str, network: str) -> tuple[str, Quantization | None]:
        """Return the precision of a network ("predictor guided") on a backend, and what of it is in 8 bits.

        One that a recipe does not name has the backend's default precision.
        """
        precision, base = options.precision_of(backend), COMPILERS[backend].precision
        if precision not in QUANTIZED:
            return precision, None
        layers = self.by_kind[precision].recipe.layers.get(network)
        return (precision, Quantization(layers, base)) if layers else (base, None)

    def describe(self) -> list[dict[str, Any]]:
        """Return what the manifest is to say about them."""
        return [given.describe() for given in self.by_kind.values()]


def load_recipes(options: BuildOptions, say: Callable[[str], None]) -> Recipes:
    """Read a build's recipes; raises RecipeError where they are not those its precisions need.

    `say` is told what `force` lets pass, and on which backends nobody has measured whether it is faster.
    """
    wanted: dict[str, tuple[str, ...]] = {}
    for backend in options.backends:
        if (precision := options.precision_of(backend)) in QUANTIZED:
            wanted[precision] = (*wanted.get(precision, ()), backend)
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
        by_kind[kind] = GivenRecipe(path, recipe, wanted[kind])
        _check_gate(by_kind[kind], options.force, say)
    for kind, backends in wanted.items():
        if kind not in by_kind:
            raise RecipeError(
                f"precision {kind} for {', '.join(backends)} needs a recipe of kind {kind}; make one with "
                f"`flowturbo_trt calibrate precision --kind {kind}` and give it with --recipe"
            )
    return Recipes(by_kind)


def _check_gate(given: GivenRecipe, force: bool, say: Callable[[str], None]) -> None:
    for fault, remedy in _faults(given):
        if not force:
            raise RecipeError(f"{given.path}: {fault}; {remedy}, or build it nevertheless with --force")
        say(f"{given.path}: {fault}; it is built nevertheless")
    for backend in given.backends:
        if backend not in (*given.recipe.timed, *given.emulated):
            say(
                f"{given.path}: speed of {given.recipe.kind} on {backend} was not measured: compare with "
                "`flowturbo_trt bench` there"
            )


def _faults(given: GivenRecipe) -> Iterator[tuple[str, str]]:
    if not given.recipe.passed:
        yield (
            "did not pass its gate, as `calibrate precision` told",
            "calibrate with another budget",
        )
    kind = given.recipe.kind
    for backend in given.emulated:
        yield (
            f"is for {backend}, which only emulates {kind} and is no faster for it",
            f"build {kind} for another backend",
        )
