"""The manifest as JSON: written from its dataclasses, read back by their types (FORMAT.md)."""

import dataclasses
import json
import types
import typing
from typing import Any, Literal

from flowturbo_trt.bundle.manifest import FORMAT, FORMAT_VERSION, BundleError, Manifest
from flowturbo_trt.sampling import program_json
from flowturbo_trt.sampling.program import Program, ProgramError
from flowturbo_trt.sampling.table import SolverTable, TableError


def to_json(manifest: Manifest) -> str:
    """Return the manifest as JSON text; `from_json` gives an equal manifest back."""
    return json.dumps(_plain(manifest), indent=1) + "\n"


def from_json(text: str) -> Manifest:
    """Read and validate a manifest; raises BundleError. Unknown keys are ignored (FORMAT.md, Versions)."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"manifest: not JSON ({error})") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BundleError("manifest: not that of a flowturbo_trt bundle")
    version = data.get("version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise BundleError(
            f"manifest: format version {version}, this reader knows up to {FORMAT_VERSION}; "
            "upgrade flowturbo_trt or rebuild the bundle"
        )
    manifest: Manifest = read_value(Manifest, data, "manifest")
    return manifest


def _plain(value: Any) -> Any:
    if isinstance(value, Program):
        return program_json.to_json(value)
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def read_value(expected: Any, data: Any, where: str) -> Any:
    """Build a value of the expected type from JSON data; `where` names the place in errors (BundleError)."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any:
        return data
    if expected is Program:
        try:
            return program_json.from_json(data)
        except ProgramError as error:
            raise BundleError(f"{where}: {error}") from error
    if expected is SolverTable:
        try:
            return _read_dataclass(expected, _typed(dict, data, where), where)
        except TableError as error:
            raise BundleError(f"{where}: {error}") from error
    if dataclasses.is_dataclass(expected):
        return _read_dataclass(expected, _typed(dict, data, where), where)
    if origin in (types.UnionType, typing.Union):
        return _read_union(arguments, data, where)
    if origin is Literal:
        if data not in arguments:
            raise BundleError(f"{where} is {data!r}, expected {' or '.join(map(repr, arguments))}")
        return data
    if origin is tuple:
        items = _typed(list, data, where)
        if arguments[-1] is not Ellipsis and len(items) != len(arguments):
            raise BundleError(f"{where} has {len(items)} items, expected {len(arguments)}")
        return tuple(read_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        items = _typed(dict, data, where).items()
        return {key: read_value(arguments[1], item, f"{where}.{key}") for key, item in items}
    if expected is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    return _typed(expected, data, where)


def _read_dataclass(expected: Any, data: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(expected)
    required = [f.name for f in dataclasses.fields(expected) if _is_required(f)]
    if missing := [name for name in required if name not in data]:
        raise BundleError(f"{where}: {missing[0]!r} is missing")
    given = {name: hint for name, hint in hints.items() if name in data}
    return expected(**{name: read_value(hint, data[name], f"{where}.{name}") for name, hint in given.items()})


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    # What was added to the format later has a default, for bundles written before.
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _read_union(options: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:
        return read_value(options[0], data, where)
    match = next((o for o in options if isinstance(data, o) and not isinstance(data, bool)), None)
    if match is None:
        raise BundleError(f"{where} is {data!r}, expected {' or '.join(o.__name__ for o in options)}")
    return data


def _typed(expected: type, data: Any, where: str) -> Any:
    if not isinstance(data, expected) or (expected is int and isinstance(data, bool)):
        raise BundleError(f"{where} is {data!r:.60}, expected {expected.__name__}")
    return data
