"""The running server's side of being replaced (handover.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import trio

from fusepipe.server.controls import Asker
from fusepipe.server.handover import All, Ask, HandoverError, Locks, Pins, Ready, Session, Source, Yours
from fusepipe.server.launching import KILL_PATIENCE
from fusepipe.server.options import LEAST_DRAIN
from fusepipe.server.replacing import ServedSession

LEAVE_PATIENCE = 10.0
"""Seconds beyond `ServerOptions.drain` until a session process that was told to make room is killed."""


def patience(drain: float) -> float:
    """How many seconds it may take until no process serves any session."""
    return max(drain, LEAST_DRAIN) + LEAVE_PATIENCE + KILL_PATIENCE


def check(ask: Ask, sessions: Sequence[ServedSession]) -> None:
    """Raises HandoverError where the one who asks could not go on with all sessions."""
    for session in sessions:
        name = session.volume.name
        root = ask.volumes.get(name)
        if root is None:
            raise HandoverError(
                f"the running server serves volume {name!r} to {session.peer}, and this one does not have it",
                f"give --volume {name}=... as there, or unmount it first",
            )
        if not session.kept.is_at(*root):
            raise HandoverError(
                f"volume {name!r} is another directory than the one that the running server serves to {session.peer}",
                "serve the same directory, or unmount it first",
            )
        if not session.kept.lasts:
            raise HandoverError(
                f"the session of {session.peer} with volume {name!r} ends with its process (--session-grace 0)",
                "unmount it first",
            )


async def give_over(
    asker: Asker,
    sources: Mapping[str, int],
    controls: Mapping[str, int],
    sessions: Sequence[ServedSession],
    drain: float,
) -> None:
    """Bring all sessions to a rest, and give them and the listening sockets to the one who has asked.

    When this returns they are the other one's: `KeptSession.hand_over` has been called of each.  Where it raises
    (HandoverError, or trio.Cancelled) they are still this one's, and `KeptSession.stay` has been called.
    """
    try:
        check(asker.ask, sessions)
        for session in sessions:
            session.kept.leave()
        await _rest(sessions, drain)
        say = asker.conversation.say
        for control, fds in ((False, sources), (True, controls)):
            for place, fd in fds.items():
                await say(Source(place, control), [fd])
        for session in sessions:
            # One that has ended meanwhile is nobody's any more.
            if session.kept.rests:
                await _give_session(asker, session)
        await say(All())
        await asker.conversation.expect(Ready)
        await say(Yours())
    except BaseException:
        for session in sessions:
            session.kept.stay()
        raise
    for session in sessions:
        session.kept.hand_over()


async def _rest(sessions: Sequence[ServedSession], drain: float) -> None:
    """Wait until no process serves any of them."""
    with trio.move_on_after(max(drain, LEAST_DRAIN) + LEAVE_PATIENCE):
        await _all_left(sessions)
        return
    for session in sessions:
        session.kept.kill_unless_left()
    with trio.move_on_after(KILL_PATIENCE):
        await _all_left(sessions)
        return
    raise HandoverError(
        "a process of the running server does not end: a call of the host hangs in it", "see its log, and try again"
    )


async def _all_left(sessions: Sequence[ServedSession]) -> None:
    for session in sessions:
        if cause := await session.kept.left():
            raise HandoverError(
                f"nobody can take over the session of {session.peer} with volume {session.volume.name!r}: {cause}",
                "unmount it first",
            )


async def _give_session(asker: Asker, session: ServedSession) -> None:
    belongings = session.kept.belongings()
    address, cid, uid = session.key
    await asker.conversation.say(
        Session(
            session_id=belongings.session_id,
            volume=session.volume.name,
            limits=asdict(belongings.limits),
            address=address,
            cid=cid,
            uid=uid,
            peer=session.peer,
            pins=len(belongings.pins),
            locks=len(belongings.locks),
            key=belongings.authority.key if belongings.authority is not None else b"",
            mounts=sorted(belongings.authority.mounts) if belongings.authority is not None else [],
        ),
        [belongings.memfd],
    )
    for nodes, fds in belongings.pins:
        await asker.conversation.say(Pins(nodes), fds)
    for packet, fds in belongings.locks:
        await asker.conversation.say(Locks(packet), fds)
