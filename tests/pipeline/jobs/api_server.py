"""As much of a Kubernetes API server as jobs use, on loopback: objects are checked by KubeRay's schemas and kept."""

import json
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import yaml
from crds import errors

_KINDS = "configmaps|pods|rayjobs|raycronjobs"
_PATH = re.compile(rf"/(?:api/v1|apis/ray\.io/v1)/namespaces/([^/]+)/({_KINDS})(?:/([^/]+))?(/log)?")


class ApiServer:
    """What it was told stands in `kept`, by (namespace, plural, name)."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.log = "the driver's words\n"

    def answer(self, method: str, url: str, body: bytes) -> tuple[int, Any]:
        parsed = urlparse(url)
        found = _PATH.fullmatch(parsed.path)
        if found is None:
            return 404, {"reason": "NotFound"}
        namespace, plural, name, is_log = found.groups()
        if is_log:
            return 200, self.log
        if method == "GET" and name is None:
            asked = parse_qs(parsed.query).get("labelSelector", [""])[0]
            selector = dict(part.split("=") for part in asked.split(",") if part)
            items = [item for (n, p, _), item in self.kept.items() if (n, p) == (namespace, plural)]
            fits = [item for item in items if selector.items() <= item["metadata"].get("labels", {}).items()]
            return 200, {"items": fits}
        if method in ("POST", "PUT"):
            item = json.loads(body)
            version = item["metadata"].pop("resourceVersion", "1")
            if wrong := errors(item):
                return 422, {"message": wrong}
            key = (namespace, plural, item["metadata"]["name"])
            if method == "POST" and key in self.kept:
                return 409, {"reason": "AlreadyExists"}
            stands = self.kept.get(key, {"metadata": {"uid": str(uuid.uuid4()), "resourceVersion": "1"}})["metadata"]
            if method == "PUT" and version != stands["resourceVersion"]:
                return 409, {"reason": "Conflict"}
            about = item["metadata"] | {name: stands[name] for name in ("uid", "resourceVersion")}
            about |= {"creationTimestamp": f"{len(self.kept):04}"}
            self.kept[key] = item | {"metadata": about}
            return 201 if method == "POST" else 200, self.kept[key]
        key = (namespace, plural, unquote(name))
        if key not in self.kept:
            return 404, {"reason": "NotFound"}
        return 200, self.kept.pop(key) if method == "DELETE" else self.kept[key]


@contextmanager
def running(folder: Path) -> Iterator[tuple[ApiServer, Path]]:
    """The server, and a kubeconfig that leads to it."""
    api = ApiServer()

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, said = api.answer(self.command, self.path, body)
            data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(said, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = _do  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        document = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
        document |= {"users": [{"name": "u", "user": {}}], "current-context": "x"}
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(document))
        try:
            yield api, path
        finally:
            server.shutdown()
