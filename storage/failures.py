"""An exception that is no bug of ours -> one line: what, where, and what to do next. The definitions of these lines.

Disks, memory, stores, networks and clusters fail in the words of a dozen libraries, none of which is imported here:
a failure is known by the name of an exception's class, by an errno or a store's code, or by a phrase that libraries
use. Of a chain of exceptions the innermost that is known counts, for Ray and Delta wrap what happened.
"""

import errno
import re
import resource
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokenmill.storage.errors import DamagedError, UserError

_MAX_DETAIL_CHARS = 300
_NOWHERE = "this machine"
AGAIN = "run the same command again to continue"
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # delta-rs draws arrows
_RUST_TRACE = re.compile(r"\n\s+0: .*", re.DOTALL)  # with RUST_BACKTRACE=1; names what is no failure, pthread_create
_RAY_DEATH = re.compile(r"The actor is dead because ([^.\n]+)")
_RAY_HOST = re.compile(r"\bip[:=]\s*'?([\d.]+)")
_RAY_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")


@dataclass(frozen=True)
class Failure:
    """One row of docs/errors.md. `what` and `do` may name `{where}`, `{detail}`, `{code}`, and what `_facts` adds."""

    what: str
    do: str
    kinds: str = ""  # names of classes of exceptions, their own or of a base
    codes: str = ""  # names of errnos, and codes of object stores
    phrases: str = ""  # a pattern in the words of the exception

    def fits(self, error: BaseException, names: set[str], text: str) -> bool:
        """Whether `error`, whose classes have these names and whose words are `text`, is this failure."""
        own = {*self.kinds.split(), *self.codes.split()}
        if own & (names | codes_of(error)):
            return True
        numbers = [getattr(errno, name) for name in self.codes.split() if hasattr(errno, name)]
        said = [rf"os error {number}\b|\b[Ee]rrno {number}\b" for number in numbers]  # as Rust and Arrow say it
        return any(re.search(pattern, text) for pattern in (*said, *filter(None, [self.phrases])))


