"""Every request runs once and every reply reaches its request, wherever the byte streams are cut."""

import os
from collections.abc import Callable, Iterator
from random import Random

import pytest

from fusepipe.wire import ErrorCode, Op, client_session

from .simulation import Link, Pipe, World, check_clones, check_one_client

RUNS = int(os.environ.get("FUSEPIPE_SIMULATIONS", "60"))
"""How many seeds each of the random tests runs."""
ALL = 1 << 20


@pytest.mark.parametrize("seed", range(RUNS))
def test_cut_anywhere(seed: int) -> None:
    random = Random(seed)
    world = World(random, body_crc=seed % 3 == 0)
    world.chaos(1500, faults=random.choice((0.002, 0.01, 0.05)))
    world.settle()
    check_one_client(world)
    assert world.runs


@pytest.mark.parametrize("seed", range(RUNS))
def test_of_clones_exactly_one_goes_on(seed: int) -> None:
    random = Random(seed)
    world = World(random, body_crc=seed % 3 == 0)
    world.chaos(random.choice((50, 300)), faults=random.choice((0.0, 0.01)))
    while world.clients[0].session.agreed is None:
        world.chaos(10, faults=0)
    for _ in range(random.choice((1, 1, 2))):
        world.clients.append(world.clients[0].clone())
        if random.random() < 0.5:
            world.clients[0].drop()
        world.chaos(random.choice((0, 5, 30, 100)), faults=random.choice((0, 0.02)))
    world.chaos(500, faults=random.choice((0.0, 0.01, 0.05)))
    world.settle()
    winner = check_clones(world)
    assert not winner.session.lost


# ---- a cut at every byte of every handshake -------------------------------------------------------------------------


def deliver(world: World) -> bool:
    """Delivers what is on its way, everything at once, in order.  Whether there was anything."""
    moved = False
    for link in list(world.links):
        if link.up.busy:
            world.deliver_up(link, ALL)
            moved = True
        if link.down.busy:
            world.deliver_down(link, ALL)
            moved = True
    return moved


def established(connections: int = 1) -> World:
    """A world whose client has these connections and no request."""
    world = World(Random(1))
    client = world.clients[0]
    while not (len(client.links) == connections and all(link.client.established for link in client.links)):
        if not deliver(world):
            assert client.connect()
    return world


def with_requests(world: World) -> None:
    """One request has run and its reply is lost; one has arrived and still runs; one was lost; all by loss of all."""
    client = world.clients[0]
    assert client.ask_unlink()
    assert client.ask_unlink()
    (link, *_) = client.links
    world.deliver_up(link, ALL)
    while link.in_hand:
        world.judge(link)
    assert client.ask_unlink()
    link.up.cut(0)
    link.down.cut(0)
    if world.running:
        world.finish(0)
    client.drop()
    assert client.ask_unlink(), "requests are taken while the connection is lost"


def run_with_cut(world: World, link: Link, pipe: Pipe, at: int) -> bool:
    """Delivers everything until `at` bytes of this pipe have been delivered; then the connection dies.

    Whether it came to that.
    """
    while link.up.busy or link.down.busy:
        for direction, move in ((link.up, world.deliver_up), (link.down, world.deliver_down)):
            if direction is pipe and pipe.data:
                if at < len(pipe.data):
                    if at:
                        move(link, at)
                    link.up.cut(0)
                    link.down.cut(0)
                    return True
                at -= len(pipe.data)
            if direction.busy:
                move(link, ALL)
    return False


def lengths(made: Callable[[], World]) -> tuple[int, int]:
    """How many bytes go up and down in a handshake that is not cut."""
    world = made()
    client = world.clients[0]
    assert client.connect()
    link = client.links[-1]
    up = down = 0
    while link.up.busy or link.down.busy:
        up += len(link.up.data)
        if link.up.busy:
            world.deliver_up(link, ALL)
        down += len(link.down.data)
        if link.down.busy:
            world.deliver_down(link, ALL)
    assert link.client.established
    return up, down


def lost_with_requests() -> World:
    world = established(connections=2)
    with_requests(world)
    return world


OPENINGS: dict[str, Callable[[], World]] = {
    "hello": lambda: World(Random(1)),
    "attach": established,
    "resume": lost_with_requests,
}


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_cut_at_every_byte_of_a_handshake(opening: str, direction: str) -> None:
    made = OPENINGS[opening]
    total = lengths(made)[direction == "down"]
    assert total > 20
    for at in range(total):
        world = made()
        client = world.clients[0]
        assert client.connect()
        link = client.links[-1]
        assert link.client.opening is Op[opening.upper()]
        assert run_with_cut(world, link, getattr(link, direction), at)
        world.settle()
        check_one_client(world)


def test_cut_twice_in_the_resumption() -> None:
    up, down = lengths(lost_with_requests)
    points = [("up", at) for at in range(0, up, 13)] + [("down", at) for at in range(0, down, 13)]
    for first in points:
        for second in points:
            world = lost_with_requests()
            client = world.clients[0]
            for direction, at in (first, second):
                while not client.links:
                    # Each end of the dead connection learns of it at some time.
                    if not client.connect():
                        assert deliver(world)
                link = client.links[-1]
                run_with_cut(world, link, getattr(link, direction), at)
                deliver(world)
            world.settle()
            check_one_client(world)


