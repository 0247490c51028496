"""A token server as registries name one: it wants a name and password, and signs what may be done with which."""

import base64
import json
import secrets
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

SERVICE, ISSUER = "registry-of-tests", "tokens-of-tests"
_LIVES_SECONDS = 300


class _Signer:
    def __init__(self, certificate: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder(name, name, self._key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=12))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        certificate.write_bytes(made.public_bytes(Encoding.PEM))
        self._chain = [base64.b64encode(made.public_bytes(Encoding.DER)).decode()]

    def token(self, user: str, scopes: list[str]) -> str:
        now = int(time.time())
        access: list[dict[str, Any]] = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        claims = {"iss": ISSUER, "sub": user, "aud": SERVICE, "jti": secrets.token_hex(8), "access": access}
        times = {"iat": now, "nbf": now - 10, "exp": now + _LIVES_SECONDS}
        return jwt.encode(claims | times, self._key, "ES256", {"x5c": self._chain})


@contextmanager
def token_server(certificate: Path, user: str, password: str) -> Generator[str]:
    """Yield its address; `certificate` is written, for the registry that shall believe it."""
    signer = _Signer(certificate)
    wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") != wanted:
                self._answer(401, {"errors": [{"code": "UNAUTHORIZED"}]})
                return
            asked = parse_qs(urlsplit(self.path).query)
            self._answer(200, {"token": signer.token(user, asked.get("scope", []))})

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it has there
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/token"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
