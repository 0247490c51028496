"""Carries policy into the kernel: whole tables by `nft`, elements by netlink.

A `Firewall` acts on the network namespace of the thread that made it, and is used by one thread at a time.
"""

import contextlib
import errno
import struct
import subprocess
from collections.abc import Callable, Iterator

from netpolicy.compile import ROUTER_TABLE, drop_table
from netpolicy.elements import OPEN_IF, PER_SLOT, Change, Element, Limit
from netpolicy.netlink import (
    ACK,
    CREATE,
    Message,
    NetlinkSocket,
    attribute,
    attribute_list,
    attributes,
    nested,
    text_attribute,
)

_NETFILTER = 12
_INET = 1
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_TABLES = 10 << 8
_NEW_ELEMENT, _GET_ELEMENT, _DELETE_ELEMENT, _GET_GENERATION = (_TABLES | number for number in (12, 13, 14, 16))
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_KEY, _DATA, _TIMEOUT, _EXPRESSION, _KEY_END = 1, 2, 4, 7, 10
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_VALUE = 1
_PER_SECOND = 1
_OVER = 1
_LIST_ATTEMPTS = 5
_MOST_IN_A_BATCH = 4000
"""Elements of one transaction; the messages of more would not fit a datagram."""


class FirewallError(Exception):
    """A table or an element could not be changed; says which and the kernel's words."""