# In this order: what is special before what is general.
FAILURES = {
    "shared_memory": Failure(
        "{where}: shared memory is too small: {detail}",
        "give it more (docker run --shm-size=8g; in Kubernetes an emptyDir of medium Memory at /dev/shm), or lower "
        "cluster.num_cpus",
        kinds="ObjectStoreFullError",
        phrases=r"insufficient shared memory|exceeds /dev/shm size|mmap .*/torch_|/dev/shm\S*.*(No space|os error 28)",
    ),
    "disk_full": Failure(
        "{where}: no space is left on the disk ({free} free now)",
        f"make space, then {AGAIN}",
        kinds="OutOfDiskError",
        codes="ENOSPC",
        phrases=r"No space left on device|inline_container\.cc.*unexpected pos",
    ),
    "quota": Failure(
        "{where}: your quota on this disk is used up",
        f"delete something or ask for more, then {AGAIN}",
        codes="EDQUOT",
        phrases="Disk quota exceeded",
    ),
    "file_size": Failure(
        "{where}: a file became larger than is allowed here",
        f"raise `ulimit -f` or use another disk, then {AGAIN}",
        codes="EFBIG",
        phrases="File too large",
    ),
    "read_only": Failure(
        "{where}: the disk is read-only",
        "mount it for writing, or name another folder (`root`, --out)",
        codes="EROFS",
        phrases="Read-only file system",
    ),
    "open_files": Failure(
        "{where}: too many open files",
        f"raise `ulimit -n` (now {{open_files}}), then {AGAIN}",
        codes="EMFILE ENFILE",
        phrases="Too many open files",
    ),
    "processes": Failure(
        "no more processes or threads can be started: {detail}",
        f"raise `ulimit -u` or the container's limit of pids, or lower cluster.num_cpus, then {AGAIN}",
        phrases="can't start new thread|Resource temporarily unavailable|pthread_create",
        kinds="BlockingIOError",
    ),
    "disk_broken": Failure(
        "{where}: the disk fails: {detail}",
        f"look at the disk or its mount (dmesg), then {AGAIN}",
        codes="EIO ESTALE ENODEV EREMOTEIO",
        phrases="Input/output error|Stale file handle",
    ),
    "no_file": Failure(
        "{where}: no such file or folder, or one where the other is wanted",
        "check the path; where something moved it while the command ran, run the command again",
        kinds="FileNotFoundError NotADirectoryError IsADirectoryError FileExistsError",
        codes="ENAMETOOLONG ENOTEMPTY ELOOP",
    ),
    "gpu_memory": Failure(
        "the GPU's memory is full: {detail}",
        "of a training, set train.resources.recompute=true or lower train.data.pack_tokens; of a stage, lower its "
        "resources.batch_rows",
        phrases="(CUDA|HIP|MPS).{0,20}out of memory|CUBLAS_STATUS_ALLOC_FAILED",
    ),
    "memory": Failure(
        "the memory of this machine or of its container is full: {detail}",
        "lower the `resources.workers` and `resources.batch_rows` of the phase or cluster.num_cpus, or use a machine "
        f"with more, then {AGAIN}",
        kinds="MemoryError OutOfMemoryError",
        codes="ENOMEM",
        phrases=r"[Cc]annot allocate memory|can't allocate memory|bad_alloc|failed to map segment|low on memory"
        "|OUT_OF_MEMORY|malloc of size",
    ),
    "gpu": Failure(
        "the GPU or its driver fails: {detail}",
        "look at nvidia-smi; to use the CPU, set num_gpus=0 in the phase's resources, train.resources.use_gpu=false",
        kinds="AcceleratorError",
        phrases="CUDA error|CUDA driver|NVIDIA driver|no kernel image|CUBLAS_STATUS|CUDNN_STATUS",
    ),
    "clock": Failure(
        "{where}: {store} refuses requests because of their time ({code}); here it is {now}",
        f"set this machine's clock (timedatectl set-ntp true), then {AGAIN}",
        codes="RequestTimeTooSkewed RequestExpired RequestInTheFuture",
        phrases="RequestTimeTooSkewed|REQUEST_TIME_TOO_SKEWED|RequestExpired|time and the (server|current) time",
    ),
    "bucket": Failure(
        "{where}: no bucket {bucket} at {store}",
        "create it, or correct the address",
        codes="NoSuchBucket 404",
        phrases="NoSuchBucket|NO_SUCH_BUCKET",
    ),
    "no_credentials": Failure(
        "{where}: no credentials",
        f"set {_KEYS}",
        kinds="NoCredentialsError PartialCredentialsError NoAuthTokenError CredentialRetrievalError",
        phrases="not loaded correctly|[Nn]o credentials|Unable to locate credentials",
    ),
    "credentials": Failure(
        "{where}: {store} refuses the credentials ({code})",
        f"correct {_KEYS}",
        codes="InvalidAccessKeyId SignatureDoesNotMatch InvalidToken ExpiredToken ExpiredTokenException",
        phrases="InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|ExpiredToken|INVALID_ACCESS_KEY_ID"
        "|SIGNATURE_DOES_NOT_MATCH|INVALID_SIGNATURE",
    ),
    "store_permission": Failure(
        "{where}: no permission for {operation} ({code})",
        "ask the bucket's owner to grant it",
        codes="AccessDenied AllAccessDisabled 403",
        phrases="AccessDenied|ACCESS_DENIED",
    ),
    "permission": Failure(
        "{where}: no permission",
        "grant it to the user who runs tokenmill, or name another folder (`root`, --out)",
        kinds="PermissionError",
        codes="EACCES EPERM",
        phrases="Permission denied",
    ),
    "no_store": Failure(
        "{where}: no store answers at {store} ({code})",
        "check AWS_ENDPOINT_URL and the network",
        kinds="EndpointConnectionError ConnectTimeoutError ReadTimeoutError ConnectionClosedError HTTPClientError",
        phrases="NETWORK_CONNECTION|error sending request for url",
    ),
    "certificate": Failure(
        "{where}: the certificate is not to be trusted: {detail}",
        "correct the address or this machine's clock, or name the authority in AWS_CA_BUNDLE and SSL_CERT_FILE",
        kinds="SSLError SSLCertVerificationError CertificateError",
        phrases="certificate verify failed|CERTIFICATE_VERIFY_FAILED",
    ),
    "ray_version": Failure(
        "{where}: the cluster runs {versions}",
        "install the same versions of both here and there, or leave cluster.address out",
        phrases="Version mismatch:|version mismatch",
    ),
    "ray_client": Failure(
        "cluster.address: ray:// is the Ray Client's, which tokenmill does not use",
        "give HOST:6379, or run the command on a machine of the cluster with cluster.address=auto",
        phrases="Ray Client requires",
    ),
    "no_cluster": Failure(
        "no Ray cluster answers: {detail}",
        "start it (`ray start --head`), correct cluster.address, or leave it out to start Ray here",
        phrases="any running Ray instance|to connect to GCS|to GCS at|GCS server|`ray start`|Can't find a .*node_ip",
    ),
    "lost_node": Failure(
        "a worker or its machine was lost: {detail}",
        f"look whether all machines are up and had memory left (`dmesg`, `ray status`), then {AGAIN}",
        kinds="NodeDiedError LocalRayletDiedError RaySystemError RayActorError WorkerCrashedError OwnerDiedError "
        "ObjectLostError ObjectFetchTimedOutError RpcError ActorUnschedulableError TaskUnschedulableError "
        "WorkerHealthCheckFailedError WorkerHealthCheckTimeoutError WorkerGroupStartupFailedError "
        "WorkerGroupStartupTimeoutError ControllerError PreemptionError WorkerGroupError DistBackendError "
        "DistNetworkError ProcessGroupAbortedError",
        phrases=r"Connection closed by peer|gloo/transport|NCCL error|node was (lost|marked dead)|Broken pipe",
    ),
    "network": Failure(
        "the network fails: {detail}",
        f"check the network, names and proxies, then {AGAIN}",
        kinds="gaierror ConnectionError TimeoutError ConnectionResetError HTTPError NewConnectionError MaxRetryError",
        codes="ECONNREFUSED ENETUNREACH EHOSTUNREACH ENETDOWN EADDRNOTAVAIL EADDRINUSE",
        phrases="dns error|Name or service not known|Connection refused|Network is unreachable",
    ),
    "packages": Failure(
        "a package is missing or of another release: {detail}",
        "install tokenmill anew (`make setup`)",
        kinds="ImportError",
        phrases="cannot open shared object file",
    ),
}


