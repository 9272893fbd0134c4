"""A local server that W&B's SDK takes for W&B's: enough of it for runs, files, artifacts and views.

It keeps the lines of a streamed file, such as a run's history, by the number that the SDK sends
with them. A row that is sent again under another number is there twice. The server can answer late,
answer with errors, and go away.
"""

import base64
import gzip
import json
import re
import sys
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

KEY = "0123456789abcdef0123456789abcdef01234567"


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@dataclass
class ServedRun:
    """Run as the server stores it."""

    id: str
    entity: str
    project: str
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)  # by streamed file and number
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    def streamed(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self.lines.get(name, {}).items())]

    @property
    def history(self) -> list[dict[str, Any]]:
        return self.streamed("wandb-history.jsonl")

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.streamed("wandb-summary.json")
        return lines[-1] if lines else {}

    @property
    def state(self) -> str:
        if self.exit_code is None:
            return "running"
        return "failed" if self.exit_code else "finished"

    @property
    def storage_id(self) -> str:
        return encoded(f"Run:v1:{self.id}:{self.project}:{self.entity}")


class Server:
    """Server on a free port of this machine, which answers within a `with` block.

    Attributes:
        delay: Seconds before each answer.
        errs: Whether each answer has status 500.
        unknown: GraphQL operations that were called and that the server does not have.
    """

    def __init__(self, entity: str = "tester") -> None:
        self.entity = entity
        self.delay = 0.0
        self.errs = False
        self.runs: dict[str, ServedRun] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.storage: dict[str, bytes] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.charts: dict[str, dict[str, Any]] = {}
        self.operations: Counter[str] = Counter()
        self.unknown: list[str] = []
        self.lock = threading.RLock()
        self.port = 0
        self.http: ThreadingHTTPServer | None = None

    @property
    def cells(self) -> list[ServedRun]:
        """Runs of cells, without the run that contains a report."""
        return [run for run in self.runs.values() if run.job_type == "train"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def start(self) -> None:
        """Start to answer, after `go_away` on the same port as before."""
        self.http = _HTTPServer(("127.0.0.1", self.port), _handler(self))
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def go_away(self) -> None:
        """Close all connections, and refuse new ones."""
        if self.http:
            self.http.shutdown()
            self.http.server_close()
            self.http = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.go_away()

    # Answers to GraphQL operations; each method is called like its operation.

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        self.operations[operation] += 1
        function = getattr(self, f"_{operation[0].lower()}{operation[1:]}", None)
        if function is None:
            self.unknown.append(operation)
            return {"errors": [{"message": f"the test's server has no {operation}"}]}
        nested = variables.get("input")
        if isinstance(nested, dict):
            variables = variables | nested
        try:
            return {"data": function(variables)}
        except RefusedError as error:
            return {"errors": [{"message": str(error)}]}

    def _project(self, name: str) -> dict[str, Any]:
        return {
            "id": encoded(f"Project:v1:{name}:{self.entity}"),
            "internalId": encoded("ProjectInternalId:1"),
            "name": name,
            "entity": {"id": encoded(self.entity), "name": self.entity},
        }

    def _viewer(self, v: dict[str, Any]) -> dict[str, Any]:
        user = {"id": encoded("User:1"), "entity": self.entity, "username": self.entity}
        user |= {"email": "t@example.invalid", "name": "T", "flags": "{}", "deletedAt": None}
        return {"viewer": user | {"admin": False, "apiKeys": {"edges": []}, "teams": {"edges": []}}}

    def _getDefaultEntity(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        viewer = self._viewer(v)["viewer"]
        return {"viewer": viewer | {"defaultEntity": {"name": self.entity}}}

    def _serverFeaturesQuery(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"serverInfo": {"features": []}}

    def _serverInfo(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        latest = {"outOfDate": False, "latestVersionString": "0.80.0"}
        return {
            "serverInfo": {
                "cliVersionInfo": {"max_cli_version": "99.0.0"},
                "latestLocalVersionInfo": latest | {"versionOnThisInstanceString": "0.80.0"},
            }
        }

    def _organizationCoreWeaveOrganizationID(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"entity": {"organization": None}}

    def _upsertBucket(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        name = v.get("name") or next(r.id for r in self.runs.values() if r.storage_id == v["id"])
        new = name not in self.runs
        default = ServedRun(name, v.get("entity") or self.entity, v.get("project") or "?")
        run = self.runs.setdefault(name, default)
        known = {"displayName": "name", "groupName": "group", "jobType": "job_type", "tags": "tags"}
        for key, attribute in known.items():
            if v.get(key) is not None:
                setattr(run, attribute, v[key])
        if v.get("config"):
            run.config = json.loads(v["config"])
        bucket = {"id": run.storage_id, "name": run.id, "displayName": run.name}
        bucket |= {"description": "", "config": json.dumps(run.config), "sweepName": None}
        bucket |= {"project": self._project(run.project), "historyLineCount": len(run.history)}
        return {"upsertBucket": {"inserted": new, "bucket": bucket}}

    def _runResumeStatus(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        model = self._project(v["project"])
        run = self.runs.get(v["name"])
        model["bucket"] = None
        if run:
            events = run.streamed("wandb-events.jsonl")
            run.exit_code = None
            model["bucket"] = {
                "id": run.storage_id,
                "name": run.id,
                "displayName": run.name,
                "summaryMetrics": json.dumps(run.summary),
                "config": json.dumps(run.config),
                "tags": run.tags,
                "notes": "",
                "historyLineCount": len(run.history),
                "eventsLineCount": len(events),
                "logLineCount": 0,
                "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
                "eventsTail": json.dumps([json.dumps(row) for row in events[-1:]]),
                "wandbConfig": json.dumps({"t": 1}),
            }
        return {"model": model}

    def _runStoppedStatus(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"project": {"run": {"stopped": False}}}

    def _fragment(self, run: ServedRun) -> dict[str, Any]:
        steps = [row["_step"] for row in run.history]
        return {
            "id": run.storage_id,
            "projectId": "1",
            "name": run.id,
            "displayName": run.name,
            "tags": run.tags,
            "state": run.state,
            "group": run.group,
            "jobType": run.job_type,
            "config": json.dumps(run.config),
            "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": "{}",
            "historyLineCount": len(steps),
            "historyKeys": {"lastStep": max(steps, default=-1), "keys": {}},
            "createdAt": "2026-01-01T00:00:00",
            "heartbeatAt": "2026-01-01T00:00:00",
            "user": {"name": "T", "username": self.entity},
            **dict.fromkeys(("sweepName", "commit", "description", "notes")),
            "readOnly": False,
        }

    def _run(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(v["name"])
        found = run is not None and run.project == v["project"]
        return {"project": {"run": self._fragment(run) if run and found else None}}

    _runHistoryKeys = _run  # noqa: N815

    def _runs(self, v: dict[str, Any]) -> dict[str, Any]:
        wanted = json.loads(v.get("filters") or "{}")
        runs = [run for run in self.runs.values() if run.project == v["project"]]
        if "jobType" in wanted:
            runs = [run for run in runs if run.job_type == wanted["jobType"]]
        edges = [{"node": self._fragment(run), "cursor": run.id} for run in runs]
        page = {"endCursor": None, "hasNextPage": False}
        found = {"edges": edges, "pageInfo": page}
        return {
            "project": {"internalId": "1", "runCount": len(runs), "readOnly": False, "runs": found}
        }

    def _runFiles(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = self.runs[v["name"]]
        names = [n for n in run.files if not v.get("fileNames") or n in v["fileNames"]]
        edges = [
            {
                "node": {
                    "id": encoded(name),
                    "name": name,
                    "url": f"{self.url}/storage/run/{run.id}/{name}",
                    "directUrl": f"{self.url}/storage/run/{run.id}/{name}",
                    "sizeBytes": len(run.files[name]),
                    "mimetype": "application/octet-stream",
                    "updatedAt": "2026-01-01T00:00:00",
                    "md5": "",
                },
                "cursor": name,
            }
            for name in names
        ]
        page = {"endCursor": None, "hasNextPage": False}
        files = {"edges": edges, "pageInfo": page}
        return {"project": {"internalId": "1", "run": {"fileCount": len(names), "files": files}}}

    def _createRunFiles(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = self.runs[v["run"]]
        urls = [
            {"name": n, "uploadUrl": f"{self.url}/storage/run/{run.id}/{n}"} for n in v["files"]
        ]
        made = {"runID": run.storage_id, "uploadHeaders": [], "files": urls}
        return {"createRunFiles": made}

    def _markRunFilesUploaded(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"markRunFilesUploaded": {"success": True}}

    def _artifactType(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"project": {"artifact": None}}

    def _createArtifact(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        key = encoded(f"Artifact:{uuid.uuid4().hex}")
        self.artifacts[key] = v["input"] | {"state": "PENDING", "files": {}}
        sequence = {"id": encoded("sequence"), "latestArtifact": None}
        made = {"id": key, "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": made}}

    def _manifest(self, key: str) -> dict[str, Any]:
        file = {"id": key, "uploadUrl": f"{self.url}/storage/manifest/{key}", "uploadHeaders": []}
        return {"artifactManifest": {"id": key, "file": file}}

    def _createArtifactManifest(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"createArtifactManifest": self._manifest(encoded(f"Manifest:{v['artifactID']}"))}

    def _updateArtifactManifest(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"updateArtifactManifest": self._manifest(v["artifactManifestID"])}

    def _createArtifactFiles(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        edges = [
            {
                "node": {
                    "storagePath": file["name"],
                    "uploadUrl": f"{self.url}/storage/artifact/{file['artifactID']}/{file['name']}",
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": file["artifactID"]},
                }
            }
            for file in v["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _commitArtifact(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        artifact = self.artifacts[v["artifactID"]]
        artifact["state"] = "COMMITTED"
        made = {"id": v["artifactID"], "digest": artifact["digest"]}
        return {"commitArtifact": {"artifact": made}}

    def _useArtifact(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"useArtifact": {"artifact": {"id": v["artifactID"]}}}

    def _clientIDMapping(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"clientIDMapping": None}

    def _upsertModel(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        project = self._project(v["name"])
        return {
            "upsertModel": {"model": project | {"description": ""}, "project": project}
            | {"inserted": True}
        }

    def _createCustomChart(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        name = f"{v['entity']}/{v['chartName']}"
        if name in self.charts:
            raise RefusedError(f"chart {name} already exists")
        self.charts[name] = v
        return {"createCustomChart": {"chart": {"id": encoded(f"chart:{name}")}}}

    def _view(self, v: dict[str, Any]) -> dict[str, Any]:
        edges = [
            {"node": {"id": key, "displayName": view["displayName"], "spec": view["spec"]}}
            for key, view in self.views.items()
            if view["name"] == v["viewName"] and view["projectName"] == v["name"]
        ]
        return {"project": {"allViews": {"edges": edges}}}

    def _upsertView2(self, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        key = v.get("id") or encoded(f"View:{uuid.uuid4().hex}")
        new = key not in self.views
        self.views[key] = self.views.get(key, {}) | v
        return {"upsertView": {"view": {"id": key, "name": v["name"]}, "inserted": new}}


class RefusedError(Exception):
    """Request that the server answers with an error."""


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *arguments: Any) -> None:
        self.connections: set[Any] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self.connections):
            self.shutdown_request(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the errors of connections that end early."""
        if not isinstance(sys.exc_info()[1], OSError | ValueError):
            super().handle_error(request, client_address)


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                raw = b""
                while length := int(self.rfile.readline().strip() or b"0", 16):
                    raw += self.rfile.read(length)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

        def reply(self, content: Any, status: int = 200) -> None:
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def route(self) -> None:
            path, body = unquote(urlsplit(self.path).path), self.body()
            time.sleep(server.delay)
            if server.errs:
                self.reply({"error": "the server errs"}, 500)
                return
            with server.lock:
                self.reply(*handled(self.command, path, body))

        do_GET = do_POST = do_PUT = route  # noqa: N815

    def handled(command: str, path: str, body: bytes) -> tuple[Any, int]:
        if path == "/graphql" and command == "GET":
            return {"error": "it takes POST"}, 405
        if path == "/graphql":
            request = json.loads(body)
            named = re.search(r"\b(?:query|mutation)\s+(\w+)", request["query"])
            operation = request.get("operationName") or (named[1] if named else "anonymous")
            return server.answer(operation, request.get("variables") or {}), 200
        if streamed := re.match(r"/files/[^/]+/[^/]+/([^/]+)/file_stream$", path):
            run, content = server.runs[streamed[1]], json.loads(body)
            for name, chunk in (content.get("files") or {}).items():
                lines = run.lines.setdefault(name, {})
                lines |= dict(enumerate(chunk["content"], start=chunk["offset"]))
            if content.get("complete"):
                run.exit_code = content.get("exitcode")
            return {"exitcode": None, "limits": {}}, 200
        if path.startswith("/storage/"):
            if command != "PUT":
                return server.storage.get(path, b""), 200 if path in server.storage else 404
            server.storage[path] = body
            if file := re.match(r"/storage/run/([^/]+)/(.+)", path):
                server.runs[file[1]].files[file[2]] = body
            return {}, 200
        return {"error": "not found"}, 404

    return Handler