# ---- two clones, in every order -------------------------------------------------------------------------------------


class Chooser:
    """Goes through every sequence of choices: first by the given ones, then always the first possible."""

    def __init__(self, given: list[int]) -> None:
        self.given = given
        self.taken: list[tuple[int, int]] = []

    def pick(self, count: int) -> int:
        choice = self.given[len(self.taken)] if len(self.taken) < len(self.given) else 0
        self.taken.append((choice, count))
        return choice


def every_order(run: Callable[[Chooser], None]) -> Iterator[list[int]]:
    """Runs with every sequence of choices, each once."""
    given: list[int] = []
    while True:
        chooser = Chooser(given)
        run(chooser)
        yield [choice for choice, _ in chooser.taken]
        taken = chooser.taken
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return
        given = [choice for choice, _ in taken[:-1]] + [taken[-1][0] + 1]


def clones_in_one_order(chooser: Chooser, *, source_stays: bool, busy: bool, cuts: int) -> tuple[str, int]:
    """Two clients with one secret resume, message by message in the chosen order, with up to so many cuts.

    Who goes on, and how often a resumption was confirmed.
    """
    world = established()
    source = world.clients[0]
    if busy:
        assert source.ask_unlink()
    copy = source.clone()
    world.clients.append(copy)
    if not source_stays:
        source.drop()
    if not cuts:
        source.ask_unlink()
    copy.ask_unlink()
    while not world.wins:
        connected = [client.connect() for client in world.clients]
        for link in world.links:
            # When an end is noticed matters little here, and would make the orders too many.
            if link.up.busy and not link.up.data:
                world.deliver_up(link, 0)
            if link.down.busy and not link.down.data:
                world.deliver_down(link, 0)
            if link.in_hand:
                world.judge(link)
        pipes = [(link, pipe) for link in world.links for pipe in (link.up, link.down) if pipe.data]
        if not pipes:
            if not any(connected) and not any(link.in_hand for link in world.links):
                break
            continue
        choice = chooser.pick(len(pipes) * (2 if cuts else 1))
        link, pipe = pipes[choice % len(pipes)]
        if choice >= len(pipes):
            cuts -= 1
            link.up.cut(0)
            link.down.cut(0)
        elif pipe is link.up:
            world.deliver_up(link, ALL)
        else:
            world.deliver_down(link, ALL)
    world.settle()
    winner = check_clones(world)
    (loser,) = (client for client in world.clients if client is not winner)
    assert loser.session.ended
    return "source" if winner is source else "copy", len(world.wins)


@pytest.mark.parametrize("source_stays", [False, True])
@pytest.mark.parametrize(("busy", "cuts"), [(False, 0), (True, 0), (False, 1)])
def test_two_clones_in_every_order(source_stays: bool, busy: bool, cuts: int) -> None:
    winners = set()

    def run(chooser: Chooser) -> None:
        winners.add(clones_in_one_order(chooser, source_stays=source_stays, busy=busy, cuts=cuts)[0])

    orders = sum(1 for _ in every_order(run))
    assert orders > 5
    assert "source" in winners
    assert "copy" in winners


# ---- a client from the past -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answered", [False, True])
def test_a_client_set_back_is_stale(answered: bool) -> None:
    """With the secret still valid: the slots alone show it."""
    world = established()
    client = world.clients[0]
    past = client.clone()
    world.clients.append(past)
    assert client.ask_unlink()
    deliver(world)
    (link,) = client.links
    world.judge(link)
    if answered:
        world.finish(0)
        deliver(world)
    assert past.connect()
    refused: list[client_session.Event] = []
    (late,) = past.links
    world.deliver_up(late, ALL)
    late.owner.handle = lambda link, events: refused.extend(events)  # type: ignore[method-assign]  # to look at them
    world.deliver_down(late, ALL)
    assert [type(event) for event in refused] == [client_session.Refused]
    assert isinstance(refused[0], client_session.Refused)
    assert refused[0].code is ErrorCode.STALE
    assert "a copy from the past" in refused[0].text
    assert past.session.ended
    assert client.session.agreed is not None
    assert link.client.established
    assert client.ask_unlink()
    past.stale = True
    world.settle()
    assert check_clones(world) is client


def test_a_copy_that_falls_behind_between_resume_and_confirm_is_stale() -> None:
    world = established()
    client = world.clients[0]
    copy = client.clone()
    world.clients.append(copy)
    assert copy.connect()
    (late,) = copy.links
    world.deliver_up(late, ALL)
    assert client.ask_unlink()
    (link,) = client.links
    world.deliver_up(link, ALL)
    world.judge(link)
    world.deliver_down(late, ALL)
    assert late.up.data, "CONFIRM is on its way"
    world.deliver_up(late, ALL)
    assert world.wins == []
    assert link.client.established
    assert link.server.current
    world.settle()
    assert check_clones(world) is client
