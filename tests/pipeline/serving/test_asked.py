"""What is said of servers from which no answer comes: who is there, what they have at hand, and how old the last
one is.
"""

import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tokenmill.pipeline.serving.asked import words_of
from tokenmill.stages import last_answer_s

METRICS = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="mine"} 14.0
vllm:num_requests_running{engine="1",model_name="mine"} 2.0
vllm:num_requests_waiting{engine="0",model_name="mine"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
"""


@contextmanager
def serving(status: int, metrics: str = "") -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            texts = {"/v1/models": "{}", "/metrics": metrics}
            text = texts.get(self.path, "")
            self.send_response(status if text else 404)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def test_each_server_is_named_with_what_it_says():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with serving(200, METRICS) as busy, serving(200) as other, serving(401) as rented:
        said = words_of("mine", [busy, other, rented, gone], 290.4)
    assert said == (
        f"captioner mine waits for 4 servers, the last answer 290 s ago: {busy} answers (16 in flight, 3 wait), "
        f"{other} answers, {rented} answers 401, {gone} does not answer ([Errno 111] Connection refused)"
    )


def test_few_of_many_are_named():
    with serving(200) as url:
        said = words_of("mine", [url] * 11, None)
        assert words_of("mine", [url], None) == f"captioner mine waits for 1 server: {url} answers"
    assert said.count(url) == 8 and said.endswith(", and 3 more")


def test_the_last_answer_is_the_newest_that_stands_there(tmp_path):
    assert last_answer_s(str(tmp_path / "none")) is None
    for name, age_s in (("old", 500), ("new", 90)):
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    assert 89 < last_answer_s(str(tmp_path)) < 100
