"""The listener: accepts connections, reads the first frame of each, and hands it to the session that it belongs to."""

import math
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TypeAlias

import trio

from fusepipe import log
from fusepipe.server.access import who
from fusepipe.server.belongings import Room
from fusepipe.server.controls import Asker, Controls
from fusepipe.server.exposure import exposed
from fusepipe.server.giving_over import check, give_over, patience
from fusepipe.server.handover import Ask, HandoverError, Offer, Refused
from fusepipe.server.keeping import KeptSession
from fusepipe.server.launching import try_sandbox
from fusepipe.server.options import LEFT, ServerError, ServerOptions
from fusepipe.server.replacing import PeerKey, Running, ServedSession, Taken
from fusepipe.server.volumes import Volume, VolumeError
from fusepipe.transport import (
    Address,
    ConnectError,
    FdAddress,
    FirecrackerConnectAddress,
    Listener,
    OutOfResources,
    Peer,
    SocketFile,
    Stream,
    VsockAddress,
    VsockListenAddress,
    connect,
    listen,
    place,
    take_over,
)
from fusepipe.wire import PREFIX, ErrorCode, HelloRequest, RemoteProtocolError, first_frame_size, opening, refusal
from fusepipe.wire.messages import AttachRequest, ResumeRequest

HELLO_PATIENCE = 60.0
"""Seconds in which a connection that was accepted must have sent its first frame, and taken a refusal: much, since a
guest may be emulated or have other things to do, and MAX_WAITING bounds what silent ones can hold."""

MAX_WAITING = 64
"""Connections that may be without their first frame; one more takes the place of the oldest, which is closed."""

PAUSE = 0.2
"""Seconds before accepting again after an error such as no descriptors left."""

DIAL_PAUSE = 1.0
"""Seconds before dialling a guest again whose connection went to no session."""

_logger = log.get_logger("server")

_Source: TypeAlias = tuple[Address, Listener | Stream | None]


async def serve(
    addresses: Sequence[Address],
    volumes: Sequence[Volume],
    options: ServerOptions | None = None,
    *,
    socket_file: SocketFile | None = None,
    ready: Callable[[], None],
    replace: bool = False,
    replaced: Callable[[int], None] = lambda _pid: None,
) -> None:
    """Serve `volumes` on `addresses` until cancelled; `ready` is called once, when every address can be connected to.
    `socket_file` says whose the files of Unix sockets are.  With `replace` the server that runs at these addresses, if
    there is one, hands over its sessions and sockets and ends (handover.py).

    Cancelling drains: nothing more is accepted, socket files are removed, sessions finish what runs and are ended, by
    force if they take longer than `options.drain`.  Without cancelling it returns where all addresses are `fd:` and
    their sessions have ended, and where another server has taken over: then `replaced` is called before, with the
    other's process.

    This process's limit of file descriptors is raised as far as it may be.  Raises ServerError, VolumeError,
    ListenError, and ConnectError (for `fd:`), for what is wrong at the start, HandoverError among them: then the server
    that was to be replaced goes on.
    """
    if not addresses:
        raise ServerError("there is no address to listen on", "give at least one")
    named = {os.fsencode(volume.name): volume for volume in volumes}
    if not volumes or len(named) != len(volumes):
        what = "two volumes have the same name" if volumes else "there is no volume to serve"
        raise ServerError(what, "give each volume a name of its own, as NAME=DIRECTORY")
    for volume in volumes:
        volume.check()
        _check_policy(volume)
    options = options or ServerOptions()
    if options.sandbox == "require" or replace:
        await try_sandbox(volumes[0], options)
    # Some descriptors for each session, and one for each connection that has not said what it wants.
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as stack:
        running = await Running.find(addresses) if replace else None
        if running is not None:
            stack.callback(running.close)
            _check_apart(addresses)
            await running.ask(addresses, named)
        elif replace:
            _logger.info("no server runs at these addresses, so there is none to replace")
        sources: list[_Source] = []
        for address in addresses:
            if running is None or place(address) not in running.places:
                source = await _source(address, socket_file)
                if source is not None:
                    stack.callback(source.close)
                sources.append((address, source))
        server = _Server(named, options)
        if running is not None:
            taken = await running.take(named, options, server.room)
            for address in addresses:
                if (where := place(address)) in running.places:
                    source = _taken_source(address, taken.sources.pop(where or "", -1))
                    if source is not None:
                        stack.callback(source.close)
                    sources.append((address, source))
            _logger.info("this server goes on in place of another", pid=running.pid, sessions=len(taken.sessions))
            server.take_over(taken)
            await taken.aclose()
        await server.run(sources, ready, replaced)


