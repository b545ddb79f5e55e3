"""The Storage Read API of the fake BigQuery: CreateReadSession and ReadRows, with the real messages over gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pyarrow as pa
from google.cloud.bigquery_storage import types

from tests.fakes.bigquery_engine import ApiError, Engine

_SERVICE = "google.cloud.bigquery.storage.v1.BigQueryRead"
_BATCH = 300
"""Rows in a message: few, so that tests see several."""


@contextmanager
def serve_storage(engine: Engine) -> Iterator[str]:
    """Run the service; yields its address."""
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((_handlers(_Reads(engine)),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def _handlers(reads: _Reads) -> Any:
    return grpc.method_handlers_generic_handler(
        _SERVICE,
        {
            "CreateReadSession": grpc.unary_unary_rpc_method_handler(
                reads.create,
                request_deserializer=types.CreateReadSessionRequest.deserialize,
                response_serializer=types.ReadSession.serialize,
            ),
            "ReadRows": grpc.unary_stream_rpc_method_handler(
                reads.read,
                request_deserializer=types.ReadRowsRequest.deserialize,
                response_serializer=types.ReadRowsResponse.serialize,
            ),
        },
    )


class _Reads:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._streams: dict[str, pa.Table] = {}

    def create(self, request: types.CreateReadSessionRequest, context: grpc.ServicerContext) -> types.ReadSession:
        session = request.read_session
        assert request.parent.startswith("projects/"), request.parent
        assert session.data_format == types.DataFormat.ARROW, session
        assert request.max_stream_count == 1, "only one stream keeps the order"
        _, project, _, dataset, _, table = session.table.split("/")
        options = session.read_options
        try:
            self._engine.need("bigquery.readsessions.create", f"Project {request.parent}")
            rows = self._engine.read_rows(
                (project, dataset, table), list(options.selected_fields), options.row_restriction
            )
        except ApiError as error:
            codes = {403: grpc.StatusCode.PERMISSION_DENIED, 404: grpc.StatusCode.NOT_FOUND}
            context.abort(codes.get(error.status, grpc.StatusCode.INVALID_ARGUMENT), error.message)
        name = f"{request.parent}/locations/eu/sessions/{len(self._streams)}"
        streams = [types.ReadStream(name=f"{name}/streams/0")] if len(rows) else []
        self._streams[f"{name}/streams/0"] = rows
        schema = types.ArrowSchema(serialized_schema=rows.schema.serialize().to_pybytes())
        return types.ReadSession(name=name, table=session.table, arrow_schema=schema, streams=streams)

    def read(self, request: types.ReadRowsRequest, context: grpc.ServicerContext) -> Iterator[types.ReadRowsResponse]:
        rows = self._streams[request.read_stream]
        for batch in rows.slice(request.offset).to_batches(max_chunksize=_BATCH):
            data = batch.serialize().to_pybytes()
            yield types.ReadRowsResponse(
                arrow_record_batch=types.ArrowRecordBatch(serialized_record_batch=data, row_count=len(batch)),
                row_count=len(batch),
            )
