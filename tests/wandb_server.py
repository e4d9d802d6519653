"""What a run needs of W&B's server, on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, key: str) -> Iterator[SimpleNamespace]:
    """Serve on this machine, and point wandb here. ``summary``: of the run that the server has; ``rows``: what it was
    sent; while ``silent`` is set it takes requests and never answers; after ``die()`` nobody listens."""
    state = SimpleNamespace(summary=None, rows=[], exit_code=None, asked=[], silent=threading.Event())
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer: dict[str, Any] = {}
            if state.silent.is_set():
                over.wait()
                return
            if self.path.endswith("/graphql"):
                answer = self.graphql(json.loads(body)["operationName"])
            elif self.path.endswith("/file_stream"):
                sent = json.loads(body)
                lines = sent.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
                state.rows += [json.loads(line) for line in lines]
                state.exit_code = sent.get("exitcode", state.exit_code)
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def graphql(self, operation: str) -> dict[str, Any]:
            state.asked.append(operation)
            project = {"id": "p", "name": "moe", "entity": {"id": "e", "name": "me"}}
            bucket = {
                "id": "b",
                "name": "0a1b2c3d4e5f",
                "project": project,
                "summaryMetrics": json.dumps(state.summary or {}),
                "historyLineCount": 3,
                "logLineCount": 0,
                "eventsLineCount": 0,
                "historyTail": json.dumps([json.dumps({"_step": 2, "_runtime": 5})]),
                "eventsTail": "[]",
                "config": "{}",
                "wandbConfig": json.dumps({"t": 1}),  # without it wandb takes the run for one that never began
            }
            if operation == "RunResumeStatus":
                return {"data": {"model": {**project, "bucket": bucket if state.summary else None}}}
            if operation == "UpsertBucket":
                return {"data": {"upsertBucket": {"bucket": bucket, "inserted": not state.summary}}}
            return {"data": None, "errors": [{"message": "not served here"}]}

        def log_message(self, *_: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()

    def die() -> None:
        httpd.shutdown()
        thread.join()
        httpd.server_close()

    state.die = die
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{httpd.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", key)
    try:
        yield state
    finally:
        over.set()
        die()