def _check_apart(addresses: Sequence[Address]) -> None:
    """Raises ServerError where two are the same, which listening on the second one would tell elsewhere."""
    places = Counter(place(address) for address in addresses if place(address) is not None)
    if places and places.most_common(1)[0][1] > 1:
        raise ServerError("two of the addresses are the same", "give each of them once")


def _check_policy(volume: Volume) -> None:
    """Warn of what guests may leave there, and raise ServerError for what this user cannot do."""
    privileged = os.geteuid() == 0
    squash = volume.policy.squash_all
    if squash is not None and not privileged and squash != (os.geteuid(), os.getegid()):
        raise ServerError(
            f"volume {volume.name!r} cannot be served as user {squash[0]} and group {squash[1]} by another user",
            "run the server as root, or as that user without squash-all",
        )
    if left := exposed(volume, privileged=privileged):
        _logger.warning(
            "guests can leave there what gives other users of this host rights: serve it with "
            "no-setuid,no-devices, or keep others out of the directory",
            volume=volume.name,
            left=" and ".join(left),
        )


async def _source(address: Address, socket_file: SocketFile | None) -> Listener | Stream | None:
    """Where connections on an address come from; None: they are dialled."""
    if isinstance(address, FirecrackerConnectAddress):
        return None
    if isinstance(address, FdAddress):
        return await connect(address, deadline=0)
    return await listen(address, socket_file)


def _taken_source(address: Address, fd: int) -> Listener | None:
    """Where connections come from on an address that another server had; None: they are dialled."""
    return None if fd == -1 else take_over(address, fd)


