# SPDX-License-Identifier: BSD-2-Clause
"""Programs of the guest that talk to xenstored over the kernel's device, as guest agents of XCP-ng and Xen Orchestra do."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

from harness.guests import suspend, xenstore_client
from harness.guests.guest import Guest
from harness.guests.xenstore_client import RECEIVE, RefusedWrite, XenstoreClient, octal
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.xen import xenstore_wire
from harness.xen.xenstore_wire import HEADER, PAYLOAD_MAX, Kind, Message

from .support import InBackground

# A guest may write below `data` of its domain (xen docs/misc/xenstore-paths.pandoc).
NODE = "data/fxh"
# Transactions that conflict, and the allocations that a guest without a leak may have more than before.
CONFLICTS, SLACK = 8, 3
# Requests of each of two clients, in pairs.
PAIRS = 40


def connect(guest: Guest, case: CaseContext, name: str = "1") -> XenstoreClient:
    """A client in the guest. Skips the case if the guest has no device for it."""
    if not xenstore_client.available(guest):
        pytest.skip(f"needs {guest.os.xenstore_device} in the guest; elsewhere: fxh run lifecycle -k xenstore_client")
    client = XenstoreClient(guest, name)
    case.undo.append(client.close)
    return client


def path(guest: Guest, name: str = "") -> str:
    """The absolute path of a node below NODE."""
    return f"/local/domain/{guest.domid}/{NODE}{name}"


def reference(guest: Guest) -> str:
    return f"xen docs/misc/xenstore.txt; {guest.os.source('xenstore device')}"


def begin(client: XenstoreClient) -> int:
    """Start a transaction; returns its number."""
    answer = client.ask(Kind.TRANSACTION_START, "")
    assert answer.kind != Kind.ERROR, f"TRANSACTION_START gives {answer}"
    return int(answer.words[0])


def test_xenstore_client_requests(guest: Guest, case: CaseContext) -> None:
    """Each request of a program gets xenstored's answer: read, write, list, remove, permissions, paths and errors.

    Kind of bug: a kernel passes messages of a program on, and their types, lengths or errors change.

    Source: xen docs/misc/xenstore.txt; sys/dev/xen/xenstore/xenstore_dev.c, xs_dev_write(); Linux drivers/xen/xenbus/xenbus_dev_frontend.c
    Catches: agents of a guest that cannot read or report (opnsense/core issue 6335, plugins issues 3312 and 4135)
    """
    store, client, wrong = guest.host.xenstore, connect(guest, case), list[str]()

    def expect(wanted: str, kind: Kind, *words: str) -> None:
        answer = client.ask(kind, *words)
        shown = " ".join(answer.words) if answer.kind != Kind.ERROR else f"ERROR {answer.words[0]}"
        if shown != wanted:
            wrong.append(f"{kind.name} {' '.join(words)} gives {shown!r} instead of {wanted!r}")

    expect("OK", Kind.MKDIR, NODE)
    expect("OK", Kind.WRITE, f"{NODE}/a", "one")
    if (seen := store.read(path(guest, "/a"))) != "one":
        wrong.append(f"dom0 reads {seen!r} instead of 'one'")
    store.write(path(guest, "/b"), "two")
    expect("two", Kind.READ, f"{NODE}/b")
    expect("a b", Kind.DIRECTORY, NODE)
    expect(f"n{guest.domid}", Kind.GET_PERMS, f"{NODE}/a")
    expect("OK", Kind.SET_PERMS, f"{NODE}/a", f"n{guest.domid}", "r0")
    expect(f"n{guest.domid} r0", Kind.GET_PERMS, f"{NODE}/a")
    expect(f"/local/domain/{guest.domid}", Kind.GET_DOMAIN_PATH, str(guest.domid))
    expect("ERROR ENOENT", Kind.READ, f"{NODE}/none")
    expect("ERROR EACCES", Kind.WRITE, "/local/domain/0/fxh", "no")
    expect("OK", Kind.RM, NODE)
    if (seen := store.read(path(guest, "/a"))) is not None:
        wrong.append(f"dom0 still reads {seen!r} after RM")

    assert not wrong, finding(
        test=f"requests of a program in the guest over {guest.os.xenstore_device}",
        observed=wrong,
        expected="the answers of xenstored",
        reference=reference(guest),
    )


def test_xenstore_client_transactions(guest: Guest, case: CaseContext) -> None:
    """Transactions of a program take effect at their end, or not at all, and those that fail leave no memory behind.

    Kind of bug: a kernel keeps books about what a program has open, and an error is not booked.

    Source: xen docs/misc/xenstore.txt, TRANSACTION_END; sys/dev/xen/xenstore/xenstore_dev.c, xs_dev_write()
    Catches: FreeBSD 13.2 to 15.1 keep each transaction that ended with EAGAIN until the program closes the device
    """
    store, ask, wrong = guest.host.xenstore, guest.os, list[str]()
    client = connect(guest, case)
    client.ask(Kind.WRITE, NODE, "0")

    for end, value, before_it, after_it in (("T", "1", "0", "1"), ("F", "2", "1", "1")):
        transaction = begin(client)
        client.ask(Kind.WRITE, NODE, value, transaction=transaction)
        early = store.read(path(guest))
        client.ask(Kind.TRANSACTION_END, end, transaction=transaction)
        late = store.read(path(guest))
        if (early, late) != (before_it, after_it):
            wrong.append(f"a transaction with the end {end}: dom0 reads {early!r} before it and {late!r} after it")

    before = ask.holdings(guest.sh).get("allocations", 0)
    for number in range(CONFLICTS):
        transaction = begin(client)
        client.ask(Kind.READ, NODE, transaction=transaction)
        store.write(path(guest), f"dom0 {number}")
        client.ask(Kind.WRITE, NODE, "guest", transaction=transaction)
        answer = client.ask(Kind.TRANSACTION_END, "T", transaction=transaction)
        if answer.kind != Kind.ERROR or answer.words[0] != "EAGAIN":
            wrong.append(f"a transaction in conflict with a write of dom0 ended with {answer}")
        if (seen := store.read(path(guest))) != f"dom0 {number}":
            wrong.append(f"after the conflict dom0 reads {seen!r}")
    kept = ask.holdings(guest.sh).get("allocations", 0) - before
    case.metrics["kept allocations"] = float(kept)
    assert not wrong, finding(
        test=f"a committed and an aborted transaction of a program, then {CONFLICTS} in conflict with dom0",
        observed=wrong,
        expected="each takes effect at its end or not at all, and a conflict is EAGAIN",
        reference=reference(guest),
    )
    # By itself, because a known issue of this must not cover the others.
    assert kept <= SLACK, finding(
        test=f"the memory of the kernel before and after {CONFLICTS} transactions that ended with EAGAIN",
        observed=f"after {CONFLICTS} conflicts the kernel has {kept} more allocations",
        expected=f"at most {SLACK} more: a transaction that ended is gone",
        reference=reference(guest),
    )


def test_xenstore_client_watches(guest: Guest, case: CaseContext) -> None:
    """A program's watch fires once when it is set, at each change of dom0 with path and token, and not after its end.

    Kind of bug: events of a watch that go to another program, twice or nowhere.

    Source: xen docs/misc/xenstore.txt, WATCH; sys/dev/xen/xenstore/xenstore_dev.c, xs_dev_watch_cb()
    """
    store, client, wrong = guest.host.xenstore, connect(guest, case), list[str]()

    def expect(name: str, what: str) -> None:
        event = client.event()
        if event.kind != Kind.WATCH_EVENT or event.words != (f"{NODE}{name}", "token"):
            wrong.append(f"{what}: {event}")

    client.ask(Kind.WRITE, NODE, "0")
    client.ask(Kind.WATCH, NODE, "token")
    expect("", "the event of the watch itself")
    for name in ("", "/below"):
        store.write(path(guest, name), "1")
        expect(name, f"the event of dom0's write to {NODE}{name}")
    answer = client.ask(Kind.UNWATCH, NODE, "token")
    if answer.kind != Kind.UNWATCH:
        wrong.append(f"UNWATCH gives {answer}")
    store.write(path(guest), "2")
    time.sleep(1)
    client.ask(Kind.READ, NODE)
    if client.events:
        wrong.append(f"after UNWATCH: {', '.join(map(str, client.events))}")
    again = client.ask(Kind.UNWATCH, NODE, "token")

    assert not wrong, finding(
        test=f"a watch of a program on {NODE}, and writes of dom0 before and after its end",
        observed=wrong,
        expected="one event for the watch, one for each write, none after UNWATCH",
        reference=reference(guest),
    )
    # By itself, because a known issue of this must not cover the others.
    assert again.kind == Kind.ERROR, finding(
        test=f"UNWATCH of a watch on {NODE} that is gone",
        observed=f"a second UNWATCH gives {again}",
        expected="ENOENT, as from xenstored",
        reference=reference(guest),
    )


@pytest.mark.parametrize("size", [PAYLOAD_MAX - HEADER, PAYLOAD_MAX, PAYLOAD_MAX + 1])
def test_xenstore_client_payload(guest: Guest, size: int, case: CaseContext) -> None:
    """A request with a payload of up to 4096 bytes reaches xenstored; a longer one is an error, and the next program can go on.

    xenstored itself may answer a long value with an error, because it limits the size of a guest's nodes.

    Kind of bug: a buffer that is as large as the longest payload, and that has to hold the header, too.

    Source: xen/include/public/io/xs_wire.h, XENSTORE_PAYLOAD_MAX; sys/dev/xen/xenstore/xenstore_dev.c, xs_dev_write()
    Catches: EINVAL for payloads of 4081 to 4096 bytes (FreeBSD 13.2 to 15.1, Linux 6.12)
    """
    client = connect(guest, case)
    value = b"x" * (size - len(NODE) - 1)
    try:
        answer: Message | None = client.ask(Kind.WRITE, NODE, value)
    except RefusedWrite:
        answer = None
    follower = connect(guest, case, "2").ask(Kind.WRITE, f"{NODE}/after", "1")
    wrong = []
    if size <= PAYLOAD_MAX and answer is None:
        wrong.append(f"write(2) of a request with a payload of {size} bytes fails")
    if size > PAYLOAD_MAX and answer is not None and answer.kind != Kind.ERROR:
        wrong.append(f"a payload of {size} bytes gives {answer}")
    if follower.kind != Kind.WRITE or guest.host.xenstore.read(path(guest, "/after")) != "1":
        wrong.append(f"after it a short request of another program gives {follower}")
    assert not wrong, finding(
        test=f"a WRITE with a payload of {size} bytes by a program in the guest",
        observed=wrong,
        expected=f"up to {PAYLOAD_MAX} bytes an answer of xenstored, else an error; other programs are not affected",
        reference=f"xen/include/public/io/xs_wire.h, XENSTORE_PAYLOAD_MAX; {guest.os.source('xenstore device')}",
    )


def pairs(name: str, count: int) -> tuple[str, list[Message]]:
    """A shell loop that writes and reads ``count`` values below NODE, and the answers that it should get."""
    node, value = f"{NODE}/{name}", "$v"
    write = Message(Kind.WRITE, f"{node}\0".encode() + b"00").packed()
    read = Message(Kind.READ, f"{node}\0".encode()).packed()

    def tagged(message: bytes, rest: str = "") -> str:
        return f'printf "{octal(message[:4])}$r{octal(message[5:])}{rest}" >&8; {RECEIVE}'

    loop = (
        f"i=0; while [ $i -lt {count} ]; do r=$(printf '\\\\%03o' $i); v=$(printf '%02d' $i); "
        f"{tagged(write[:-2], value)}; {tagged(read)}; i=$((i+1)); done"
    )
    answers = []
    for number in range(count):
        answers += [Message(Kind.WRITE, b"OK\0", number), Message(Kind.READ, b"%02d" % number, number)]
    return loop, answers


def test_xenstore_client_with_another(guest: Guest, case: CaseContext) -> None:
    """Two programs that talk to xenstored at the same time each get their own answers, in order.

    Kind of bug: answers that go to the program that asked last.

    Source: sys/dev/xen/xenstore/xenstore.c, xs_dev_request_and_reply(); Linux drivers/xen/xenbus/xenbus_xs.c, xenbus_dev_request_and_reply()
    """
    connect(guest, case)
    device, wrong = guest.os.xenstore_device, []
    background, wanted = InBackground(guest, 120), dict[str, list[Message]]()
    running = dict[str, Callable[[], str]]()
    for name in ("a", "b"):
        loop, wanted[name] = pairs(name, PAIRS)
        running[name] = background.start(f"( exec 8<>{device}; {loop} ) | od -An -v -tx1")
    for name, output in running.items():
        try:
            answers = xenstore_wire.unpack(bytes.fromhex(output()))
        except ValueError as exc:
            wrong.append(f"program {name} gets {exc}")
            continue
        for number, (answer, expected) in enumerate(itertools.zip_longest(answers, wanted[name])):
            if answer != expected:
                wrong.append(f"answer {number} to program {name} is {answer or 'missing'} instead of {expected or 'none'}")
                break
    assert not wrong, finding(
        test=f"two programs that each write and read {PAIRS} values at the same time",
        observed=wrong,
        expected="each gets the answers to its own requests, in order",
        reference=reference(guest),
    )


def test_saved_xenstore_client(guest: Guest, case: CaseContext) -> None:
    """An open connection, its watch and a transaction of a program are in order after `xl save` and `xl restore`.

    xenstored is a new one for the domain: the kernel has to set the watch again, and the transaction is gone.

    Kind of bug: state of another program, here xenstored, that a restored guest believes to be there.

    Source: sys/dev/xen/xenstore/xenstore.c, xs_resume(); Linux drivers/xen/xenbus/xenbus_xs.c, xs_resume()
    """
    store, client, wrong = guest.host.xenstore, connect(guest, case), list[str]()
    client.ask(Kind.WRITE, NODE, "0")
    client.ask(Kind.WATCH, NODE, "token")
    client.event()
    transaction = begin(client)

    suspend.through_a_file(guest)

    answer = client.ask(Kind.TRANSACTION_END, "T", transaction=transaction)
    if answer.kind != Kind.ERROR:
        wrong.append(f"the end of a transaction from before the save gives {answer}")
    answer = client.ask(Kind.WRITE, NODE, "guest")
    seen = store.read(path(guest))
    if answer.kind != Kind.WRITE or seen != "guest":
        wrong.append(f"a write gives {answer}, and dom0 reads {seen!r}")
    client.events.clear()
    store.write(path(guest, "/below"), "1")
    names = set[str]()
    for _ in range(6):  # the watch's own event, and one for each write
        names.add(client.event().words[0])
        if f"{NODE}/below" in names:
            break
    if f"{NODE}/below" not in names:
        wrong.append(f"the watch fires for {', '.join(sorted(names))} only")
    assert not wrong, finding(
        test="xl save and xl restore of a guest in which a program has a connection, a watch and a transaction",
        observed=wrong,
        expected="the connection and the watch work, the transaction is an error",
        reference=f"{reference(guest)}; {guest.os.source('suspend')}",
    )
