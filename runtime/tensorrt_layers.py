"""In which arithmetic an engine was built: a strongly typed network computes in what its graph said.

A float32 graph gives a float32 engine without a word, whatever was meant.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from types import ModuleType
from typing import Any

# What the inspector calls a type, alone ("Half") or with a layout ("Row major linear FP16 format").
_WORDS = {
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "half": "float16",
    "fp16": "float16",
    "float16": "float16",
    "float": "float32",
    "fp32": "float32",
    "float32": "float32",
    "int8": "int8",
    "fp8": "float8",
    "float8": "float8",
}
_WORD = re.compile(rf"\b({'|'.join(sorted(_WORDS, key=len, reverse=True))})\b", re.IGNORECASE)

# Precision in the manifest → the type that at least one layer works on.
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8", "fp8": "float8"}
_LOW = frozenset(_DTYPES.values()) - {"float32"}


def layer_precisions(trt: ModuleType, engine: Any) -> Mapping[str, int]:
    """Return how many layers of an ICudaEngine read or write each floating-point or 8-bit type.

    Empty where the plan does not say: one that was built without detailed profiling verbosity has no
    more than names.
    """
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        layers = json.loads(text, strict=False)["Layers"]
    except (ValueError, KeyError):  # not every name in it is escaped
        return {}
    return dict(Counter(dtype for layer in layers if isinstance(layer, dict) for dtype in _dtypes(layer)))


def agrees(precisions: Mapping[str, int], precision: str) -> bool:
    """Tell whether layers found by `layer_precisions` can be those of an engine in `precision`.

    An engine that does not tell its layers' types contradicts nothing.
    """
    if not precisions or precision not in _DTYPES:
        return True
    if precision == "fp32":
        return not _LOW & precisions.keys()
    return _DTYPES[precision] in precisions


def _dtypes(layer: Mapping[str, Any]) -> set[str]:
    # A network that was compiled as one piece shows the types of its interface and hides its own.
    if "ForeignNode" in str(layer.get("Name", "")):
        return set()
    tensors = [tensor for side in ("Inputs", "Outputs") for tensor in layer.get(side, ())]
    # TensorRT 11 and TensorRT for RTX name type and layout apart, versions before in one.
    texts = [str(tensor.get("Datatype") or tensor.get("Format/Datatype") or "") for tensor in tensors]
    return {_WORDS[found[1].lower()] for text in texts if (found := _WORD.search(text))}
