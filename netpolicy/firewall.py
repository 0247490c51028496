"""Carries policy into the kernel: whole tables by `nft`, elements and connections by netlink.

A `Firewall` acts on the network namespace of the thread that made it, and is used by one thread at a time.
"""

import contextlib
import struct
import subprocess
from collections.abc import Callable, Iterable

from netpolicy.compile import NODE_MARK, OPEN, ROUTER_TABLE, SLOT_MASK, Change, Element, slot_mark
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
_DELETE_CONNECTION = 1 << 8 | 2
_CONNECTION_MARK, _CONNECTION_MARK_MASK = 8, 21
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_ELEMENT_KEY, _ELEMENT_DATA, _ELEMENT_EXPRESSION, _ELEMENT_LAST_KEY = 1, 2, 7, 10
_EXPRESSION_DATA, _COUNTER_BYTES = 2, 1
_VALUE = 1


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
    run_nft("-f", "-", text=f"table inet {name} {{}}\ndelete table inet {name}\n")


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
        table = self._table
        messages = [_element_message(table, _NEW_ELEMENT, ACK | CREATE, element) for element in change.remove]
        messages += [_element_message(table, _DELETE_ELEMENT, ACK, element) for element in change.remove]
        messages += [_element_message(table, _NEW_ELEMENT, ACK | CREATE, element) for element in change.add]
        if not messages:
            return
        begin = Message(_BATCH_BEGIN, 0, struct.pack(">BBH", 0, 0, 10))
        end = Message(_BATCH_END, 0, struct.pack(">BBH", 0, 0, 10))
        self._change([begin, *messages, end], "set elements")

    def forget_connections(self, index: int, *, of_the_node: bool = False) -> None:
        """End every connection that a slot's sandbox began: neither side's next packet belongs to one.

        With `of_the_node`, also those that the node began.
        """
        mask = SLOT_MASK if of_the_node else SLOT_MASK | NODE_MARK
        payload = struct.pack(">BBH", 0, 0, 0)
        payload += attribute(_CONNECTION_MARK, struct.pack(">I", slot_mark(index)))
        payload += attribute(_CONNECTION_MARK_MASK, struct.pack(">I", mask))
        self._change([Message(_DELETE_CONNECTION, ACK, payload)], f"connections of slot {index}")

    def open_interfaces(self) -> set[str]:
        """Return the interfaces that are open now; none if there is no table."""
        return {key.rstrip(b"\0").decode() for key in self.keys(OPEN)}

    def keys(self, set_name: str) -> set[bytes]:
        """Return the keys of a set; none if there is no such set."""
        return {key for answer in self._listed(set_name) for key in _keys(answer)}

    def counts(self, set_name: str) -> dict[bytes, int]:
        """Return the bytes that each element of a set has counted, by key; none if there is no such set."""
        return {key: count for answer in self._listed(set_name) for key, count in _counts(answer)}

    def generation(self) -> bytes:
        """Return the counter that the kernel raises with every change to any table of the namespace."""
        try:
            return attributes(self._connected().get(Message(_GET_GENERATION, 0, struct.pack(">BBH", 0, 0, 0)))[4:])[1]
        except OSError as error:
            self.close()
            raise FirewallError(f"the generation of the rules cannot be read: {error}") from error

    def _listed(self, set_name: str) -> list[bytes]:
        payload = struct.pack(">BBH", _INET, 0, 0)
        payload += text_attribute(_LIST_TABLE, self._table) + text_attribute(_LIST_SET, set_name)
        try:
            return self._connected().dump(Message(_GET_ELEMENT, 0, payload))
        except FileNotFoundError:
            return []
        except OSError as error:
            self.close()
            raise FirewallError(f"set {set_name} cannot be read: {error}") from error

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
    parts = [nested(_ELEMENT_KEY, attribute(_VALUE, element.key))]
    if element.last is not None:
        parts.append(nested(_ELEMENT_LAST_KEY, attribute(_VALUE, element.last)))
    if element.data is not None and kind == _NEW_ELEMENT:
        parts.append(nested(_ELEMENT_DATA, attribute(_VALUE, element.data)))
    payload = struct.pack(">BBH", _INET, 0, 0)
    payload += text_attribute(_LIST_TABLE, table) + text_attribute(_LIST_SET, element.set_name)
    payload += nested(_LIST_ELEMENTS, nested(1, *parts))
    return Message(kind, flags, payload)


def _keys(answer: bytes) -> Iterable[bytes]:
    elements = attributes(answer[4:]).get(_LIST_ELEMENTS, b"")
    for _, element in attribute_list(elements):
        yield attributes(attributes(element)[_ELEMENT_KEY])[_VALUE]


def _counts(answer: bytes) -> Iterable[tuple[bytes, int]]:
    elements = attributes(answer[4:]).get(_LIST_ELEMENTS, b"")
    for _, packed in attribute_list(elements):
        element = attributes(packed)
        counter = attributes(attributes(element.get(_ELEMENT_EXPRESSION, b"")).get(_EXPRESSION_DATA, b""))
        if _COUNTER_BYTES in counter:
            yield attributes(element[_ELEMENT_KEY])[_VALUE], int.from_bytes(counter[_COUNTER_BYTES], "big")
