"""How many bytes the weights of a build's engines take, known before any is compiled."""

from collections.abc import Mapping, Sequence

from flowturbo_trt.export.compile import Quantization, is_as_is
from flowturbo_trt.export.graphs import Exportable
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.export.preflight import WEIGHT_BYTES
from flowturbo_trt.export.recipe_checks import linear_modules
from flowturbo_trt.export.recipes import Recipes


def engine_bytes(
    options: BuildOptions, recipes: Recipes, items: Sequence[Exportable]
) -> Mapping[str, Mapping[str, int]]:
    """Return the bytes of the weights that are compiled, by backend and network, the larger of variants.

    A network that a backend loads as it is has none.
    """
    sizes: dict[str, dict[str, int]] = {}
    for backend in options.backends:
        found = sizes[backend] = {}
        for item in items:
            precision, quantization = recipes.apply(options, backend, item.name)
            if not is_as_is(backend, precision):
                size = _bytes(item, precision, quantization)
                found[item.network] = max(size, found.get(item.network, 0))
    return sizes


def _bytes(item: Exportable, precision: str, quantization: Quantization | None) -> int:
    """Return the size of a network of which all that is not quantised is in the base's precision."""
    each = WEIGHT_BYTES[precision if quantization is None else quantization.base]
    size = item.weight_bytes * each // WEIGHT_BYTES["fp32"]
    if quantization is None:
        return size
    saved = each - WEIGHT_BYTES[precision]
    modules = linear_modules(item.module)
    return size - saved * sum(part.weight.numel() for name, part in modules if name in quantization.layers)
