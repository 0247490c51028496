"""Where the programs of the router namespace listen; the table sends sandboxes' packets there and lets no others in."""

from typing import Final

RESOLVER_PORT: Final = 5353
HTTP_PORT: Final = 8080
TLS_PORT: Final = 8443
