"""Collections on the real engine, ``qdrant-edge-py``: what a server's REST API does, from JSON data to JSON data.

The engine has shards, not collections: their configuration, and the metadata that a server keeps with it, is kept here.
"""

from __future__ import annotations

import tempfile
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import qdrant_edge as edge

from .strict import is_of_dates, shown

Json = Any
_MOST_FLOATS = 2**20  # of one multivector, as in validation.rs of the server


class Refused(Exception):
    """What a server answers with an error.

    Args:
        status: The HTTP status.
        said: Its words.
    """

    def __init__(self, status: int, said: str) -> None:
        self.status, self.said = status, said
        super().__init__(said)


@dataclass
class Collection:
    """A shard, and what a server knows of its collection."""

    shard: edge.EdgeShard
    config: dict[str, Json]
    indexes: dict[str, str] = field(default_factory=dict)


class Engine:
    """All collections of a server.

    Attributes:
        keeps_metadata: Whether collections have metadata of their own, as since Qdrant 1.16.
        too_slow: How many changes of points are to be answered as if they took longer than a server waits for them.
    """

    def __init__(self) -> None:
        self._collections: dict[str, Collection] = {}
        self._folder = tempfile.TemporaryDirectory()
        self._lock = threading.RLock()
        self._made = 0
        self.keeps_metadata = True
        self.too_slow = 0

    def close(self) -> None:
        """Free everything."""
        with self._lock:
            for collection in self._collections.values():
                collection.shard.close()
            self._collections.clear()
            self._folder.cleanup()

    def optimize(self, name: str) -> None:
        """Do now what a server does in the background: it is then that there are codes and graphs."""
        self._get(name).shard.optimize()

    def _get(self, name: str) -> Collection:
        with self._lock:
            if name not in self._collections:
                raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
            return self._collections[name]

    # -------------------------------------------------------------------------------------------------- collections

    def exists(self, name: str) -> Json:
        """GET /collections/{name}/exists."""
        return {"exists": name in self._collections}

    def create(self, name: str, body: Json) -> Json:
        """PUT /collections/{name}."""
        with self._lock:
            if name in self._collections:
                raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
            vectors = {vector: _vector_params(params) for vector, params in body["vectors"].items()}
            self._made += 1
            # A threshold so low that optimize makes codes and graphs of a few points too.
            optimizers = edge.EdgeOptimizersConfig(indexing_threshold=1)
            config = edge.EdgeConfig(vectors=vectors, optimizers=optimizers)
            shard = edge.EdgeShard.create(f"{self._folder.name}/{self._made}", config)
            self._collections[name] = Collection(shard, body)
            return True

    def delete_collection(self, name: str) -> Json:
        """DELETE /collections/{name}."""
        with self._lock:
            found = self._collections.pop(name, None)
            if found is not None:
                found.shard.close()
            return found is not None

    def update(self, name: str, body: Json) -> Json:
        """PATCH /collections/{name}."""
        collection = self._get(name)
        collection.config["metadata"] = {**(collection.config.get("metadata") or {}), **(body.get("metadata") or {})}
        return True

    def info(self, name: str) -> Json:
        """GET /collections/{name}."""
        collection = self._get(name)
        config, indexes = collection.config, collection.indexes
        return {
            "status": "green",
            "optimizer_status": "ok",
            "segments_count": collection.shard.info().segments_count,
            "points_count": collection.shard.info().points_count,
            "payload_schema": {shown(path): {"data_type": kind, "points": 0} for path, kind in indexes.items()},
            "config": {
                "params": {
                    "vectors": config["vectors"],
                    "shard_number": config.get("shard_number") or 1,
                    "replication_factor": config.get("replication_factor") or 1,
                },
                "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
                "optimizer_config": {
                    "deleted_threshold": 0.2,
                    "vacuum_min_vector_number": 1000,
                    "default_segment_number": 0,
                    "flush_interval_sec": 5,
                },
                "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
                "metadata": config.get("metadata") if self.keeps_metadata else None,
            },
        }

    def indexes(self, name: str) -> dict[str, str]:
        """The kinds of a collection's payload indexes, by path."""
        return self._get(name).indexes

    def create_index(self, name: str, body: Json) -> Json:
        """PUT /collections/{name}/index."""
        kinds = {
            "keyword": edge.PayloadSchemaType.Keyword,
            "integer": edge.PayloadSchemaType.Integer,
            "float": edge.PayloadSchemaType.Float,
            "bool": edge.PayloadSchemaType.Bool,
            "datetime": edge.PayloadSchemaType.Datetime,
            "uuid": edge.PayloadSchemaType.Uuid,
        }
        collection = self._get(name)
        kind = body["field_schema"]
        collection.shard.update(edge.UpdateOperation.create_field_index(body["field_name"], kinds[kind]))
        collection.indexes[body["field_name"]] = kind
        return self._updated()

    def _updated(self) -> Json:
        """What a change is answered."""
        self.too_slow, slow = max(0, self.too_slow - 1), self.too_slow > 0
        return {"operation_id": 0, "status": "wait_timeout" if slow else "completed"}

    # -------------------------------------------------------------------------------------------------------- points

    def upsert(self, name: str, body: Json) -> Json:
        """PUT /collections/{name}/points."""
        points = []
        for point in body["points"]:
            for vector in point["vector"].values():
                if isinstance(vector[0], list) and len(vector) * len(vector[0]) >= _MOST_FLOATS:
                    raise Refused(422, "Validation error in JSON body: a multivector is too large")
            points.append(edge.Point(point["id"], point["vector"], point.get("payload") or {}))
        self._get(name).shard.update(edge.UpdateOperation.upsert_points(points))
        return self._updated()

    def delete(self, name: str, body: Json) -> Json:
        """POST /collections/{name}/points/delete."""
        self._get(name).shard.update(edge.UpdateOperation.delete_points(body["points"]))
        return self._updated()

    def batch_update(self, name: str, body: Json) -> Json:
        """POST /collections/{name}/points/batch."""
        collection = self._get(name)
        for operation in body["operations"]:
            what = operation["set_payload"]
            change = edge.UpdateOperation.set_payload_by_filter(_filter(what["filter"]), what["payload"])
            collection.shard.update(change)
        return [self._updated() for _ in body["operations"]]

    def retrieve(self, name: str, body: Json) -> Json:
        """POST /collections/{name}/points."""
        records = self._get(name).shard.retrieve(body["ids"], _payload(body), _vectors(body))
        return [_record(record) for record in records]

    def count(self, name: str, body: Json) -> Json:
        """POST /collections/{name}/points/count."""
        request = edge.CountRequest(exact=body.get("exact", True), filter=_filter(body.get("filter")))
        return {"count": self._get(name).shard.count(request)}

    def scroll(self, name: str, body: Json) -> Json:
        """POST /collections/{name}/points/scroll."""
        request = edge.ScrollRequest(
            offset=body.get("offset"),
            limit=body.get("limit", 10),
            filter=_filter(body.get("filter")),
            with_payload=_payload(body),
            with_vector=_vectors(body),
        )
        records, offset = self._get(name).shard.scroll(request)
        return {
            "points": [_record(record) for record in records],
            "next_page_offset": None if offset is None else _id(offset),
        }

    def query_batch(self, name: str, body: Json) -> Json:
        """POST /collections/{name}/points/query/batch."""
        shard = self._get(name).shard
        return [{"points": [_scored(point) for point in shard.query(_query_request(one))]} for one in body["searches"]]