def run_nft(*arguments: str, text: str | None = None) -> str:
    """Run `nft` in the calling thread's network namespace and return what it prints."""
    try:
        done = subprocess.run(["nft", *arguments], input=text, capture_output=True, text=True, check=False)
    except OSError as error:
        raise FirewallError(f"nft cannot be run: {error}") from error
    if done.returncode != 0:
        raise FirewallError(f"nft {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def load_table(text: str) -> None:
    run_nft("-f", "-", text=text)


def delete_table(name: str) -> None:
    """Idempotent."""
    run_nft("-f", "-", text=drop_table(name))


def table_text(name: str) -> str | None:
    """Return a table as the kernel has it, or None."""
    with contextlib.suppress(FirewallError):
        return run_nft("--stateless", "list", "table", "inet", name)
    return None


class Firewall:
    """The sets of one namespace's table, on one socket that lives as long as it works."""

    def __init__(
        self, connect: Callable[[], NetlinkSocket] = lambda: NetlinkSocket(_NETFILTER), *, table: str = ROUTER_TABLE
    ) -> None:
        self._connect = connect
        self._table = table
        self._socket: NetlinkSocket | None = None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def apply(self, change: Change) -> None:
        """Make all of a change true in one transaction, or none of it (FirewallError)."""
        # Removing what is absent would abort the batch; what has just been added is there.
        messages = [_element_message(self._table, _NEW_ELEMENT, ACK | CREATE, element) for element in change.remove]
        messages += [_element_message(self._table, _DELETE_ELEMENT, ACK, element) for element in change.remove]
        messages += [_element_message(self._table, _NEW_ELEMENT, ACK | CREATE, element) for element in change.add]
        if not messages:
            return
        if len(messages) > _MOST_IN_A_BATCH:
            raise FirewallError(f"{len(messages)} changes of elements are too many for one transaction")
        begin = Message(_BATCH_BEGIN, 0, struct.pack(">BBH", 0, 0, 10))
        end = Message(_BATCH_END, 0, struct.pack(">BBH", 0, 0, 10))
        self._change([begin, *messages, end], "set elements")

    def elements(self, set_name: str) -> list[Element]:
        """Return what is in a set now, without time-outs; nothing if there is no such set."""
        payload = struct.pack(">BBH", _INET, 0, 0)
        payload += text_attribute(_LIST_TABLE, self._table) + text_attribute(_LIST_SET, set_name)
        for _ in range(_LIST_ATTEMPTS):
            try:
                answers = self._connected().dump(Message(_GET_ELEMENT, 0, payload))
            except FileNotFoundError:
                return []
            except InterruptedError:
                continue
            except OSError as error:
                self.close()
                raise FirewallError(f"set {set_name} cannot be read: {error}") from error
            return [element for answer in answers for element in _read_elements(set_name, answer)]
        raise FirewallError(f"set {set_name} changes faster than it can be read: {errno.EINTR}")

    def slot_elements(self) -> dict[str, set[Element]]:
        """Return what every interface has in the sets of slots and policies."""
        found: dict[str, set[Element]] = {}
        for name in PER_SLOT:
            for element in self.elements(name):
                found.setdefault(element.interface, set()).add(element)
        return found

    def open_interfaces(self) -> set[str]:
        """Return the interfaces whose mode is open now; none if there is no table."""
        return {element.interface for element in self.elements(OPEN_IF)}

    def generation(self) -> bytes:
        """Return the counter that the kernel raises with every change to any table of the namespace."""
        try:
            return attributes(self._connected().get(Message(_GET_GENERATION, 0, struct.pack(">BBH", 0, 0, 0)))[4:])[1]
        except OSError as error:
            self.close()
            raise FirewallError(f"the generation of the rules cannot be read: {error}") from error

    def _connected(self) -> NetlinkSocket:
        if self._socket is None:
            self._socket = self._connect()
        return self._socket

    def _change(self, messages: list[Message], what: str) -> None:
        try:
            self._connected().change(messages)
        except OSError as error:
            # After a failed batch, answers of its later messages may still arrive.
            self.close()
            raise FirewallError(f"{what} cannot be changed: {error}") from error


def _element_message(table: str, kind: int, flags: int, element: Element) -> Message:
    parts = [nested(_KEY, attribute(_VALUE, element.key))]
    if element.last is not None:
        parts.append(nested(_KEY_END, attribute(_VALUE, element.last)))
    if kind == _NEW_ELEMENT:
        if element.data is not None:
            parts.append(nested(_DATA, attribute(_VALUE, element.data)))
        if element.timeout_ms is not None:
            parts.append(attribute(_TIMEOUT, struct.pack(">Q", element.timeout_ms)))
        if element.limit is not None:
            parts.append(_limit_expression(element.limit))
    payload = struct.pack(">BBH", _INET, 0, 0)
    payload += text_attribute(_LIST_TABLE, table) + text_attribute(_LIST_SET, element.set_name)
    payload += nested(_LIST_ELEMENTS, nested(1, *parts))
    return Message(kind, flags, payload)


def _limit_expression(limit: Limit) -> bytes:
    if limit.kind == "connections":
        data = attribute(1, struct.pack(">I", limit.value)) + attribute(2, struct.pack(">I", _OVER))
        return nested(_EXPRESSION, text_attribute(_EXPRESSION_NAME, "connlimit"), nested(_EXPRESSION_DATA, data))
    data = attribute(1, struct.pack(">Q", limit.value)) + attribute(2, struct.pack(">Q", _PER_SECOND))
    data += attribute(3, struct.pack(">I", limit.burst))
    data += attribute(4, struct.pack(">I", limit.kind == "bytes")) + attribute(5, struct.pack(">I", _OVER))
    return nested(_EXPRESSION, text_attribute(_EXPRESSION_NAME, "limit"), nested(_EXPRESSION_DATA, data))


def _read_limit(expression: bytes) -> Limit | None:
    parts = attributes(expression)
    name = parts.get(_EXPRESSION_NAME, b"").rstrip(b"\0")
    data = attributes(parts.get(_EXPRESSION_DATA, b""))
    if name == b"connlimit":
        return Limit("connections", int.from_bytes(data.get(1, b""), "big"))
    if name == b"limit":
        kind = "bytes" if int.from_bytes(data.get(4, b""), "big") else "packets"
        return Limit(kind, int.from_bytes(data.get(1, b""), "big"), int.from_bytes(data.get(3, b""), "big"))
    return None


def _read_elements(set_name: str, answer: bytes) -> Iterator[Element]:
    for _, packed in attribute_list(attributes(answer[4:]).get(_LIST_ELEMENTS, b"")):
        parts = attributes(packed)
        data, last = parts.get(_DATA), parts.get(_KEY_END)
        yield Element(
            set_name,
            attributes(parts[_KEY])[_VALUE],
            data=attributes(data)[_VALUE] if data is not None else None,
            last=attributes(last)[_VALUE] if last is not None else None,
            limit=_read_limit(parts[_EXPRESSION]) if _EXPRESSION in parts else None,
        )