class _Server:
    """What the tasks of one listener share."""

    def __init__(self, volumes: dict[bytes, Volume], options: ServerOptions) -> None:
        self._volumes = volumes
        self._options = options
        self._sessions: dict[bytes, ServedSession] = {}
        self._taken: list[ServedSession] = []
        self._controls = Controls()
        self._asker: Asker | None = None
        self.room = Room()
        self._complain = log.Sparing(_logger.warning)
        self._mention = log.Sparing(_logger.info)
        self._waiting: dict[Stream, tuple[PeerKey, trio.CancelScope]] = {}  # in the order in which they were accepted

    def take_over(self, taken: Taken) -> None:
        """Go on with what another server had: its sessions and control sockets.  Before `run`."""
        self._taken, taken.sessions = taken.sessions, []
        for where, fd in taken.controls.items():
            self._controls.take_over(where, fd)
        taken.controls.clear()

    async def run(self, sources: list[_Source], ready: Callable[[], None], replaced: Callable[[int], None]) -> None:
        """Accept and serve, until cancelled, or replaced, or until nothing can come any more."""
        async with trio.open_nursery() as sessions:
            try:
                for address, _ in sources:
                    where = place(address)
                    if where is not None and not self._controls.at([where]):
                        self._controls.open(where)
                for session in self._taken:
                    self._sessions[session.kept.session_id] = session
                    sessions.start_soon(self._watch_over, session, True)
                await self._take_all(sources, sessions, ready)
                while (asker := self._asker) is not None and not await self._give_over(asker, sources, replaced):
                    self._asker = None
                    await self._take_all(sources, sessions, lambda: None)
            finally:
                # At once, not after the sessions, so that clients see that nobody is here.  The controls before the
                # files after which they are named: the next file may have the same number.
                self._controls.close()
                for _, source in sources:
                    if source is not None:
                        source.close()

    async def _take_all(self, sources: list[_Source], sessions: trio.Nursery, ready: Callable[[], None]) -> None:
        """Take connections, until cancelled, or another server wants to take over, or nothing can come any more."""
        async with trio.open_nursery() as accepting:
            ends = [source for _, source in sources if isinstance(source, Stream)]
            for address, source in sources:
                if isinstance(source, Stream):
                    accepting.start_soon(self._greet, source, address, sessions)
                elif source is None:
                    accepting.start_soon(self._dial, address, sessions)
                else:
                    accepting.start_soon(self._accept, source, accepting, sessions)
            if len(ends) < len(sources):

                def take(asker: Asker) -> None:
                    if self._asker is None:
                        self._asker = asker
                        accepting.cancel_scope.cancel()
                    else:
                        asker.conversation.close()

                accepting.start_soon(self._controls.hear, lambda ask: self._offer(ask, sources), take)
            ready()

    # ---- another server ----

    def _offer(self, ask: Ask, sources: list[_Source]) -> Offer:
        """What a server that asks would get.  Raises HandoverError."""
        if any(isinstance(address, FdAddress) for address, _ in sources):
            raise HandoverError(
                "the running server serves a connection that it inherited (fd:N), which cannot be handed over",
                "stop it when its client has unmounted",
            )
        check(ask, list(self._sessions.values()))
        own = {place(address) for address, _ in sources}
        return Offer([where for where in ask.places if where in own], patience(self._options.drain))

    async def _give_over(self, asker: Asker, sources: list[_Source], replaced: Callable[[int], None]) -> bool:
        """Make room for another server: whether it has taken over."""
        conversation, wanted = asker.conversation, set(asker.ask.places)
        handed = {
            where: source
            for address, source in sources
            if (where := place(address)) in wanted and where is not None and isinstance(source, Listener)
        }
        sessions = list(self._sessions.values())
        _logger.info("another server takes over", pid=conversation.pid, sessions=len(sessions))
        try:
            await give_over(
                asker,
                {where: source.fd for where, source in handed.items()},
                self._controls.at(wanted),
                sessions,
                self._options.drain,
            )
        except HandoverError as error:
            _logger.error("the other server has not taken over, and this one goes on", cause=error.cause)
            with suppress(HandoverError):  # it is gone
                await conversation.say(Refused(error.cause, error.remedy))
            return False
        finally:
            conversation.close()
        for source in handed.values():
            source.release()
        _logger.info("another server has taken over", pid=conversation.pid, sessions=len(sessions))
        replaced(conversation.pid)
        return True

    # ---- where connections come from ----

    async def _accept(self, listener: Listener, accepting: trio.Nursery, sessions: trio.Nursery) -> None:
        """Accept for as long as the server lives."""
        complained = False
        while True:
            try:
                stream = await listener.accept()
            except (OutOfResources, OSError) as error:
                # Whatever it is, the sessions that run must not suffer from it.
                if not complained:
                    _logger.error("cannot accept connections", address=str(listener.address), error=error)
                complained = True
                await trio.sleep(PAUSE)
                continue
            complained = False
            while len(self._waiting) >= MAX_WAITING:
                # Of those who have the most: who comes in crowds takes no one else's place.
                most, _ = Counter(key for key, _ in self._waiting.values()).most_common(1)[0]
                oldest = next(stream for stream, (key, _) in self._waiting.items() if key == most)
                self._waiting.pop(oldest)[1].cancel()
            # Counted at once, not when its task begins.
            scope = trio.CancelScope()
            self._waiting[stream] = _key(listener.address, _peer(stream)), scope
            accepting.start_soon(self._greet, stream, listener.address, sessions, scope)

    async def _dial(self, address: Address, sessions: trio.Nursery) -> None:
        """Keep one connection open to a guest that listens, beside those that it uses.

        So one is there for each that it wants: for its HELLO, for further ones, and to go on with its session when it
        has lost them.  Without an end, since guests come and go.
        """
        complaints: set[str] = set()
        while True:
            if not await self._dial_once(address, sessions, complaints):
                await trio.sleep(DIAL_PAUSE)

    async def _dial_once(self, address: Address, sessions: trio.Nursery, complaints: set[str]) -> bool:
        """Dial, and hand the connection on: whether it went to a session.

        `complaints` holds the errors that have been logged since a guest answered.
        """
        try:
            stream = await connect(address, deadline=math.inf)
        except ConnectError as error:
            if str(error) not in complaints:
                _logger.error("cannot dial the guest", error=error)
            complaints.add(str(error))
            return False
        complaints.clear()
        return await self._route(stream, address, sessions)

    # ---- the first frame ----

    async def _greet(
        self, stream: Stream, address: Address, sessions: trio.Nursery, scope: trio.CancelScope | None = None
    ) -> None:
        """Hand a connection on, or refuse it, with as much patience as one deserves whom nobody has called.

        `scope` is what cancels that earlier.
        """
        scope = scope or trio.CancelScope()
        scope.deadline = trio.current_time() + HELLO_PATIENCE
        try:
            with scope:
                await self._route(stream, address, sessions)
        finally:
            self._waiting.pop(stream, None)
            stream.close()
        if scope.cancelled_caught:
            self._mention("a connection said nothing in time", address=str(address))

    async def _route(self, stream: Stream, address: Address, sessions: trio.Nursery) -> bool:
        """Read the first frame of a connection, and nothing beyond it, and hand the connection on or refuse it.

        Returns whether a session has it now.  Nothing that a client does, nor a mistake of ours, concerns more than its
        own connection.
        """
        try:
            self._check_peer(stream, address)
            return await self._hand_on(stream, address, sessions)
        except RemoteProtocolError as error:
            await self._refuse(stream, address, error)
        except trio.BrokenResourceError as error:
            _logger.debug("a connection broke before its first frame", address=str(address), error=error)
        except Exception as error:
            _logger.error("a connection failed unexpectedly", address=str(address), error=error)
        finally:
            stream.close()
        return False

    def _check_peer(self, stream: Stream, address: Address) -> None:
        """Raises RemoteProtocolError where the connection comes from a machine or user that may not connect."""
        peer = stream.peer
        vsock = isinstance(address, VsockAddress | VsockListenAddress)
        allowed = self._options.allowed_cids if vsock else self._options.allowed_uids
        if allowed is not None and (peer.cid if vsock else peer.uid) not in allowed:
            raise RemoteProtocolError(f"{who(peer)} may not connect here", ErrorCode.REFUSED)

    async def _hand_on(self, stream: Stream, address: Address, sessions: trio.Nursery) -> bool:
        """Whether a session has the connection now.  Raises RemoteProtocolError with what the client is to be told."""
        frame = bytearray(PREFIX.size)
        if not await _receive(stream, frame, 0):
            return False
        frame.extend(bytes(first_frame_size(frame)))
        if not await _receive(stream, frame, PREFIX.size):
            raise RemoteProtocolError("the stream ended in the middle of the first frame")
        message = opening(frame)
        if isinstance(message, HelloRequest):
            session = self._begin(message, stream.peer, address, sessions)
        else:
            session = await self._find(message, stream.peer)
        try:
            session.process.give(stream.detach(), bytes(frame), body_crc=address.wants_body_crc)
        except (BrokenPipeError, ConnectionResetError):
            return False  # it has died: its client tries again, with the next one
        except OSError as error:
            _logger.warning("a session process does not take a connection", pid=session.process.pid, error=error)
            if isinstance(message, HelloRequest):
                session.process.terminate()
            return False
        return True

    async def _find(self, message: AttachRequest | ResumeRequest, peer: Peer) -> KeptSession:
        """The session that ATTACH or RESUME names, when a process serves it."""
        session = self._sessions.get(message.session)
        if session is not None:
            await session.kept.started()
            session = self._sessions.get(message.session)
        if session is None:
            raise RemoteProtocolError("the server does not know this session", ErrorCode.STALE)
        _admit(session.volume, peer)
        return session.kept

    def _begin(self, hello: HelloRequest, peer: Peer, address: Address, sessions: trio.Nursery) -> KeptSession:
        """Start the process of a new session."""
        volume = self._volumes.get(hello.volume)
        if volume is None:
            name = os.fsdecode(hello.volume)
            raise RemoteProtocolError(f"there is no volume {name!r} on this server", ErrorCode.NO_SUCH_VOLUME)
        _admit(volume, peer)
        key = _key(address, peer)
        own = sum(other.key == key for other in self._sessions.values())
        if own >= self._options.max_sessions_per_peer:
            raise RemoteProtocolError(f"{who(peer)} has {own} sessions already", ErrorCode.LIMIT)
        if len(self._sessions) >= self._options.max_sessions:
            raise RemoteProtocolError(f"the server has {len(self._sessions)} sessions already", ErrorCode.LIMIT)
        options = self._options
        if isinstance(address, FdAddress):
            options = replace(options, session_grace=0.0)  # nobody can come back on another one
        try:
            session = KeptSession(volume, options, self.room)
        except (OSError, VolumeError) as error:
            _logger.error("a session cannot be started", volume=volume.name, peer=str(peer), error=error)
            # The client is not told why: paths of the host are not for guests.
            text = "the volume cannot be served at present; the server's log says why"
            raise RemoteProtocolError(text, ErrorCode.FAILED) from error
        served = self._sessions[session.session_id] = ServedSession(session, volume, key, str(peer))
        sessions.start_soon(self._watch_over, served, False)
        return session

    async def _refuse(self, stream: Stream, address: Address, error: RemoteProtocolError) -> None:
        self._complain("a client was refused", address=str(address), cause=error.text)
        try:
            with trio.move_on_after(HELLO_PATIENCE):
                await stream.send_all(refusal(error.code, error.text, *error.detail))
                await stream.send_eof()
                # Closing at once would make the kernel drop what was sent if the client had sent more than was read.
                while await stream.receive_some():
                    pass
        except trio.BrokenResourceError:
            return

    # ---- sessions ----

    async def _watch_over(self, served: ServedSession, taken_over: bool) -> None:
        """From the beginning to the end of a session, as far as it is this server's; being cancelled ends it."""
        session = served.kept
        about: dict[str, object] = {"volume": served.volume.name, "peer": served.peer}
        begin = time.monotonic()
        ours = True
        try:
            async with session:
                if taken_over:
                    await session.restart()
                else:
                    _logger.info("a session began", **about, pid=session.process.pid)
                while session.goes_on(status := await session.wait()):
                    if status != LEFT:
                        _logger.error("a session process died, and another one goes on", **about, **session.ended)
                    ours = await session.is_ours()
                    if not ours:
                        break
                    await session.restart()
        except OSError as error:
            _logger.error("a session cannot go on", **about, error=error)
        finally:
            del self._sessions[session.session_id]
            about |= {"seconds": round(time.monotonic() - begin, 1)}
            how = session.ended.get("status")
            if not ours:
                _logger.info("a session is another server's now", **about, **session.ended)
            # A session that is told to end before it has begun is ended by the signal, and one may be at rest.
            elif how in (0, -signal.SIGTERM, LEFT):
                _logger.info("a session ended", **about, **session.ended)
            else:
                _logger.error("a session process died", **about, **session.ended)


def _peer(stream: Stream) -> Peer:
    """Who is at the other end, as far as it is still there."""
    try:
        return stream.peer
    except OSError:
        return Peer()


def _key(address: Address, peer: Peer) -> PeerKey:
    return str(address), peer.cid, peer.uid


def _admit(volume: Volume, peer: Peer) -> None:
    """Raises RemoteProtocolError where the volume is not for this peer."""
    if not volume.access.admits(peer):
        raise RemoteProtocolError(f"{who(peer)} may not use the volume {volume.name!r}", ErrorCode.REFUSED)


async def _receive(stream: Stream, frame: bytearray, start: int) -> bool:
    """Fill `frame` from `start` on; False where the stream ends before."""
    view = memoryview(frame)[start:]
    with view:
        while view:
            count = await stream.receive_into(view)
            if not count:
                return False
            view = view[count:]
    return True
