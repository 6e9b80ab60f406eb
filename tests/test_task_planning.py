"""Planning: the use case and its payload, on real PostgreSQL."""

from __future__ import annotations

import threading
from uuid import uuid4

import planning_tools
import psycopg
import pytest
import sqlalchemy as sa
from planning_tools import PROJECT, live
from sqlalchemy.orm import Session

from pgqueue import Job
from pgqueue.errors import ConfigurationError, ConflictError, InvalidPayloadError, PlanningError
from pgqueue.jobs.task_planning import (
    JobClient,
    JobClientAdapter,
    SqlAlchemyTaskRepository,
    StartPlanning,
    TaskPlanningPayload,
    TransactionalJobClient,
    parse_task_planning_payload,
)

add = planning_tools.add
engine = planning_tools.engine
tasks = planning_tools.tasks


# The use case


def test_a_task_is_set_to_planning_and_its_job_enqueued(tasks, queue, add):
    task_id = add()
    job = queue.get(int(StartPlanning(tasks, JobClientAdapter(queue))(task_id, "feature/bridge")))
    assert job.payload == {"taskId": str(task_id), "branchName": "feature/bridge", "projectId": str(PROJECT)}
    assert (job.type, job.queue, job.max_attempts, job.timeout) == ("task_planning", "planning", 4, 1800.0)
    task = tasks.get(task_id)
    assert (task.status, task.branch_name, task.planning_job) == ("PLANNING", "feature/bridge", str(job.id))


@pytest.mark.parametrize("status", ["PLANNING", "PLANNED", "DONE"])
def test_a_task_that_is_not_todo_is_refused_and_nothing_is_enqueued(tasks, queue, add, status):
    task_id = add(status)
    with pytest.raises(ConflictError) as caught:
        StartPlanning(tasks, JobClientAdapter(queue))(task_id, "main")
    assert str(caught.value) == "task must be in TODO status to start planning"
    assert live(queue) == 0
    assert tasks.get(task_id).status == status


def test_a_task_that_is_not_there_is_refused(tasks, queue):
    missing = uuid4()
    with pytest.raises(PlanningError) as caught:
        StartPlanning(tasks, JobClientAdapter(queue))(missing, "main")
    assert str(caught.value) == f"failed to get task: there is no task {missing}"


def test_an_enqueue_that_fails_leaves_the_task_todo(tasks, queue, add, dsn):
    task_id = add()
    with pytest.raises(PlanningError, match=r"^failed to enqueue planning job: failed to parse task plan"):
        StartPlanning(tasks, JobClientAdapter(queue))(task_id, "--force")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("ALTER TABLE pgqueue.jobs RENAME TO elsewhere")
    with pytest.raises(PlanningError, match=r"^failed to enqueue planning job: "):
        StartPlanning(tasks, JobClientAdapter(queue))(task_id, "main")
    assert tasks.get(task_id).status == "TODO"


def test_a_status_that_cannot_be_saved_leaves_no_job(engine, queue, add, sql):
    task_id = add()
    sql("ALTER TABLE tasks ADD CHECK (status <> 'PLANNING')")
    with pytest.raises(sa.exc.IntegrityError):
        StartPlanning(SqlAlchemyTaskRepository(engine), JobClientAdapter(queue))(task_id, "main")
    assert live(queue) == 0


def test_in_a_session_both_are_part_of_the_caller_s_transaction(engine, queue, add):
    task_id = add()
    with Session(engine) as session:
        StartPlanning(SqlAlchemyTaskRepository(session), JobClientAdapter(queue))(task_id, "main")
        assert live(queue) == 0, "not before the commit"
        session.rollback()
    assert live(queue) == 0
    with Session(engine) as session, session.begin():
        StartPlanning(SqlAlchemyTaskRepository(session), JobClientAdapter(queue))(task_id, "main")
    assert live(queue) == 1


def test_of_two_at_once_one_starts_and_the_other_is_told(tasks, queue, add):
    task_id, told = add(), []
    barrier = threading.Barrier(8)

    def start():
        barrier.wait()
        try:
            told.append(StartPlanning(tasks, JobClientAdapter(queue))(task_id, "main"))
        except ConflictError as error:
            told.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(one, str) for one in told) == 1
    assert live(queue) == 1


def test_a_delay_is_kept_and_a_client_of_one_s_own_will_do(tasks, queue, add):
    class Recorder:
        def __init__(self):
            self.calls = []

        def enqueue_task_planning(self, payload, delay=0):
            self.calls.append((payload, delay))
            return "job-123"

    client: JobClient = Recorder()
    task_id = add()
    assert StartPlanning(tasks, client)(task_id, "main", delay=5) == "job-123"
    assert client.calls == [(TaskPlanningPayload(task_id=task_id, branch_name="main", project_id=PROJECT), 5)]
    assert isinstance(JobClientAdapter(queue), TransactionalJobClient)
    assert not isinstance(client, TransactionalJobClient)
    job_id = StartPlanning(tasks, JobClientAdapter(queue))(add(), "main", delay=3600)
    assert queue.get(int(job_id)).state == "scheduled"


def test_a_table_of_the_user_s_own_is_mapped_by_column(engine, sql, queue):
    sql("CREATE TABLE issue (LIKE tasks INCLUDING ALL)")
    sql("ALTER TABLE issue RENAME status TO state")
    sql("ALTER TABLE issue ADD owner text")
    table = sa.Table("issue", sa.MetaData(), autoload_with=engine)
    task_id = uuid4()
    sql("INSERT INTO issue (id, project_id, owner) VALUES (%s, %s, 'ada')", task_id, PROJECT)
    StartPlanning(SqlAlchemyTaskRepository(engine, table, {"status": "state"}), JobClientAdapter(queue))(task_id, "b")
    assert sql("SELECT state, owner FROM issue") == [("PLANNING", "ada")]
    with pytest.raises(ConfigurationError, match="no column status"):
        SqlAlchemyTaskRepository(engine, table)
    with pytest.raises(ConfigurationError, match="columns name state"):
        SqlAlchemyTaskRepository(engine, table, {"state": "status"})


# The payload


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"taskId": "17"}, "$.taskId"),
        ({"projectId": None}, "$.projectId"),
        *(
            ({"branchName": name}, "$.branchName")
            for name in ("", "-x", "a b", "a..b", "a.lock", "/a", "a/", "a//b", ".a", "a/.b", "@", "a@{1", "a\n", "a~1")
        ),
    ],
)
def test_a_payload_that_does_not_fit_says_so(change, path):
    payload = {"taskId": str(uuid4()), "branchName": "main", "projectId": str(PROJECT), **change}
    with pytest.raises(InvalidPayloadError, match=r"^failed to parse task planning payload: ") as caught:
        parse_task_planning_payload(Job(1, "task_planning", payload))
    assert caught.value.path == path
    assert str(caught.value).count("failed to parse") == 1


@pytest.mark.parametrize("name", ["main", "feature/bridge-2", "a.b", "ünder/wäter", "#1"])
def test_a_branch_name_that_git_takes_is_taken(name):
    assert TaskPlanningPayload(task_id=uuid4(), branch_name=name, project_id=PROJECT).branch_name == name
