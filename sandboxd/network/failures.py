"""The kernel's refusals as the network's errors."""

from collections.abc import Generator
from contextlib import contextmanager

from netpolicy.firewall import FirewallError
from sandboxd.network.base import NetworkError


@contextmanager
def refusals(what: str) -> Generator[None, None, None]:
    """Turn a refusal into a NetworkError that says what could not be done."""
    try:
        yield
    except (OSError, FirewallError) as error:
        raise NetworkError(f"{what}: {error}") from error
