"""What a library says of a damaged file is said of that file; what the file is not to blame for stays."""

import errno

import pytest

from tokenmill import storage
from tokenmill.storage.errors import DamagedError, TrainingError
from tokenmill.storage.failures import as_damaged, find, words


@pytest.mark.parametrize(
    "error", [KeyError("x"), RuntimeError("shape"), type("PanicException", (BaseException,), {})("x")]
)
def test_what_a_library_raises_is_damage(error):
    with pytest.raises(DamagedError, match="/model: damaged or gone"), as_damaged("/model"):
        raise error


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), TrainingError("said"), KeyboardInterrupt(), SystemExit(1)],
)
def test_what_a_file_is_not_to_blame_for_stays(error):
    with pytest.raises(type(error)) as caught, as_damaged("/model"):
        raise error
    assert caught.value is error


def test_a_trace_of_rust_is_no_part_of_what_is_said():
    error = RuntimeError(
        "Json error: 'x'\n   0: <unknown>\n  12: start_thread\n     at ./nptl/pthread_create.c:442:8\n"
    )
    assert words(error) == "Json error: 'x'" and find(error) is None


@pytest.mark.parametrize("text", ["[]", "{}", "[" * 100_000, '"job"', "no json"])
def test_a_document_without_its_keys_is_damaged(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(DamagedError, match=r"plan.json: damaged"):
        storage.read_json(str(tmp_path / "plan.json"), "job")
