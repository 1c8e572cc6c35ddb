"""The agent's end of the workers' socket."""

import asyncio

from holdfast import framing
from holdfast.v1 import worker_pb2
from holdfast_agent.worker_link import WorkerLink


async def test_when_it_has_stopped_nothing_of_it_goes_on(tmp_path):
    """Or asyncio cancels it when the agent ends, and Python 3.11 writes a traceback for every worker."""
    said = dict.fromkeys(("prepared", "reported", "connected", "answered"), lambda *_: None)
    link = WorkerLink(tmp_path, welcome=lambda _: worker_pb2.WorkerWelcome(), **said)
    await link.start()
    reader, writer = await asyncio.open_unix_connection(link.path)
    hello = worker_pb2.WorkerMessage(hello=worker_pb2.WorkerHello(job_id="j1", attempt=1))
    writer.write(framing.encode(hello.SerializeToString()))
    assert await reader.read(1)  # it is welcome
    await link.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    writer.close()
