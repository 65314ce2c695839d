"""Notices a server that is silent, of which a socket alone says nothing (a paused machine, a lost vsock device)."""

import trio

from fusepipe.client.link import Link

PING_AFTER = 5.0
"""Seconds without a byte, while a reply is owed, after which the server is asked for a sign of life."""
DEAD_AFTER = 5.0
"""Seconds from then on without a byte after which the connection counts as dead."""
LOOKS = 10
"""In so many equal parts those seconds are waited.  A virtual machine's clock may jump ahead when the machine goes on
after a pause: one long wait would then be over before the answer, which was there all the time, has been read."""


async def watch(link: Link) -> None:
    """Loses the connection when the server owes a reply and is silent.  Returns when the session is over."""
    busy_since = trio.current_time()
    while not link.over.is_set():
        connected = link.connected
        if not connected.is_set():
            await connected.wait()
            busy_since = trio.current_time()
        if not link.waits:
            link.busy = trio.Event()
            link.tell_busy()
            await link.busy.wait()
            busy_since = trio.current_time()
        quiet_since = max(link.heard, busy_since)
        await trio.sleep_until(quiet_since + PING_AFTER)
        if link.connected is not connected or link.heard > quiet_since or not link.waits:
            continue
        asked = trio.current_time()
        link.ping()
        for _ in range(LOOKS):
            await trio.sleep(DEAD_AFTER / LOOKS)
            if link.connected is not connected or link.heard >= asked:
                break
        else:
            link.lose(f"the server has been silent for {PING_AFTER + DEAD_AFTER:g} seconds")
