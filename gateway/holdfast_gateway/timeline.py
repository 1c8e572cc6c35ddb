"""Where the last events of a timeline begin, found by asking: it is kept, and given, oldest first."""

from holdfast.client import Client

MOST_TAIL = 1_000


async def before_last(client: Client, job_id: str, count: int) -> int:
    """The seq behind which the last `count` events of a job lie, or of all with "", in a few dozen small calls."""
    last = await _last(client, job_id)
    if not count:
        return last
    reach = count
    while True:
        after = max(0, last - reach)
        found = await client.list_events_page(job_id, after=after, size=1_000)
        events = list(found.events)
        while found.next_page_token:
            found = await client.list_events_page(
                job_id, after=after, size=1_000, token=found.next_page_token
            )
            events = [*events, *found.events][-count - 1 :]
        if len(events) > count:
            return events[-count - 1].seq
        if not after:
            return 0
        reach *= 4


async def _last(client: Client, job_id: str) -> int:
    """The seq of the last event, 0 when there is none."""

    async def next_after(seq: int) -> int | None:
        found = await client.list_events_page(job_id, after=seq, size=1)
        return found.events[0].seq if found.events else None

    last, stride = 0, 1
    while (found := await next_after(last + stride - 1)) is not None:
        last, stride = found, stride * 2
    low, high = last, last + stride - 1  # none is above `high`
    while low < high:
        middle = (low + high) // 2
        if (found := await next_after(middle)) is None:
            high = middle
        else:
            low = found
    return low
