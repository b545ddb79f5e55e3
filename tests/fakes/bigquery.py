"""A BigQuery that speaks the REST API over HTTP and the Storage Read API over gRPC, and checks what it is asked.

It answers what google-cloud-bigquery sends for this project: data sets, tables, query jobs (dry runs too), load jobs
(multipart and resumable uploads), results. A request that BigQuery would refuse, or that lacks a label or location, is
an error. That BigQuery accepts what passes here is not proven by it.
"""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fakes.bigquery_engine import ApiError, Engine, Name, billed, check_labels
from tests.fakes.bigquery_json import fields_json, rows_json
from tests.fakes.bigquery_storage import serve_storage


@dataclass
class FakeBigQuery:
    """A running fake.

    Args:
        engine: its tables and jobs.
        address: http://127.0.0.1:PORT of the REST API.
        storage: 127.0.0.1:PORT of the Storage Read API.
        requests: method and path of every request.
    """

    engine: Engine
    address: str
    storage: str
    requests: list[str]

    @property
    def environment(self) -> dict[str, str]:
        """What makes our warehouse use it."""
        return {"BIGQUERY_EMULATOR_HOST": self.address, "BIGQUERY_STORAGE_EMULATOR_HOST": self.storage}


@contextmanager
def serve_bigquery(bucket: Path) -> Iterator[FakeBigQuery]:
    """Run the fake on free ports of the loopback.

    Args:
        bucket: a folder for what is exported to gs://.
    """
    engine = Engine(bucket)
    requests: list[str] = []
    with serve_storage(engine) as storage:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(_Api(engine), requests))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield FakeBigQuery(engine, f"http://127.0.0.1:{server.server_port}", storage, requests)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _handler(api: _Api, requests: list[str]) -> type[BaseHTTPRequestHandler]:
    uploads: dict[str, tuple[dict[str, Any], bytearray]] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def reply(self, status: int, body: Any, **headers: str) -> None:
            data = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(data)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def answer(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            requests.append(f"{self.command} {url.path}")
            with api.engine.lock:
                try:
                    for index, (what, error) in enumerate(api.engine.failures):
                        if what in f"{self.command} {url.path}":
                            del api.engine.failures[index]
                            raise error
                    if url.path.startswith("/upload/"):
                        self.upload(url.path, query, raw)
                    else:
                        self.reply(200, api.call(self.command, url.path, query, json.loads(raw) if raw else {}))
                except ApiError as error:
                    self.reply(error.status, error.body())
                except Exception as error:  # a wrong request; a lost connection would be tried again for minutes
                    self.reply(400, ApiError(400, "invalid", f"the fake refuses it: {error!r}").body())

        def upload(self, path: str, query: dict[str, str], raw: bytes) -> None:
            if query["uploadType"] == "multipart":
                header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                metadata, media = BytesParser().parsebytes(header + raw).get_payload()
                self.reply(200, api.load(json.loads(metadata.get_payload()), media.get_payload(decode=True)))
            elif self.command == "POST":
                session = str(len(uploads))
                uploads[session] = (json.loads(raw), bytearray())
                self.reply(200, None, Location=f"http://{self.headers['Host']}{path}?uploadType=resumable&id={session}")
            else:
                job, data = uploads[query["id"]]
                data += raw
                total = self.headers["Content-Range"].rsplit("/", 1)[1]
                if total == "*" or int(total) > len(data):
                    self.reply(308, None, Range=f"bytes=0-{len(data) - 1}")
                else:
                    self.reply(200, api.load(job, bytes(data)))

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    return Handler


class _Api:
    """The methods of the REST API."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def call(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> Any:
        parts = path.removeprefix("/bigquery/v2/projects/").strip("/").split("/")
        project, kind, rest = parts[0], parts[1], parts[2:]
        if kind == "jobs":
            return self.insert(body) if method == "POST" else self.job(rest[0], query)
        if kind == "queries":
            return self.results(rest[0], query)
        assert kind == "datasets", path
        if len(rest) <= 1:
            return self.dataset(method, project, rest, body)
        assert rest[1] == "tables", path
        return self.table(method, (project, rest[0], rest[2]), rest[3:], query, body)

    def dataset(self, method: str, project: str, rest: list[str], body: dict[str, Any]) -> dict[str, Any]:
        if method == "GET":
            self.engine.need("bigquery.datasets.get", f"Dataset {project}:{rest[0]}")
            self.engine.location(project, rest[0])
            return self.engine.datasets[project, rest[0]]
        assert method == "POST"
        self.engine.need("bigquery.datasets.create", f"Project {project}")
        check_labels(body["labels"])
        assert int(body["defaultTableExpirationMs"]) >= 3_600_000, body
        assert body["location"], body
        name = (project, body["datasetReference"]["datasetId"])
        if name in self.engine.datasets:
            raise ApiError(409, "duplicate", f"Already Exists: Dataset {':'.join(name)}")
        self.engine.datasets[name] = body
        return body

    def table(self, method: str, name: Name, rest: list[str], query: dict[str, str], body: dict[str, Any]) -> Any:
        engine = self.engine
        on = f"Table {name[0]}:{name[1]}.{name[2]}"
        if rest == ["data"]:
            return self.page(engine.table(name), query)
        if method == "DELETE":
            engine.need("bigquery.tables.delete", on)
            engine.table(name)
            del engine.tables[name], engine.resources[name]
            return {}
        engine.need("bigquery.tables.get" if method == "GET" else "bigquery.tables.update", on)
        table = engine.table(name)
        if method == "PATCH":
            check_labels(body["labels"])
            assert int(body["expirationTime"]) > 0, body
            engine.resources[name] |= {key: body[key] for key in ("labels", "expirationTime")}
        return {
            "tableReference": dict(zip(("projectId", "datasetId", "tableId"), name, strict=True)),
            "schema": {"fields": fields_json(table.schema)},
            "numRows": str(len(table)),
            "numBytes": str(table.nbytes),
            "type": "TABLE",
            **engine.resources[name],
        }

    def insert(self, job: dict[str, Any]) -> dict[str, Any]:
        configuration, location = job["configuration"], job["jobReference"].get("location")
        self.engine.need("bigquery.jobs.create", f"Project {job['jobReference']['projectId']}")
        check_labels(configuration.get("labels", {}))
        if not location:
            raise ApiError(400, "invalid", "the fake wants a location for every job")
        if "load" in configuration:
            return self.load(job, None)
        query = configuration["query"]
        if query.get("useLegacySql") is not False:
            raise ApiError(400, "invalid", "the fake wants standard SQL")
        job["statistics"] = {"query": {}}
        if configuration.get("dryRun"):
            size = self.engine.bytes_of(query["query"], location)
            self.engine.run(query["query"], location)
            job["statistics"] |= {"totalBytesProcessed": str(size), "query": {"totalBytesProcessed": str(size)}}
            return job | {"status": {"state": "DONE"}}
        return self._finished(job, lambda: self.run_query(job, query, location))

    def run_query(self, job: dict[str, Any], query: dict[str, Any], location: str) -> None:
        sql, engine = query["query"], self.engine
        select = sql[re.search(r"\bSELECT\b", sql).start() :] if sql.startswith("EXPORT DATA") else sql
        size, tables = engine.bytes_of(select, location), len(engine.read(select, location))
        cost = billed(size, tables)
        if int(query.get("maximumBytesBilled", cost)) < cost:
            limit = query["maximumBytesBilled"]
            message = f"Query exceeded limit for bytes billed: {limit}. {cost} or higher required."
            raise ApiError(400, "bytesBilledLimitExceeded", message)
        job["statistics"]["query"] = {"totalBytesProcessed": str(size), "totalBytesBilled": str(cost)}
        job["statistics"]["totalBytesProcessed"] = str(size)
        if sql.startswith("EXPORT DATA"):
            engine.export(sql, location)
            return
        result = engine.run(sql, location)
        destination = query.get("destinationTable")
        if destination is not None:
            name = _name(destination)
            engine.need("bigquery.tables.create", f"Dataset {name[0]}:{name[1]}")
            if query.get("writeDisposition") != "WRITE_TRUNCATE":
                raise ApiError(400, "invalid", "the fake wants WRITE_TRUNCATE, so that a repeated job does no harm")
            partitioned = query.get("rangePartitioning")
            engine.put(name, result, {"rangePartitioning": partitioned} if partitioned else {})
            if partitioned:
                _check_partitions(result, partitioned)
        else:
            name = ("anonymous", "anonymous", job["jobReference"]["jobId"])
            engine.put(name, result)
            query["destinationTable"] = dict(zip(("projectId", "datasetId", "tableId"), name, strict=True))
        engine.results[job["jobReference"]["jobId"]] = engine.tables[name]

    def load(self, job: dict[str, Any], data: bytes | None) -> dict[str, Any]:
        load, location = job["configuration"]["load"], job["jobReference"]["location"]
        check_labels(job["configuration"].get("labels", {}))
        assert load["sourceFormat"] == "PARQUET", load
        assert load["parquetOptions"] == {"enableListInference": True}, load
        assert load["writeDisposition"] in ("WRITE_TRUNCATE", "WRITE_APPEND"), load
        job["statistics"] = {"load": {}}

        def run() -> None:
            name = _name(load["destinationTable"])
            self.engine.need("bigquery.tables.create", f"Dataset {name[0]}:{name[1]}")
            if self.engine.location(name[0], name[1]).lower() != location.lower():
                message = f"Not found: Dataset {name[0]}:{name[1]} was not found in location {location}"
                raise ApiError(404, "notFound", message)
            if data is None:
                paths = [self.engine.bucket / uri.removeprefix("gs://") for uri in load["sourceUris"]]
                tables = [pq.read_table(path, partitioning=None) for path in paths]
            else:
                tables = [pq.read_table(io.BytesIO(data))]
            if load["writeDisposition"] == "WRITE_APPEND":
                tables = [self.engine.table(name), *tables]
            self.engine.put(name, pa.concat_tables([_plain(table) for table in tables]))

        return self._finished(job, run)

    def _finished(self, job: dict[str, Any], run: Callable[[], None]) -> dict[str, Any]:
        job["status"] = {"state": "DONE"}
        try:
            run()
        except ApiError as error:
            described = error.body()["error"]["errors"][0]
            job["status"] = {"state": "DONE", "errorResult": described, "errors": [described]}
        self.engine.jobs[job["jobReference"]["jobId"]] = job
        # A job is inserted as running, so that the client has to ask again.
        return job | {"status": {"state": "RUNNING"}}

    def job(self, job_id: str, query: dict[str, str]) -> dict[str, Any]:
        job = self.engine.jobs[job_id]
        assert query["location"] == job["jobReference"]["location"], query
        return job

    def results(self, job_id: str, query: dict[str, str]) -> dict[str, Any]:
        job = self.job(job_id, query)
        failed = job["status"].get("errorResult")
        if failed:
            raise ApiError(400, failed["reason"], failed["message"])
        answer: dict[str, Any] = {"jobReference": job["jobReference"], "jobComplete": True}
        if job_id not in self.engine.results:  # a statement without rows
            return answer
        table = self.engine.results[job_id]
        answer["schema"] = {"fields": fields_json(table.schema)}
        if query.get("maxResults") == "0":
            return answer | {"totalRows": str(len(table))}
        return answer | self.page(table, query)

    def page(self, table: pa.Table, query: dict[str, str]) -> dict[str, Any]:
        """At most 100 rows, so that the client has to turn pages."""
        assert query.get("formatOptions.useInt64Timestamp") == "True", query
        start = int(query.get("pageToken", query.get("startIndex", 0)))
        size = min(100, int(query.get("maxResults", 100)))
        page = {"rows": rows_json(table.slice(start, size)), "totalRows": str(len(table))}
        return page | ({"pageToken": str(start + size)} if start + size < len(table) else {})


def _name(reference: dict[str, str]) -> Name:
    return reference["projectId"], reference["datasetId"], reference["tableId"]


def _plain(table: pa.Table) -> pa.Table:
    """Columns as BigQuery types them, and without the schema's metadata."""
    fields = [pa.field(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type) for f in table.schema]
    return table.cast(pa.schema(fields))


def _check_partitions(table: pa.Table, partitioned: dict[str, Any]) -> None:
    spread = partitioned["range"]
    if not pa.types.is_int64(table.schema.field(partitioned["field"]).type):
        raise ApiError(400, "invalid", f"the partition column {partitioned['field']} is no INT64")
    if (int(spread["end"]) - int(spread["start"])) // int(spread["interval"]) > 10_000:
        raise ApiError(400, "invalid", "a table has at most 10,000 partitions")
    if len(set(table.column(partitioned["field"]).to_pylist())) > 4_000:
        raise ApiError(400, "invalid", "a job writes at most 4,000 partitions")
