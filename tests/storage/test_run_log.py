"""The log: appended, tailed while it grows, cut back on resume, torn lines ignored."""

from tokenmill.storage.run_log import FILE_NAME, LogTail, TrainLog, read_log


def test_append_tail_and_resume(tmp_path):
    uri = str(tmp_path / "run")
    tail = LogTail(uri)
    assert tail.fresh() == [] == read_log(uri)
    log = TrainLog(uri, 0)
    log.append({"step": 1, "loss": 2.5})
    assert tail.fresh() == [{"step": 1, "loss": 2.5}]
    assert tail.fresh() == []
    for step in (2, 3):
        log.append({"step": step})
    assert [record["step"] for record in tail.fresh()] == [2, 3]

    again = TrainLog(uri, 1)  # resumed from a checkpoint after step 1
    assert read_log(uri) == [{"step": 1, "loss": 2.5}]
    again.append({"step": 2, "again": True})
    again.flush()
    assert read_log(uri) == [{"step": 1, "loss": 2.5}, {"step": 2, "again": True}]


def test_a_torn_line_waits_until_it_is_whole(tmp_path):
    path = tmp_path / FILE_NAME
    path.write_text('{"step": 1}\n{"st')
    tail = LogTail(str(tmp_path))
    assert tail.fresh() == [{"step": 1}] == read_log(str(tmp_path))
    with path.open("a") as file:
        file.write('ep": 2}\n')
    assert tail.fresh() == [{"step": 2}]


def test_a_log_that_became_shorter_is_read_anew(tmp_path):
    (tmp_path / FILE_NAME).write_text('{"step": 1}\n{"step": 2}\n')
    tail = LogTail(str(tmp_path))
    tail.fresh()
    TrainLog(str(tmp_path), 0).append({"step": 1})
    assert tail.fresh() == [{"step": 1}]


def test_a_log_begun_anew_that_has_grown_beyond_what_was_read_is_read_anew(tmp_path):
    (tmp_path / FILE_NAME).write_text('{"step": 1}\n{"step": 2}\n')
    tail = LogTail(str(tmp_path))
    tail.fresh()
    log = TrainLog(str(tmp_path), 1)
    for step in (2, 3, 4):
        log.append({"step": step, "loss": 1.5})
    assert [record["step"] for record in tail.fresh()] == [1, 2, 3, 4]
    assert tail.fresh() == []
