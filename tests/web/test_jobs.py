"""Jobs on disk: accepted jobs survive the process and end once."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from restorer.errors import RestoreError
from restorer.web.jobs import Jobs


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "uploads/jobs", tmp_path / "processed"


def add_job(jobs, tmp_path, *names, **options):
    files = []
    for index, name in enumerate(names):
        (tmp_path / f"in{index}").write_bytes(name.encode())
        files.append((name, tmp_path / f"in{index}"))
    return jobs.add(files, options)


def test_job_is_loaded_by_another_process_with_its_inputs(folders, tmp_path):
    jobs = Jobs(*folders)
    first = add_job(jobs, tmp_path, "a.jpg", "../b.jpg", outscale=2.0)
    second = add_job(jobs, tmp_path, "c.jpg")
    assert not (tmp_path / "in0").exists()
    reloaded = Jobs(*folders)
    assert [job.id for job in reloaded.unfinished()] == [first.id, second.id]
    job = reloaded.get(first.id)
    assert job == first and job.options == {"outscale": 2.0}
    assert [reloaded.input_path(job, index).read_bytes() for index in (0, 1)] == [b"a.jpg", b"../b.jpg"]
    assert reloaded.is_unfinished(first.id) and not reloaded.is_unfinished("0" * 32)


def test_finished_files_stay_finished_after_a_crash(folders, tmp_path):
    jobs = Jobs(*folders)
    job = add_job(jobs, tmp_path, "a.jpg", "b.jpg")
    assert jobs.begin(job)
    assert jobs.finish_file(job, job.items[0], result={"file": "a_4x.jpg"})
    (job,) = Jobs(*folders).unfinished()
    assert [(item.result, item.error) for item in job.items] == [({"file": "a_4x.jpg"}, ""), (None, "")]


def test_file_fails_after_three_crashes(folders, tmp_path):
    add_job(Jobs(*folders), tmp_path, "bomb.jpg", "fine.jpg")
    for _ in range(3):
        jobs = Jobs(*folders)
        (job,) = jobs.unfinished()
        assert jobs.begin(job) and not job.items[0].error
    jobs = Jobs(*folders)
    (job,) = jobs.unfinished()
    assert jobs.begin(job)
    assert "3 times" in job.items[0].error and not job.items[1].error, "only the first file fails"


def test_progress_resets_the_count_of_crashes(folders, tmp_path):
    add_job(Jobs(*folders), tmp_path, *(f"{n}.jpg" for n in range(8)))
    for index in range(8):
        for _ in range(2):
            jobs = Jobs(*folders)
            (job,) = jobs.unfinished()
            assert jobs.begin(job)
        assert jobs.finish_file(job, job.items[index], result={"file": "x"})
    assert not any(item.error for item in job.items)


def test_clean_shutdown_is_not_a_crash(folders, tmp_path):
    add_job(Jobs(*folders), tmp_path, "a.jpg")
    for _ in range(5):
        jobs = Jobs(*folders)
        (job,) = jobs.unfinished()
        assert job.state == "queued" and jobs.begin(job)
        jobs.requeue()


def test_jobs_may_be_added_during_a_shutdown(folders, tmp_path, monkeypatch):
    jobs = Jobs(*folders)
    assert jobs.begin(add_job(jobs, tmp_path, "a.jpg"))
    change = jobs._change

    def add_meanwhile(job, **fields):
        add_job(jobs, tmp_path, "b.jpg")
        change(job, **fields)

    monkeypatch.setattr(jobs, "_change", add_meanwhile)
    jobs.requeue()
    assert [job.state for job in jobs.unfinished()] == ["queued", "queued"]


def test_job_ends_once_if_several_threads_end_it(folders, tmp_path):
    jobs = Jobs(*folders)
    for _ in range(20):
        job = add_job(jobs, tmp_path, "a.jpg")
        jobs.begin(job)
        states = ("completed", "cancelled", "failed")
        with ThreadPoolExecutor(3) as pool:
            ended = list(pool.map(partial(jobs.end, job), states))
        assert [state for state, success in zip(states, ended, strict=True) if success] == [job.state]
        assert not jobs.begin(job)
        assert not jobs.finish_file(job, job.items[0], error="late") and not job.items[0].error
        record = json.loads((folders[0] / job.id / "job.json").read_text())
        assert record["state"] == job.state


def test_cancelled_job_continues_with_its_pending_files(folders, tmp_path):
    jobs = Jobs(*folders)
    job = add_job(jobs, tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(RestoreError, match="no photo of this batch is left"):
        jobs.reopen(job)
    assert jobs.begin(job) and jobs.finish_file(job, job.items[0], result={"file": "a_4x.jpg"})
    assert jobs.end(job, "cancelled")
    assert jobs.reopen(job) is job and job.next is job.items[1]
    assert Jobs(*folders).get(job.id) == job and job.state == "queued"
    assert jobs.finish_file(job, job.items[1], error="broken") and jobs.end(job, "cancelled")
    with pytest.raises(RestoreError, match="no photo of this batch is left"):
        jobs.reopen(job)


def test_invalid_records_are_skipped(folders, tmp_path):
    jobs = Jobs(*folders)
    job = add_job(jobs, tmp_path, "a.jpg")
    valid = json.loads((folders[0] / job.id / "job.json").read_text())
    invalid = [
        {"created": None},
        {"state": "odd"},
        {"starts": "x"},
        {"options": []},
        {"items": [{"name": 1}]},
    ]
    texts = ["", "{", "[]", '{"id": "x"}', "[" * 100_000]
    texts += [json.dumps({**valid, "id": f"{index:032x}", **part}) for index, part in enumerate(invalid, 5)]
    for index, text in enumerate(texts):
        broken = folders[0] / f"{index:032x}"
        broken.mkdir()
        (broken / "job.json").write_text(text)
    assert [job.id for job in Jobs(*folders).unfinished()] == [job.id]


def test_deleted_jobs_are_forgotten(folders, tmp_path):
    jobs = Jobs(*folders)
    job, other = add_job(jobs, tmp_path, "a.jpg"), add_job(jobs, tmp_path, "b.jpg")
    jobs.end(job, "completed")
    jobs.delete(job)
    assert jobs.get(job.id) is None and not (folders[0] / job.id).exists()
    jobs.forget_deleted()
    assert jobs.get(other.id) is other
