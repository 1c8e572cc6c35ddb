# ruff: noqa: F401, F811  fixtures are imported by name
"""`holdfast job why`: the story in plain words."""

import json
import textwrap

from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.v1 import job_pb2
from tests.client.scripted import coordinator, holdfast

JOB = "k7m2p9xq4w"
AT = Timestamp(seconds=1_700_000_000)


def make_story():
    story = job_pb2.JobStory(left_out=3)
    story.summary.CopyFrom(
        job_pb2.JobSummary(
            job_id=JOB,
            name="digits",
            state=job_pb2.JOB_STATE_RUNNING,
            reason="4 of 4 workers are up",
            restarts=4,
            steps_redone=60,
            goodput=0.9,
            time_seconds={"kept": 90, "restart": 6, "redone": 4},
        )
    )
    story.incidents.add(
        at=AT,
        attempt=4,
        rank=3,
        node="b",
        cause="rank 3 on node b: killed by SIGSEGV at step 120",
        fell="ranks 0, 1 fell with it; rank 2 stopped",
        decided="restarts from step 100 (restart 1 of 50 without progress, in 0.5 s)",
        cost="all 4 ranks are up again after 1.2 s; 20 steps are done again",
        evidence="Fatal Python error: Segmentation fault\n\x1b[31m  File train.py, line 3",
    )
    story.notes.add(at=AT, kind="CheckpointFailed", rank=1, message="step 90: No space left on device")
    return story


def test_the_story_in_plain_words(coordinator, holdfast):
    coordinator.story = make_story()
    assert holdfast("job", "why", JOB).stdout == textwrap.dedent(
        """\
        k7m2p9xq4w  digits  running: 4 of 4 workers are up
        4 restarts, 60 steps done again, all ranks together
        time went into kept 90.0%, restart 6.0%, redone 4.0%

        3 older incidents are left out; see more with --last

        2023-11-14 22:13:20 attempt 4 ended
          why      rank 3 on node b: killed by SIGSEGV at step 120
          with it  ranks 0, 1 fell with it; rank 2 stopped
          decided  restarts from step 100 (restart 1 of 50 without progress, in 0.5 s)
          cost     all 4 ranks are up again after 1.2 s; 20 steps are done again
                   | Fatal Python error: Segmentation fault
                   |   File train.py, line 3

        also
          2023-11-14 22:13:20 CheckpointFailed rank 1: step 90: No space left on device
        """
    )


def test_of_ranks_that_restart_alone_it_says_whose_attempt(coordinator, holdfast):
    coordinator.story = make_story()
    coordinator.story.incidents[0].of_rank = 3
    assert "22:13:20 attempt 4 of rank 3 ended\n" in holdfast("job", "why", JOB).stdout


def test_what_a_job_that_failed_had_not_committed_is_not_said_to_be_done_again(coordinator, holdfast):
    coordinator.story = make_story()
    coordinator.story.left_out = 1
    coordinator.story.summary.state = job_pb2.JOB_STATE_FAILED
    told = holdfast("job", "why", JOB).stdout
    assert "4 restarts, 60 steps not kept, all ranks together\n" in told
    assert "1 older incident is left out" in told


def test_of_a_job_to_which_nothing_happened(coordinator, holdfast):
    coordinator.story.summary.job_id, coordinator.story.summary.name = JOB, "digits"
    coordinator.story.summary.state = job_pb2.JOB_STATE_SUCCEEDED
    coordinator.story.summary.reason = "every rank exited with code 0"
    assert holdfast("job", "why", JOB).stdout == textwrap.dedent(
        """\
        k7m2p9xq4w  digits  succeeded: every rank exited with code 0
        0 restarts
        """
    )


def test_as_data(coordinator, holdfast):
    coordinator.story = make_story()
    data = json.loads(holdfast("job", "why", JOB, "-o", "json").stdout)
    assert ParseDict(data, job_pb2.JobStory()) == coordinator.story
    holdfast("job", "why", JOB, "--last", "3")
    assert [request.incidents for request in coordinator.asked("ExplainJob")] == [10, 3]
