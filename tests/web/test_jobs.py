"""What was accepted is on disk, and ends once."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from restorer.web.rest.jobs import Jobs


@pytest.fixture
def place(tmp_path):
    return tmp_path / "uploads/jobs", tmp_path / "processed"


def accepted(jobs, tmp_path, *names, **options):
    files = []
    for index, name in enumerate(names):
        (tmp_path / f"in{index}").write_bytes(name.encode())
        files.append((name, tmp_path / f"in{index}"))
    return jobs.add(files, options)


def test_a_job_comes_back_in_another_process_with_its_inputs(place, tmp_path):
    jobs = Jobs(*place)
    first = accepted(jobs, tmp_path, "a.jpg", "../b.jpg", outscale=2.0)
    second = accepted(jobs, tmp_path, "c.jpg")
    assert not (tmp_path / "in0").exists()
    again = Jobs(*place)
    assert [job.id for job in again.waiting()] == [first.id, second.id]
    found = again.get(first.id)
    assert found == first and found.options == {"outscale": 2.0}
    assert [again.input(found, index) for index in (0, 1)] == [b"a.jpg", b"../b.jpg"]
    assert again.needed(first.id) and not again.needed("0" * 32)


def test_what_was_done_before_a_crash_is_not_done_again(place, tmp_path):
    jobs = Jobs(*place)
    job = accepted(jobs, tmp_path, "a.jpg", "b.jpg")
    assert jobs.begin(job)
    assert jobs.note(job, job.items[0], result={"file": "a_4x.jpg"})
    again = Jobs(*place).waiting()
    assert [(item.result, item.error) for item in again[0].items] == [({"file": "a_4x.jpg"}, ""), (None, "")]


def test_a_job_that_brings_the_process_down_does_so_three_times_at_most(place, tmp_path):
    accepted(Jobs(*place), tmp_path, "bomb.jpg", "fine.jpg")
    for _ in range(3):
        jobs = Jobs(*place)
        (job,) = jobs.waiting()
        assert jobs.begin(job) and not job.items[0].error
    jobs = Jobs(*place)
    (job,) = jobs.waiting()
    assert jobs.begin(job)
    assert "3 times" in job.items[0].error and not job.items[1].error, "only the file that is the cause"


def test_a_job_that_gets_on_is_not_given_up_however_often_the_process_ends(place, tmp_path):
    accepted(Jobs(*place), tmp_path, *(f"{n}.jpg" for n in range(8)))
    for index in range(8):
        for _ in range(2):
            jobs = Jobs(*place)
            (job,) = jobs.waiting()
            assert jobs.begin(job)
        assert jobs.note(job, job.items[index], result={"file": "x"})
    assert not any(item.error for item in job.items)


def test_an_orderly_end_is_no_start(place, tmp_path):
    accepted(Jobs(*place), tmp_path, "a.jpg")
    for _ in range(5):
        jobs = Jobs(*place)
        (job,) = jobs.waiting()
        assert job.state == "queued" and jobs.begin(job)
        jobs.put_back()


def test_a_job_ends_once_whoever_ends_it(place, tmp_path):
    jobs = Jobs(*place)
    for _ in range(20):
        job = accepted(jobs, tmp_path, "a.jpg")
        jobs.begin(job)
        states = ("completed", "cancelled", "failed")
        with ThreadPoolExecutor(3) as pool:
            won = list(pool.map(partial(jobs.end, job), states))
        assert [state for state, done in zip(states, won, strict=True) if done] == [job.state]
        assert not jobs.begin(job)
        assert not jobs.note(job, job.items[0], error="late") and not job.items[0].error
        record = json.loads((place[0] / job.id / "job.json").read_text())
        assert record["state"] == job.state


def test_a_record_that_cannot_be_read_does_not_stop_the_server(place, tmp_path):
    jobs = Jobs(*place)
    job = accepted(jobs, tmp_path, "a.jpg")
    whole = json.loads((place[0] / job.id / "job.json").read_text())
    wrong = [{"created": None}, {"state": "odd"}, {"starts": "x"}, {"options": []}, {"items": [{"name": 1}]}]
    texts = ["", "{", "[]", '{"id": "x"}', "[" * 100_000]
    texts += [json.dumps({**whole, "id": f"{index:032x}", **part}) for index, part in enumerate(wrong, 5)]
    for index, text in enumerate(texts):
        broken = place[0] / f"{index:032x}"
        broken.mkdir()
        (broken / "job.json").write_text(text)
    assert [found.id for found in Jobs(*place).waiting()] == [job.id]


def test_what_was_deleted_is_forgotten(place, tmp_path):
    jobs = Jobs(*place)
    job, other = accepted(jobs, tmp_path, "a.jpg"), accepted(jobs, tmp_path, "b.jpg")
    jobs.end(job, "completed")
    jobs.delete(job)
    assert jobs.get(job.id) is None and not (place[0] / job.id).exists()
    jobs.forget_deleted()
    assert jobs.get(other.id) is other