def find(error: BaseException) -> tuple[str, BaseException] | None:
    """The name of the failure that `error` tells of, and the exception of its chain that tells it; null for a bug."""
    return _find(error, set())


@contextmanager
def as_damaged(uri: str) -> Iterator[None]:
    """What a library raises that can make nothing of the file at `uri` -> DamagedError. Stays as it is: what the file
    is not to blame for, and what is said already.
    """
    try:
        yield
    except BaseException as error:  # of damaged files libraries raise whatever comes
        if not (isinstance(error, Exception) or is_panic(error)) or isinstance(error, UserError) or find(error):
            raise
        raise DamagedError(uri, f"{type(error).__name__}: {error}") from error


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust gave up: no subclass of Exception, and importable from nowhere."""
    return type(error).__name__ == "PanicException"


def _find(error: BaseException, seen: set[int]) -> tuple[str, BaseException] | None:
    """Innermost first: explicit causes, and what Ray and Ray Train keep in attributes."""
    seen.add(id(error))
    inner: list[Any] = [*getattr(error, "worker_failures", {}).values(), error.__cause__]
    inner += [getattr(error, name, None) for name in ("cause", "controller_failure", "reason")]
    inner = [each for each in inner if isinstance(each, BaseException) and id(each) not in seen]
    for each in inner:
        if found := _find(each, seen):
            return found
    if inner and type(error).__module__.startswith("ray."):
        return None  # it only repeats what a worker raised: a bug
    names, text = {kind.__name__ for kind in type(error).__mro__}, words(error)
    return next(((name, error) for name, each in FAILURES.items() if each.fits(error, names, text)), None)


def line(name: str, error: BaseException, places: Sequence[str] = (), **known: str) -> str:
    """The failure as one line: what, where, what to do. `places` are folders of the command, of which one is named
    where `error` names none; `known` are facts that the caller knows better.
    """
    failure, facts = FAILURES[name], _facts(error)
    if facts["where"] == _NOWHERE and places:
        facts["where"] = _fullest(places) if "{free}" in failure.what else places[0]
    facts |= {"free": _free(facts["where"])} | known
    return f"{failure.what}; {failure.do}".format(**facts)


def advice(error: BaseException, otherwise: str) -> str:
    """What to do next, for a message that says what is wrong by itself."""
    found = find(error)
    return FAILURES[found[0]].do.format(**_facts(found[1])) if found else otherwise


def codes_of(error: BaseException) -> set[str]:
    """Names of its errno and of a store's code."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    # Of ssl and socket the numbers are their libraries' own.
    number = error.errno if isinstance(error, OSError) and type(error).__module__ == "builtins" else None
    return {str(name) for name in (code, errno.errorcode.get(number or 0)) if name}


def _facts(error: BaseException) -> dict[str, str]:
    text = words(error)
    quoted = re.search(r"['\"](/[^'\"]+)['\"]", text)
    path = getattr(error, "filename", None) or (quoted[1] if quoted else None)
    versions = [f"Ray {ray} and Python {python}" for ray, python in _RAY_VERSIONS.findall(str(error))]
    code = re.search(r"\b([A-Z][a-z]+){2,}\b|\b[A-Z]+(_[A-Z]+)+\b", text)
    codes = sorted(codes_of(error)) or ([code[0]] if code else [])
    return {
        "where": str(path or _NOWHERE),
        "detail": text if len(text) <= _MAX_DETAIL_CHARS else text[: _MAX_DETAIL_CHARS - 1] + "…",
        "code": codes[0] if codes else type(error).__name__,
        "operation": getattr(error, "operation_name", "the request"),
        "store": "the store",
        "bucket": "of that name",
        "versions": ", this process ".join(versions) or "another release",
        "open_files": str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        "now": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    }


def words(error: BaseException) -> str:
    """What happened, on one line: of words with a traceback in them the last line."""
    text = _RUST_TRACE.sub("", _COLOUR.sub("", str(error))).strip() or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename!r}" if error.filename else error.strerror
    if death := _RAY_DEATH.search(text):  # amid a page of guesses
        host = _RAY_HOST.search(text)
        return death[1].strip() + (f" ({host[1]})" if host else "")
    return " ".join((text.splitlines()[-1] if "Traceback (" in text else text).split())


def _free(path: str) -> str:
    """Free bytes of the disk of `path`, which need not exist, in words."""
    there = next((each for each in [Path(path), *Path(path).absolute().parents] if each.exists()), Path("/"))
    num_bytes = shutil.disk_usage(there).free
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _fullest(places: Sequence[str]) -> str:
    """Of several folders the one whose disk has the fewest free bytes."""
    there = [place for place in places if Path(place).exists()]
    return min(there, key=lambda place: shutil.disk_usage(place).free, default=places[0])
