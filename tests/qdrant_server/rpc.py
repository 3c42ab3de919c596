"""The same server by gRPC: each call becomes the REST call that it stands for, by the client's own converters."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from qdrant_client import grpc as messages
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

from .engine import Refused

Json = Any
Answer = Callable[[str, Any, bytes], Json]  # of a call, its headers and its body

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class _Servicer:
    """What both services need.

    Args:
        answer: Gives what a REST call gets.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def _asked(self, context: grpc.ServicerContext, call: str, body: models.BaseModel | None = None) -> Json:
        content = b"" if body is None else body.model_dump_json(by_alias=True, exclude_none=True).encode()
        try:
            return json.loads(json.dumps(self._answer(call, dict(context.invocation_metadata()), content)))
        except Refused as error:
            context.abort(_CODES.get(error.status, grpc.StatusCode.INTERNAL), error.said)


def _given(message: Any, **converters: Callable[[Any], Any]) -> dict[str, Any]:
    """Fields of a message that are set, converted."""
    return {name: convert(getattr(message, name)) for name, convert in converters.items() if message.HasField(name)}


def _path(request: Any) -> str:
    return f"/collections/{request.collection_name}"


class Collections(_Servicer, messages.CollectionsServicer):
    """Calls on collections."""

    def CollectionExists(self, request: Any, context: grpc.ServicerContext) -> Any:
        found = self._asked(context, f"GET {_path(request)}/exists")
        return messages.CollectionExistsResponse(result=messages.CollectionExists(exists=found["exists"]))

    def Get(self, request: Any, context: grpc.ServicerContext) -> Any:
        found = models.CollectionInfo(**self._asked(context, f"GET {_path(request)}"))
        return messages.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(found))

    def Create(self, request: Any, context: grpc.ServicerContext) -> Any:
        body = models.CreateCollection(
            vectors=GrpcToRest.convert_vectors_config(request.vectors_config),
            metadata=GrpcToRest.convert_payload(request.metadata),
            **_given(request, shard_number=int, replication_factor=int),
        )
        return messages.CollectionOperationResponse(result=self._asked(context, f"PUT {_path(request)}", body))

    def Update(self, request: Any, context: grpc.ServicerContext) -> Any:
        body = models.UpdateCollection(metadata=GrpcToRest.convert_payload(request.metadata))
        return messages.CollectionOperationResponse(result=self._asked(context, f"PATCH {_path(request)}", body))


class Points(_Servicer, messages.PointsServicer):
    """Calls on points."""

    def Upsert(self, request: Any, context: grpc.ServicerContext) -> Any:
        body = models.PointsList(points=[GrpcToRest.convert_point_struct(point) for point in request.points])
        return self._updated(context, f"PUT {_path(request)}/points", body)

    def Delete(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._updated(
            context, f"POST {_path(request)}/points/delete", GrpcToRest.convert_points_selector(request.points)
        )

    def CreateFieldIndex(self, request: Any, context: grpc.ServicerContext) -> Any:
        kinds = {0: "keyword", 1: "integer", 2: "float", 5: "bool", 6: "datetime", 7: "uuid"}  # FieldType
        body = models.CreateFieldIndex(field_name=request.field_name, field_schema=kinds[request.field_type])
        return self._updated(context, f"PUT {_path(request)}/index", body)

    def UpdateBatch(self, request: Any, context: grpc.ServicerContext) -> Any:
        operations = [GrpcToRest.convert_points_update_operation(operation) for operation in request.operations]
        body = models.UpdateOperations(operations=operations)
        done = self._asked(context, f"POST {_path(request)}/points/batch", body)
        return messages.UpdateBatchResponse(result=[_update_result(one) for one in done])

    def _updated(self, context: grpc.ServicerContext, call: str, body: models.BaseModel) -> Any:
        return messages.PointsOperationResponse(result=_update_result(self._asked(context, call, body)))

    def Get(self, request: Any, context: grpc.ServicerContext) -> Any:
        ids = [GrpcToRest.convert_point_id(point) for point in request.ids]
        body = models.PointRequest(ids=ids, **_selected(request))
        found = self._asked(context, f"POST {_path(request)}/points", body)
        return messages.GetResponse(result=[_record(record) for record in found])

    def Scroll(self, request: Any, context: grpc.ServicerContext) -> Any:
        given = _given(request, offset=GrpcToRest.convert_point_id, limit=int, filter=GrpcToRest.convert_filter)
        found = self._asked(
            context, f"POST {_path(request)}/points/scroll", models.ScrollRequest(**given, **_selected(request))
        )
        offset = found["next_page_offset"]
        return messages.ScrollResponse(
            result=[_record(record) for record in found["points"]],
            next_page_offset=None if offset is None else RestToGrpc.convert_extended_point_id(offset),
        )

    def Count(self, request: Any, context: grpc.ServicerContext) -> Any:
        body = models.CountRequest(**_given(request, filter=GrpcToRest.convert_filter, exact=bool))
        found = self._asked(context, f"POST {_path(request)}/points/count", body)
        return messages.CountResponse(result=messages.CountResult(count=found["count"]))

    def QueryBatch(self, request: Any, context: grpc.ServicerContext) -> Any:
        body = models.QueryRequestBatch(searches=[GrpcToRest.convert_query_points(one) for one in request.query_points])
        found = self._asked(context, f"POST {_path(request)}/points/query/batch", body)
        return messages.QueryBatchResponse(result=[_batch_result(one["points"]) for one in found])


def _selected(request: Any) -> dict[str, Any]:
    """Which parts of points are wanted, as REST says it."""
    return {
        "with_payload": GrpcToRest.convert_with_payload_interface(request.with_payload),
        "with_vector": GrpcToRest.convert_with_vectors_selector(request.with_vectors),
    }


def _batch_result(points: Json) -> Any:
    scored = [RestToGrpc.convert_scored_point(models.ScoredPoint(**point)) for point in points]
    return messages.BatchResult(result=scored)


def _record(record: Json) -> Any:
    return RestToGrpc.convert_record(models.Record(**{**record, "payload": record["payload"] or {}}))


def _update_result(result: Json) -> Any:
    status = {"completed": "Completed", "wait_timeout": "WaitTimeout"}[result["status"]]
    return messages.UpdateResult(operation_id=result["operation_id"], status=messages.UpdateStatus.Value(status))


def serve(answer: Answer, most_bytes: int) -> tuple[grpc.Server, int]:
    """Listen on the loopback interface.

    Args:
        answer: Gives what a REST call gets.
        most_bytes: Largest message that it takes.

    Returns:
        The server, and its port.
    """
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", most_bytes)])
    messages.add_CollectionsServicer_to_server(Collections(answer), server)
    messages.add_PointsServicer_to_server(Points(answer), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port
