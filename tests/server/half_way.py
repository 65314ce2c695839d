"""A server that takes over from a running one, and fails before it has done so."""

import os
from pathlib import Path

import trio

from fusepipe.server import Volume
from fusepipe.server.handover import All, Take
from fusepipe.server.replacing import Running
from fusepipe.transport import UnixAddress


def take_and_go_away(path: Path, volume: Volume, *, until_all: bool) -> list[str]:
    """Take over from the server at this socket, and go away, at once or with everything: what it was told."""

    async def talk() -> list[str]:
        addresses = [UnixAddress(str(path))]
        heard: list[str] = []
        running = await Running.find(addresses)
        assert running is not None
        await running.ask(addresses, {volume.name.encode(): volume})
        await running._conversation.say(Take())
        while until_all and All.__name__ not in heard:
            message, fds = await running._conversation.hear()
            heard.append(type(message).__name__)
            for fd in fds:
                os.close(fd)
        running.close()
        return heard

    return trio.run(talk)
