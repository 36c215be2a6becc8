"""An MLflow server that takes everything and keeps what it was sent: enough of REST API 2.0 for a line's run."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class FakeMlflow:
    """`with FakeMlflow(folder) as server`: artifacts lie in `folder`; `server.sent` has paths, queries and bodies."""

    def __init__(self, folder: Path):
        self.sent: list[str] = []
        self.logins: set[str] = set()
        outer, location = self, folder.as_uri()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(b"")

            def do_POST(self) -> None:
                self.answer(self.rfile.read(int(self.headers["Content-Length"] or 0)))

            do_PATCH = do_POST

            def answer(self, body: bytes) -> None:
                outer.sent.append(f"{self.command} {self.path}\n{body.decode()}")
                outer.logins.add(self.headers.get("Authorization", ""))
                path = urlsplit(self.path).path.removeprefix("/api/2.0/mlflow/")
                data = json.dumps(answer_to(path, location)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]

    def __enter__(self) -> FakeMlflow:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def answer_to(path: str, location: str) -> dict[str, Any]:
    info = {"run_id": "r1", "run_uuid": "r1", "experiment_id": "1", "status": "RUNNING", "start_time": 1,
            "artifact_uri": f"{location}/r1", "lifecycle_stage": "active"}  # fmt: skip
    experiment = {"experiment_id": "1", "name": "e", "lifecycle_stage": "active", "artifact_location": location}
    run = {"info": info, "data": {}}
    return {
        "experiments/get-by-name": {"experiment": experiment},
        "experiments/get": {"experiment": experiment},
        "runs/create": {"run": run},
        "runs/get": {"run": run},
        "runs/update": {"run_info": info},
    }.get(path, {})
