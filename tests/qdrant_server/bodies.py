"""What Qdrant's REST API takes, as far as stores send it: each request body is checked against this.

Taken from the OpenAPI description of Qdrant, ``docs/redoc/master/openapi.json`` at commit 74f3e85b94 of
https://github.com/qdrant/qdrant (Apache License 2.0), written shorter here. Of each schema there are those fields that
a store may send; a field that is not here is an error, as it is to the client's own models.

A type is a name of ``TYPES`` or of ``PLAIN``; ``[t]`` a list, ``{t}`` a mapping from names, ``a | b`` one of several,
``=x`` the value itself. A field with a question mark may be missing or null.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)

PLAIN = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "uint": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
    "count": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63,
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "datetime": lambda value: isinstance(value, str) and _RFC_3339.fullmatch(value) is not None,
    "json": lambda value: True,
    "id": lambda value: PLAIN["uint"](value) or _is_uuid(value),
    "vector": lambda value: isinstance(value, list) and all(map(PLAIN["number"], value)),
    "multivector": lambda value: isinstance(value, list) and bool(value) and all(map(PLAIN["vector"], value)),
}

TYPES = {
    "CreateCollection": {
        "vectors?": "{VectorParams}",
        "shard_number?": "count",
        "replication_factor?": "count",
        "metadata?": "{json}",
    },
    "UpdateCollection": {"metadata?": "{json}"},
    "VectorParams": {
        "size": "count",
        "distance": "=Cosine | =Euclid | =Dot | =Manhattan",
        "hnsw_config?": "HnswConfigDiff",
        "quantization_config?": "ScalarQuantization | BinaryQuantization",
        "on_disk?": "bool",
        "datatype?": "=float32 | =float16 | =uint8",
        "multivector_config?": "MultiVectorConfig",
    },
    "HnswConfigDiff": {"m?": "uint", "ef_construct?": "uint"},
    "MultiVectorConfig": {"comparator": "=max_sim"},
    "ScalarQuantization": {"scalar": "ScalarQuantizationConfig"},
    "ScalarQuantizationConfig": {"type": "=int8", "quantile?": "number", "always_ram?": "bool"},
    "BinaryQuantization": {"binary": "BinaryQuantizationConfig"},
    "BinaryQuantizationConfig": {"always_ram?": "bool"},
    "CreateFieldIndex": {
        "field_name": "str",
        "field_schema?": "=keyword | =integer | =float | =bool | =datetime | =uuid",
    },
    "PointsList": {"points": "[PointStruct]"},
    "PointStruct": {"id": "id", "vector": "vector | multivector | {vector | multivector}", "payload?": "{json}"},
    "PointIdsList": {"points": "[id]"},
    "PointRequest": {"ids": "[id]", "with_payload?": "bool | [str]", "with_vector?": "bool | [str]"},
    "CountRequest": {"filter?": "Filter", "exact?": "bool"},
    "ScrollRequest": {
        "offset?": "id",
        "limit?": "count",
        "filter?": "Filter",
        "with_payload?": "bool | [str]",
        "with_vector?": "bool | [str]",
    },
    "UpdateOperations": {"operations": "[SetPayloadOperation]"},
    "SetPayloadOperation": {"set_payload": "SetPayload"},
    "SetPayload": {"payload": "{json}", "points?": "[id]", "filter?": "Filter", "key?": "str"},
    "QueryRequestBatch": {"searches": "[QueryRequest]"},
    "QueryRequest": {
        "prefetch?": "Prefetch | [Prefetch]",
        "query?": "vector | multivector | NearestQuery",
        "using?": "str",
        "filter?": "Filter",
        "params?": "SearchParams",
        "limit?": "count",
        "with_payload?": "bool | [str]",
        "with_vector?": "bool | [str]",
    },
    "NearestQuery": {"nearest": "vector | multivector"},
    "Prefetch": {
        "query?": "vector | multivector | NearestQuery",
        "using?": "str",
        "filter?": "Filter",
        "limit?": "count",
    },
    "SearchParams": {"exact?": "bool", "indexed_only?": "bool", "quantization?": "QuantizationSearchParams"},
    "QuantizationSearchParams": {"ignore?": "bool", "rescore?": "bool", "oversampling?": "number"},
    "Filter": {"should?": "[Condition]", "must?": "[Condition]", "must_not?": "[Condition]"},
    "FieldCondition": {
        "key": "str",
        "match?": "MatchValue | MatchAny",
        "range?": "Range | DatetimeRange",
        "values_count?": "ValuesCount",
    },
    "MatchValue": {"value": "str | int | bool"},
    "MatchAny": {"any": "[str]"},
    "Range": {"lt?": "number", "gt?": "number", "gte?": "number", "lte?": "number"},
    "DatetimeRange": {"lt?": "datetime", "gt?": "datetime", "gte?": "datetime", "lte?": "datetime"},
    "ValuesCount": {"lt?": "uint", "gt?": "uint", "gte?": "uint", "lte?": "uint"},
    "IsEmptyCondition": {"is_empty": "PayloadField"},
    "IsNullCondition": {"is_null": "PayloadField"},
    "HasIdCondition": {"has_id": "[id]"},
    "PayloadField": {"key": "str"},
}
_CONDITIONS = "FieldCondition | IsEmptyCondition | IsNullCondition | HasIdCondition | Filter"


def problem(value: Any, kind: str) -> str | None:
    """What is wrong with a value.

    Args:
        value: JSON data.
        kind: The type that it should have.

    Returns:
        Where it differs from the type; None if it does not.
    """
    kind = _CONDITIONS if kind == "Condition" else kind
    options = re.split(r" \| (?![^{[]*[}\]])", kind)
    if len(options) > 1:
        found = [problem(value, option) for option in options]
        return None if None in found else " and ".join(map(str, found))
    if kind[0] == "=":
        return None if value == kind[1:] else f"{value!r} is not {kind[1:]}"
    if kind[0] in "[{":
        return _inner_problem(value, kind)
    if kind in PLAIN:
        return None if PLAIN[kind](value) else f"no {kind}: {value!r:.80}"
    return _object_problem(value, kind)


def _inner_problem(value: Any, kind: str) -> str | None:
    if not isinstance(value, list if kind[0] == "[" else dict):
        return f"no {kind}: {value!r:.80}"
    inner = value if kind[0] == "[" else value.values()
    return next((found for part in inner if (found := problem(part, kind[1:-1])) is not None), None)


def _object_problem(value: Any, kind: str) -> str | None:
    if not isinstance(value, dict):
        return f"no {kind}: {value!r:.80}"
    fields = {name.rstrip("?"): (name, inner) for name, inner in TYPES[kind].items()}
    if unknown := set(value) - set(fields):
        return f"{kind} has no {', '.join(sorted(unknown))}"
    for field, (name, inner) in fields.items():
        if value.get(field) is None:
            if not name.endswith("?"):
                return f"{kind} lacks {field}"
        elif (found := problem(value[field], inner)) is not None:
            return f"{kind}.{field}: {found}"
    return None


def _is_uuid(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(uuid.UUID(value))
    except ValueError:
        return False
