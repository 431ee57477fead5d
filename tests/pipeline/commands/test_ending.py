"""Whatever ends a command is one line and an exit code: each failure that is no bug by real exceptions, and bugs."""

import errno
import os
import pickle
import socket
import ssl

import botocore.exceptions as boto
import numpy as np
import pyarrow as pa
import pytest
import ray.exceptions
import torch
from deltalake.exceptions import DeltaError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from safetensors import SafetensorError

from tokenmill.pipeline.commands import cli, options
from tokenmill.storage.errors import UserError
from tokenmill.storage.failure_log import redacted
from tokenmill.storage.failures import FAILURES, find, line


def raised(call) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def of_store(code: str) -> Exception:
    return boto.ClientError({"Error": {"Code": code, "Message": "words of the store"}}, "PutObject")


def number(name: str, path: str | None = None) -> OSError:
    return OSError(getattr(errno, name), os.strerror(getattr(errno, name)), path)


def on_ray(cause: Exception) -> Exception:
    """As `ray.get` raises what a task raised."""
    text = f"Traceback (most recent call last):\n  ray::work()\n{type(cause).__name__}: {cause}"
    return ray.exceptions.RayTaskError("work", text, cause).as_instanceof_cause()


def wrapped(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def write_full() -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def write_full_by_arrow() -> None:
    with pa.fs.LocalFileSystem().open_output_stream("/dev/full") as stream:
        stream.write(b"x" * 100_000)


full = "Error while serializing: I/O error: No space left on device (os error 28)"
mismatch = (
    "Version mismatch: The cluster was started with:\n    Ray: 2.51.0\n    Python: 3.11.9\n"
    "This process on 10.0.0.2 was started with:\n    Ray: 2.60.0\n    Python: 3.11.15\n"
)
low = "Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.0.0.7) was 15.2GB / 16GB"
died = (
    "The actor died unexpectedly before finishing this task.\n\tip: 10.0.0.7\nThe actor is dead because its worker "
    "process has died. Worker exit type: SYSTEM_ERROR Some common causes include: (1) it was killed by the OOM killer"
)
CASES = {
    "shared_memory": [
        ray.exceptions.ObjectStoreFullError("full"),
        RuntimeError(
            "DataLoader worker is killed by signal: Bus error. It is possible that ... insufficient shared memory"
        ),
    ],
    "disk_full": [
        raised(write_full),
        raised(write_full_by_arrow),
        DeltaError("Generic LocalFileSystem error: Unable to copy data to file: No space left on device (os error 28)"),
        WorkerGroupError("snippet", {0: SafetensorError(full)}),
        on_ray(number("ENOSPC", "/data/x")),
        RuntimeError(f"Traceback (most recent call last):\n  File x\nsafetensors.SafetensorError: {full}"),
        wrapped(RuntimeError("commit"), number("ENOSPC")),
        ray.exceptions.OutOfDiskError("disk"),
    ],
    "quota": [number("EDQUOT", "/home/me/x")],
    "file_size": [number("EFBIG", "/home/me/x")],
    "read_only": [number("EROFS", "/data/x")],
    "permission": [number("EACCES", "/data/x"), DeltaError("Permission denied (os error 13)")],
    "open_files": [number("EMFILE", "/data/x"), OSError(24, "Failed to open. Detail: [errno 24] Too many open files")],
    "processes": [RuntimeError("can't start new thread"), number("EAGAIN")],
    "disk_broken": [number("EIO", "/data/x"), number("ESTALE")],
    "no_file": [raised(lambda: os.listdir("/none/x")), number("ENOTDIR", "/data/x")],
    "gpu_memory": [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...")],
    "memory": [
        raised(lambda: np.zeros(10**15)),
        raised(lambda: pa.allocate_buffer(10**15)),
        raised(lambda: torch.zeros(10**15)),
        ray.exceptions.OutOfMemoryError(low),
        MemoryError(),
        ImportError("/x/_internal.abi3.so: failed to map segment from shared object"),
        number("ENOMEM"),
    ],
    "gpu": [RuntimeError("Found no NVIDIA driver on your system."), RuntimeError("CUDA error: device-side assert")],
    "clock": [of_store("RequestTimeTooSkewed"), OSError("AWS Error REQUEST_TIME_TOO_SKEWED during PutObject")],
    "bucket": [of_store("NoSuchBucket")],
    "no_credentials": [boto.NoCredentialsError()],
    "credentials": [
        of_store("InvalidAccessKeyId"),
        of_store("SignatureDoesNotMatch"),
        DeltaError("Generic S3 error: <Error><Code>SignatureDoesNotMatch</Code></Error>"),
    ],
    "store_permission": [of_store("AccessDenied"), OSError("AWS Error ACCESS_DENIED during HeadObject operation")],
    "no_store": [boto.EndpointConnectionError(endpoint_url="http://127.0.0.1:9")],
    "certificate": [ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate")],
    "ray_version": [RuntimeError(mismatch)],
    "ray_client": [ValueError("Ray Client requires pip package `ray[client]`.")],
    "no_cluster": [ConnectionError("Could not find any running Ray instance. Please specify the one to connect to.")],
    "lost_node": [
        ray.exceptions.NodeDiedError("the node 10.0.0.7 died"),
        ray.exceptions.ActorDiedError(),
        WorkerGroupError("rank 1 died", {1: ray.exceptions.ActorDiedError()}),
        WorkerGroupError(
            "rank 0 died", {0: WorkerHealthCheckFailedError("A worker health check failed", RuntimeError(died))}
        ),
        RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.7]:3324"),
    ],
    "network": [
        raised(lambda: socket.create_connection(("127.0.0.1", 9), 1)),
        raised(lambda: socket.getaddrinfo("no-such-host.invalid", 80)),
        OSError("Name or service not known"),
    ],
    "packages": [raised(lambda: __import__("no_such_package"))],
}
assert set(CASES) == set(FAILURES), "each definition has its cases, and no other"


def ended(monkeypatch, capsys, error: BaseException) -> tuple[int, str]:
    """Exit code and stderr of a command that raises `error`."""

    def fails() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return exit_.value.code, capsys.readouterr().err


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(options, "places", [str(tmp_path)])
    return tmp_path


@pytest.mark.parametrize(
    ("name", "error"),
    [pytest.param(name, case, id=f"{name}{i}") for name, cases in CASES.items() for i, case in enumerate(cases)],
)
def test_what_is_no_bug_is_one_line_with_the_next_action(name, error, root, monkeypatch, capsys):
    code, said = ended(monkeypatch, capsys, error)
    log = next((root / "runs/logs").iterdir())
    assert (code, said) == (
        1,
        f"tokenmill: {line(name, find(error)[1], [str(root)], store=WHERE)} (traceback: {log})\n",
    )
    assert "{" not in said and "None" not in said
    assert type(error).__name__ in log.read_text()


WHERE = "AWS, region us-east-1"


@pytest.fixture(autouse=True)
def at_aws(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)


def test_these_lines_are_said(root, monkeypatch, capsys):
    """Some of them word by word; the others are made in the same way."""

    def said(error: BaseException) -> str:
        return ended(monkeypatch, capsys, error)[1].removeprefix("tokenmill: ").split(" (traceback")[0]

    again = "then run the same command again to continue"
    assert said(number("EDQUOT", "/home/me/x")) == (
        f"/home/me/x: your quota on this disk is used up; delete something or ask for more, {again}"
    )
    assert said(RuntimeError(mismatch)) == (
        f"{root}: the cluster runs Ray 2.51.0 and Python 3.11.9, this process Ray 2.60.0 and Python 3.11.15; "
        "install the same versions of both here and there, or leave cluster.address out"
    )
    lost = WorkerHealthCheckFailedError(died, ray.exceptions.ActorDiedError())
    assert said(WorkerGroupError("rank 0", {0: lost})).startswith(
        "a worker or its machine was lost: its worker process has died (10.0.0.7); look whether all machines are up"
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    assert said(of_store("SignatureDoesNotMatch")) == (
        f"{root}: http://store:9000 refuses the credentials (SignatureDoesNotMatch); "
        "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )
    assert said(DeltaError("No space left on device (os error 28)")).startswith(
        f"{root}: no space is left on the disk ("
    )


BUGS = [
    TypeError("unsupported operand"),
    on_ray(KeyError("media_id")),
    WorkerGroupError("rank 0", {0: AssertionError("a row went missing")}),
    RuntimeError("something"),
    wrapped(ValueError("b"), TypeError("a")),
]


@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
def test_a_bug_says_that_it_is_one_and_what_to_send(error, root, monkeypatch, capsys):
    code, said = ended(monkeypatch, capsys, error)
    log = next((root / "runs/logs").iterdir())
    assert code == 70 and said.startswith("tokenmill: This is a bug of tokenmill") and said.endswith(f": {log}\n")
    assert "Traceback (most recent call last)" in log.read_text() and "torch 2" in log.read_text()
    assert "Traceback" not in said and said.count("\n") == 1


def test_where_the_root_takes_no_log_a_temporary_folder_does(tmp_path, monkeypatch, capsys):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "runs").write_text("in the way")
    monkeypatch.setattr(options, "places", [str(tmp_path / "root")])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _, said = ended(monkeypatch, capsys, TypeError("x"))
    assert said.strip().endswith(str(next(tmp_path.glob("tokenmill-*.log"))))


def test_a_users_error_stays_as_it_is(root, monkeypatch, capsys):
    assert ended(monkeypatch, capsys, UserError("a: b; c")) == (1, "tokenmill: a: b; c\n")
    assert not (root / "runs").exists()


def test_a_keyboard_interrupt_of_a_library_says_how_to_go_on(root, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["/x/tokenmill", "run", "my config.yaml", "--set", "sources.0.uri=s3://me:pass1@h/x"]
    )
    code, said = ended(monkeypatch, capsys, KeyboardInterrupt())
    assert code == 130 and said.endswith(
        "run it again: /x/tokenmill run 'my config.yaml' --set sources.0.uri=s3://[hidden]@h/x\n"
    )


SECRETS = [
    "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AKIAIOSFODNN7EXAMPLE",
    "https://b.s3.amazonaws.com/k?X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F2026&X-Amz-Signature=0f1e2d3c4b5a",
    "'Authorization': 'AWS4-HMAC-SHA256 Credential=x/y, Signature=0f1e2d3c4b5a'",
    "{'session_token': 'FwoGZXIvYXdzEBYaD'}",
    "https://me:hunter2hunter2@host/x",
    "password=hunter2hunter2",
]
HIDDEN = ("wJalr", "IOSFODNN7", "0f1e2d", "FwoGZX", "hunter2")


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_taken_out_of_logs_and_messages(text, root, monkeypatch, capsys):
    assert not any(word in redacted(text) for word in HIDDEN), redacted(text)
    _, said = ended(monkeypatch, capsys, TypeError(text))
    kept = next((root / "runs/logs").iterdir()).read_text()
    assert not any(word in said + kept for word in HIDDEN)


def test_what_the_environment_calls_secret_is_taken_out(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "plain-looking words")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghij")
    assert redacted("with plain-looking words and hf_abcdefghij") == "with [hidden] and [hidden]"
    harmless = (
        "train: 12 tokens; token_type=3, key 'media_id', 4,000 tokens/s, /a/b:c, keys=media_id, sort_key=size_bytes"
    )
    assert redacted(harmless) == harmless


def test_failures_are_known_after_they_crossed_processes():
    for name in ("disk_full", "memory", "permission"):
        for error in CASES[name][:1]:
            assert find(pickle.loads(pickle.dumps(error)))[0] == name