# -------------------------------------------------------------------------------------------- from JSON to the engine


def _vector_params(params: Json) -> edge.EdgeVectorParams:
    datatypes = {
        name: getattr(edge.VectorStorageDatatype, name.capitalize()) for name in ("float32", "float16", "uint8")
    }
    several = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim) if params.get("multivector_config") else None
    hnsw = params.get("hnsw_config") or {}
    return edge.EdgeVectorParams(
        size=params["size"],
        distance=getattr(edge.Distance, params["distance"]),
        on_disk=params.get("on_disk"),
        multivector_config=several,
        datatype=datatypes[params.get("datatype") or "float32"],
        quantization_config=_quantization(params.get("quantization_config")),
        hnsw_config=edge.HnswIndexConfig(m=hnsw.get("m", 16), ef_construct=100, full_scan_threshold=10_000),
    )


def _quantization(config: Json) -> Any:
    if config is None:
        return None
    if "binary" in config:
        return edge.BinaryQuantizationConfig(always_ram=config["binary"].get("always_ram"))
    scalar = config["scalar"]
    return edge.ScalarQuantizationConfig(
        type=edge.ScalarType.Int8, quantile=scalar.get("quantile"), always_ram=scalar.get("always_ram")
    )


def _query_request(request: Json) -> edge.QueryRequest:
    prefetch = request.get("prefetch") or []
    return edge.QueryRequest(
        limit=request.get("limit", 10),
        query=_nearest(request),
        prefetches=[_prefetch(one) for one in (prefetch if isinstance(prefetch, list) else [prefetch])],
        filter=_filter(request.get("filter")),
        params=_params(request.get("params")),
        with_payload=_payload(request),
        with_vector=_vectors(request),
    )


