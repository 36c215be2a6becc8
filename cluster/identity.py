"""What of a config is in a fingerprint: the fields that differ from their defaults and change what comes out.

A new field with a default then leaves old artifacts valid; a changed default or behaviour bumps the stage's version.
Fields declared with `how()` (or a dataclass field's metadata={"identity": False}) only change how work runs. A field of
one possible value (Literal["x"]) is always in: it tells the members of a union apart.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from pathlib import PurePath
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Field
from pydantic_core import PydanticUndefined

from cluster.errors import UserError
from cluster.masking import without_secrets

_ABSENT = object()


def how(default: Any = PydanticUndefined, **kw: Any) -> Any:
    """A pydantic field that changes only *how* work runs (worker counts, micro-batches): not in the fingerprint."""
    extra = {**(kw.pop("json_schema_extra", None) or {}), "identity": False}
    return Field(default, json_schema_extra=extra, **kw)


def identity(config: Any) -> dict[str, Any]:
    """The part of a config that counts, as plain JSON.

    Args:
        config: a pydantic model or a dataclass, which may hold others, also in lists and dicts.
    Raises:
        ValueError: a value that has no canonical JSON, such as NaN or a function.
    """
    counted: dict[str, Any] = {}
    for name, value, default, always in _fields(config):
        encoded = _encode(value, name)
        if always or default is _ABSENT or _canonical(encoded) != _canonical(_encode(default, name)):
            counted[name] = encoded
    return counted


def field_sides(config_class: type) -> tuple[list[str], list[str]]:
    """(fields in the fingerprint, fields that are not), of a config class without its nested ones."""
    inside, outside = [], []
    if issubclass(config_class, BaseModel):
        for name, info in config_class.model_fields.items():
            (outside if _is_how(info.json_schema_extra) else inside).append(name)
    else:
        for field in dataclasses.fields(config_class):
            (outside if field.metadata.get("identity") is False else inside).append(field.name)
    return inside, outside


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`train.lr: 0.001 -> 0.0003` for each leaf in which two identities differ; a leaf that is absent is `default`."""
    for name in sorted({*old, *new}):
        before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if before == after:
            continue
        nested = [v if isinstance(v, Mapping) else ({} if v is _ABSENT else None) for v in (before, after)]
        lists = isinstance(before, list) and isinstance(after, list)
        if nested[0] is not None and nested[1] is not None and (nested[0] or nested[1]):
            yield from differences(nested[0], nested[1], f"{prefix}{name}.")
        elif lists:
            yield from differences(_numbered(before), _numbered(after), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}: {_shown(before)} -> {_shown(after)}"


_canonical = canonical_json


def _fields(config: Any) -> Iterator[tuple[str, Any, Any, bool]]:
    """(name, value, default or _ABSENT, always counted) for each field that counts."""
    if isinstance(config, BaseModel):
        for name, info in type(config).model_fields.items():
            if not _is_how(info.json_schema_extra):
                default = info.get_default(
                    call_default_factory=info.default_factory is not None and _plain_factory(info)
                )
                yield (
                    name,
                    getattr(config, name),
                    _ABSENT if default is PydanticUndefined else default,
                    (_single(info.annotation)),
                )
        for name, value in (config.model_extra or {}).items():
            yield name, value, _ABSENT, True
    elif dataclasses.is_dataclass(config) and not isinstance(config, type):
        hints = get_type_hints(type(config))
        for field in dataclasses.fields(config):
            if field.metadata.get("identity") is False:
                continue
            default: Any = _ABSENT
            if field.default is not dataclasses.MISSING:
                default = field.default
            elif field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            yield field.name, getattr(config, field.name), default, _single(hints.get(field.name))
    else:
        raise ValueError(f"A config must be a pydantic model or a dataclass, not {type(config).__name__}.")


def _plain_factory(info: Any) -> bool:
    return not info.default_factory_takes_validated_data


def _is_how(extra: Any) -> bool:
    return isinstance(extra, Mapping) and extra.get("identity") is False


def _single(annotation: Any) -> bool:
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


def _encode(value: Any, name: str) -> Any:
    if value is None or (isinstance(value, (bool, str)) and not isinstance(value, enum.Enum)):
        return without_secrets(value) if isinstance(value, str) else value
    if isinstance(value, enum.Enum):
        return _encode(value.value, name)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{name} = {value}: a config's numbers must be finite.")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value  # 1 and 1.0 are one setting
    if isinstance(value, BaseModel) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return identity(value)
    if isinstance(value, Mapping):
        return {str(k): _encode(v, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(v, f"{name}.{i}") for i, v in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return sorted((_encode(v, name) for v in value), key=_canonical)
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, (date, datetime)):
        return value.isoformat()
    raise ValueError(f"{name} holds a {type(value).__name__}, which has no place in a fingerprint: use plain values.")


def _numbered(values: list) -> dict[str, Any]:
    return {str(i): v for i, v in enumerate(values)}


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "default"
    text = canonical_json(value)
    return text if len(text) <= 80 else text[:77] + "..."
