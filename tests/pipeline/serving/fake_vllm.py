"""A program that is started as `vllm serve` is, and does as its extra arguments say.

--fake-start-s S   healthy after so long
--fake-dies S      ends so long after its start, with code 3
--fake-unwell      never healthy
--fake-child FILE  starts a process that outlives it, and writes its process id there
--fake-delay-s S   of an answer
--fake-notes FILE  adds a line for each request that it takes: its port and when
"""

import argparse
import base64
import http.server
import io
import itertools
import json
import os
import subprocess
import sys
import threading
import time

CAPTION = "a red circle above a blue square on a white ground"

parser = argparse.ArgumentParser()
parser.add_argument("serve")
parser.add_argument("model")
parser.add_argument("--served-model-name", required=True)
parser.add_argument("--dtype", required=True)
parser.add_argument("--host", required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--tensor-parallel-size", type=int)
parser.add_argument("--fake-start-s", type=float, default=0.3)
parser.add_argument("--fake-dies", type=float)
parser.add_argument("--fake-unwell", action="store_true")
parser.add_argument("--fake-child")
parser.add_argument("--fake-delay-s", type=float, default=0.0)
parser.add_argument("--fake-notes")
parser.add_argument("--fake-diary")
given = parser.parse_args()
NUMBERS = itertools.count()
STARTED = time.monotonic()


def is_grey(document: dict) -> bool:
    from PIL import Image

    url = document["messages"][0]["content"][0]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
        return all(low == high for low, high in picture.getextrema())


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        is_well = not given.fake_unwell and time.monotonic() - STARTED > given.fake_start_s
        self.reply(200 if is_well else 503, {})

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if given.fake_notes:
            with open(given.fake_notes, "a") as notes:
                notes.write(f"{given.port}\n")
        is_look = given.fake_diary is not None and is_grey(document)
        number = f"{os.getpid()}.{next(NUMBERS)}"
        self.note(f"?{number}" if is_look else f"+{number}")
        time.sleep(given.fake_delay_s)
        if document["model"] != given.served_model_name:
            self.reply(404, {"error": {"message": f"The model {document['model']} does not exist"}})
            return
        choice = {"index": 0, "message": {"role": "assistant", "content": CAPTION}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 90, "completion_tokens": 10}
        self.reply(200, {"choices": [choice], "usage": usage})
        self.note(f"-{number}")

    def note(self, what: str) -> None:
        if given.fake_diary:
            with open(given.fake_diary, "a") as diary:
                diary.write(f"{what}\n")

    def reply(self, status: int, document: dict) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request, client_address) -> None:
        """A client that is gone is no news; a traceback would push what matters out of the log's last lines."""


print(f"serving {given.model}; GPUs {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}", flush=True)
if given.fake_child:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    with open(given.fake_child, "a") as file:
        file.write(f"{child.pid}\n")
if given.fake_dies is not None:

    def die() -> None:
        print("CUDA error: the fake GPU fell off", flush=True)
        os._exit(3)

    threading.Timer(given.fake_dies, die).start()
Server((given.host, given.port), Handler).serve_forever()