def _prefetch(request: Json) -> edge.Prefetch:
    return edge.Prefetch(limit=request.get("limit", 10), query=_nearest(request), filter=_filter(request.get("filter")))


def _nearest(request: Json) -> edge.Query:
    query = request["query"]
    return edge.Query.Nearest(query["nearest"] if isinstance(query, dict) else query, request.get("using"))


def _params(params: Json) -> edge.SearchParams | None:
    if params is None:
        return None
    quantization = params.get("quantization")
    given = None if quantization is None else edge.QuantizationSearchParams(**quantization)
    return edge.SearchParams(exact=params.get("exact", False), quantization=given)


def _filter(filter: Json) -> edge.Filter | None:
    if filter is None:
        return None
    parts = {name: [_condition(one) for one in conditions] for name, conditions in filter.items() if conditions}
    return edge.Filter(**parts)


def _condition(condition: Json) -> Any:
    if "has_id" in condition:
        return edge.HasIdCondition(set(condition["has_id"]))
    if "is_null" in condition:
        return edge.IsNullCondition(condition["is_null"]["key"])
    if "is_empty" in condition:
        return edge.IsEmptyCondition(condition["is_empty"]["key"])
    if "key" not in condition:
        return _filter(condition)
    if condition.get("range") is not None:
        kind = edge.RangeDateTime if is_of_dates(condition["range"]) else edge.RangeFloat
        return edge.FieldCondition(condition["key"], range=kind(**condition["range"]))
    if condition.get("values_count") is not None:
        return edge.FieldCondition(condition["key"], values_count=edge.ValuesCount(**condition["values_count"]))
    if "any" in condition["match"]:
        return edge.FieldCondition(condition["key"], match=edge.MatchAny(condition["match"]["any"]))
    value = condition["match"]["value"]
    # The binding takes Python's True for the number 1, but numpy's for a boolean.
    match = edge.MatchValue(np.bool_(value) if isinstance(value, bool) else value)
    return edge.FieldCondition(condition["key"], match=match)


def _payload(body: Json) -> bool | list[str]:
    return body.get("with_payload", True)


def _vectors(body: Json) -> bool | list[str]:
    return body.get("with_vector", False)


# -------------------------------------------------------------------------------------------- from the engine to JSON


def _id(point_id: Any) -> int | str:
    return point_id if isinstance(point_id, int) else str(point_id)


def _scored(point: Any) -> Json:
    return {**_record(point), "score": point.score, "version": point.version}


def _record(record: Any) -> Json:
    return {"id": _id(record.id), "payload": record.payload, "vector": record.vector}
