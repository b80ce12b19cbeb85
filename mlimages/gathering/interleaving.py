"""Order the links of a list so that their hosts take turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator

from mlimages.core import ImageRef
from mlimages.gathering.links import host_of

MAX_READ_AHEAD = 50_000
"""Maximum number of links read ahead; each takes about 0.3 KB of memory, and more if its row has other columns."""

_READ_PER_LINK = 32


async def interleave_hosts(
    refs: AsyncIterator[ImageRef], *, max_read_ahead: int = MAX_READ_AHEAD
) -> AsyncIterator[ImageRef]:
    """Yield the links of `refs` by hosts in turn, in the order of `refs` for each host.

    It reads ahead, so that a list that is sorted by host keeps several hosts busy from the start. Links before an error
    of `refs` are yielded before it is raised.
    """
    queues: OrderedDict[str, deque[ImageRef]] = OrderedDict()
    num_read, is_at_end, error = 0, False, None
    while queues or not is_at_end:
        for _ in range(0 if is_at_end else min(_READ_PER_LINK, max_read_ahead - num_read)):
            try:
                ref = await anext(refs)
            except Exception as stopped:  # StopAsyncIteration, or an error of the source
                is_at_end = True
                error = error if isinstance(stopped, StopAsyncIteration) else stopped
                break
            queues.setdefault(host_of(ref.url), deque()).append(ref)
            num_read += 1
        if queues:
            host, queue = queues.popitem(last=False)
            num_read -= 1
            yield queue.popleft()
            if queue:
                queues[host] = queue
    if error:
        raise error
