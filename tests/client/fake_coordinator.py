"""A coordinator that says what a test tells it to: the real services on a real unix socket, in threads.

It is scripted: what it holds is set on it, and `fail` makes the next calls of a method end with a status. It remembers
every request.
"""

import threading
import time
from concurrent import futures
from contextlib import contextmanager

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from holdfast import wire
from holdfast.v1 import job_pb2, job_pb2_grpc, node_pb2, node_pb2_grpc

PAGE = 2
"""Items a page, whatever is asked for: so that every list has more than one."""


def status(code, message, *, remedy="", violations=()):
    """A status as the coordinator makes it: ErrorInfo with the remedy, BadRequest with the fields."""
    details = [error_details_pb2.ErrorInfo(reason=code_pb2.Code.Name(code), domain="holdfast")]
    if remedy:
        details[0].metadata["remedy"] = remedy
    if violations:
        bad = error_details_pb2.BadRequest()
        for field, description in violations:
            bad.field_violations.add(field=field, description=description)
        details.append(bad)
    packed = [Any() for _ in details]
    for box, detail in zip(packed, details, strict=True):
        box.Pack(detail)
    return rpc_status.to_status(status_pb2.Status(code=code, message=message, details=packed))


class FakeCoordinator(job_pb2_grpc.JobServiceServicer, node_pb2_grpc.NodeServiceServicer):
    def __init__(self, path):
        self.target = f"unix:{path}"
        self.requests = []  # (method, request)
        self.time_left = []  # seconds to the deadline of each
        self.jobs = {}
        self.nodes = []
        self.ahead_s = 0.0  # its clock, of ours; None: it does not tell
        self.node_changes = []  # what GetNode shows, one after the other
        self.events = []
        self.checkpoints = []
        self.records = {}  # step -> CommitRecord
        self.ended = False  # whether deleting a checkpoint leaves its files to the client
        self.summary = job_pb2.JobSummary()
        self.story = job_pb2.JobStory()
        self.curves = []  # what GetJobMetrics says
        self.watched = []  # what WatchJob says, one Job after the other
        self.log = []  # what StreamLogs says, chunk after chunk
        self.silent = set()  # methods that do not answer while `hold` is not set
        self.hold = threading.Event()  # streams that have said everything wait for it
        self.hold.set()
        self._failures = {}  # method -> statuses of its next calls; None lets one pass
        self._server = None

    # What a test tells it.

    def start(self):
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=wire.server_options())
        job_pb2_grpc.add_JobServiceServicer_to_server(self, self._server)
        node_pb2_grpc.add_NodeServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.target)
        self._server.start()

    def stop(self):
        self.hold.set()
        self._server.stop(0).wait()

    def fail(self, method, *statuses):
        """Let the next calls of a method end with these."""
        self._failures.setdefault(method, []).extend(statuses)

    def asked(self, method):
        return [request for name, request in self.requests if name == method]

    def add_job(self, job):
        self.jobs[job.id] = job
        return job

    # What clients ask.

    def CreateJob(self, request, context):
        self._begin("CreateJob", request, context)
        return job_pb2.CreateJobResponse(job=next(iter(self.jobs.values())))

    def GetJob(self, request, context):
        self._begin("GetJob", request, context)
        return job_pb2.GetJobResponse(job=self._find(request.job_id, context))

    def ListJobs(self, request, context):
        self._begin("ListJobs", request, context)
        items, token = page(list(self.jobs.values()), request.page_token)
        return job_pb2.ListJobsResponse(jobs=items, next_page_token=token)

    def WatchJob(self, request, context):
        self._begin("WatchJob", request, context)
        self._find(request.job_id, context)
        with self._told_when_left():
            for job in self.watched:
                yield job_pb2.WatchJobResponse(job=job)
        self._end_stream(context)

    def WatchJobs(self, request, context):
        self._begin("WatchJobs", request, context)
        for job in self.jobs.values():
            yield job_pb2.WatchJobsResponse(job=job)
        yield job_pb2.WatchJobsResponse(ready=True)
        self._end_stream(context)

    def WatchNodes(self, request, context):
        self._begin("WatchNodes", request, context)
        for node in self.nodes:
            yield node_pb2.WatchNodesResponse(node=node)
        yield node_pb2.WatchNodesResponse(ready=True)
        self._end_stream(context)

    def StopJob(self, request, context):
        self._begin("StopJob", request, context)
        return job_pb2.StopJobResponse(job=self._find(request.job_id, context))

    def DeleteJob(self, request, context):
        self._begin("DeleteJob", request, context)
        self._find(request.job_id, context)
        del self.jobs[request.job_id]
        return job_pb2.DeleteJobResponse()

    def GetJobSummary(self, request, context):
        self._begin("GetJobSummary", request, context)
        return job_pb2.GetJobSummaryResponse(summary=self.summary)

    def GetJobMetrics(self, request, context):
        self._begin("GetJobMetrics", request, context)
        return job_pb2.GetJobMetricsResponse(series=self.curves)

    def ExplainJob(self, request, context):
        self._begin("ExplainJob", request, context)
        return job_pb2.ExplainJobResponse(story=self.story)

    def StreamLogs(self, request, context):
        self._begin("StreamLogs", request, context)
        self._find(request.job_id, context)
        places = {(c.rank, c.attempt, c.stream): c.offset for c in request.cursors}
        with self._told_when_left():
            for chunk in self.log:
                at = chunk.cursor
                if at.offset < places.get((at.rank, at.attempt, at.stream), 0):
                    continue
                yield chunk
                self._fail_if_told("StreamLogs chunk", context)
        self._end_stream(context)

    def ListCheckpoints(self, request, context):
        self._begin("ListCheckpoints", request, context)
        self._find(request.job_id, context)
        items, token = page(self.checkpoints, request.page_token)
        return job_pb2.ListCheckpointsResponse(checkpoints=items, next_page_token=token)

    def GetCheckpoint(self, request, context):
        self._begin("GetCheckpoint", request, context)
        checkpoint, record = self._find_checkpoint(request, context)
        return job_pb2.GetCheckpointResponse(checkpoint=checkpoint, record=record)

    def DeleteCheckpoint(self, request, context):
        self._begin("DeleteCheckpoint", request, context)
        _, record = self._find_checkpoint(request, context)
        return job_pb2.DeleteCheckpointResponse(record=record if self.ended else None)

    def PinCheckpoint(self, request, context):
        self._begin("PinCheckpoint", request, context)
        checkpoint, _ = self._find_checkpoint(request, context)
        return job_pb2.PinCheckpointResponse(checkpoint=checkpoint)

    def ListEvents(self, request, context):
        self._begin("ListEvents", request, context)
        items, token = page(self.events, request.page_token)
        return job_pb2.ListEventsResponse(events=items, next_page_token=token)

    def ListNodes(self, request, context):
        self._begin("ListNodes", request, context)
        if self.ahead_s is not None:
            told = time.time_ns() + int(self.ahead_s * 1e9)
            context.set_trailing_metadata(((wire.TIME_KEY, str(told)),))
        items, token = page(self.nodes, request.page_token)
        return node_pb2.ListNodesResponse(nodes=items, next_page_token=token)

    def GetNode(self, request, context):
        self._begin("GetNode", request, context)
        if self.node_changes:
            self.nodes = [self.node_changes.pop(0)]
        for node in self.nodes:
            if node.name == request.name:
                return node_pb2.GetNodeResponse(node=node)
        context.abort_with_status(
            status(code_pb2.NOT_FOUND, f"there is no node {request.name}", remedy="list the nodes")
        )
        raise AssertionError

    def CordonNode(self, request, context):
        return node_pb2.CordonNodeResponse(node=self._change_node("CordonNode", request, context))

    def UncordonNode(self, request, context):
        return node_pb2.UncordonNodeResponse(node=self._change_node("UncordonNode", request, context))

    def DrainNode(self, request, context):
        return node_pb2.DrainNodeResponse(node=self._change_node("DrainNode", request, context))

    def ForgetNode(self, request, context):
        self._begin("ForgetNode", request, context)
        node = self.GetNode(request, context).node
        if node.state != node_pb2.NODE_STATE_LOST:
            message = f"node {node.name} is ready, not lost"
            context.abort_with_status(status(code_pb2.FAILED_PRECONDITION, message, remedy="stop its agent"))
        self.nodes.remove(node)
        return node_pb2.ForgetNodeResponse()

    def _change_node(self, method, request, context):
        self._begin(method, request, context)
        return self.GetNode(request, context).node

    def _find_checkpoint(self, request, context):
        self._find(request.job_id, context)
        newest = isinstance(request, job_pb2.GetCheckpointRequest) and not request.HasField("step")
        for checkpoint in self.checkpoints:
            if newest or checkpoint.step == request.step:
                return checkpoint, self.records.get(checkpoint.step)
        message = f"job {request.job_id} has no checkpoint of step {request.step}"
        context.abort_with_status(status(code_pb2.NOT_FOUND, message, remedy="list its checkpoints"))
        raise AssertionError

    def _begin(self, method, request, context):
        self.requests.append((method, request))
        self.time_left.append(context.time_remaining())
        if method in self.silent:
            self.hold.wait()
        self._fail_if_told(method, context)

    def _fail_if_told(self, method, context):
        waiting = self._failures.get(method)
        found = waiting.pop(0) if waiting else None
        if found is not None:
            context.abort_with_status(found)

    @contextmanager
    def _told_when_left(self):
        """gRPC drops a stream whose client goes before all of it is said."""
        try:
            yield
        except GeneratorExit:
            self.hold.set()
            raise

    def _end_stream(self, context):
        """A stream that is held open ends when its client goes, or the test lets it."""
        if not context.add_callback(self.hold.set):
            self.hold.set()  # it has gone already
        self.hold.wait()

    def _find(self, job_id, context):
        if job_id not in self.jobs:
            context.abort_with_status(
                status(
                    code_pb2.NOT_FOUND, f"there is no job {job_id}", remedy="list the jobs to see their ids"
                )
            )
        return self.jobs[job_id]


def page(items, token):
    start = int(token or 0)
    more = len(items) > start + PAGE
    return items[start : start + PAGE], str(start + PAGE) if more else ""
