"""Runs JupyterLab in a sandbox, and prints an address that opens it in a browser: for a while, to whoever has it.

    python examples/jupyter_lab.py [--packages DIR] [--form name|path] [--seconds N]

Runs until it is interrupted. Needs SANDLOT_URL and SANDLOT_API_KEY.
"""

import argparse
import sys
import time
from pathlib import Path

from sandlot import Image, Link, Resources, Sandbox, SandlotError

PORT = 8888
PACKAGES = ("jupyterlab", "ipykernel")
NOTEBOOKS = "/home/user/notebooks"
RESOURCES = Resources(memory_mib=2048, disk_mib=4096)


def image_with_jupyter(packages: Path | None) -> Image:
    """Return `base` with JupyterLab, from PyPI or from wheels in a directory."""
    if packages is None:
        return Image.base().pip_install(*PACKAGES)
    image = Image.base().copy(packages, "/tmp/wheels")  # noqa: S108 - in the image
    return image.pip_install("--no-index", "--find-links=/tmp/wheels", *PACKAGES)


def serve(sandbox: Sandbox, base_url: str = "/") -> None:
    """Start JupyterLab on the sandbox's loopback, where nothing but the gateway comes."""
    sandbox.run(["mkdir", "-p", NOTEBOOKS], check=True)
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": str(PORT),
        "ServerApp.root_dir": NOTEBOOKS,
        "ServerApp.base_url": base_url,
        # Who may come is the tunnel's affair, which asks for a token of its own.
        "IdentityProvider.token": "",
        # Its name outside is not `localhost`.
        "ServerApp.allow_remote_access": "True",
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    sandbox.start(["jupyter", "lab", "--no-browser", *given])
    sandbox.wait_for_port(PORT, timeout_seconds=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--packages", type=Path, help="a directory with wheels of JupyterLab, instead of PyPI")
    parser.add_argument("--form", choices=("name", "path"), default="name", help="of the address")
    parser.add_argument("--seconds", type=int, default=3600, help="how long the address works")
    options = parser.parse_args()
    image = image_with_jupyter(options.packages)
    try:
        with Sandbox.create(image, resources=RESOURCES, egress="blocked", timeout_seconds=86_400) as sandbox:
            link = open_lab(sandbox, options.form, options.seconds)
            print(link.url, flush=True)
            while True:
                time.sleep(60)
    except SandlotError as error:
        print(f"jupyter_lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


def open_lab(sandbox: Sandbox, form: str, seconds: int) -> Link:
    """Start JupyterLab, and make an address of a form that opens it."""
    tunnel = sandbox.tunnels.open(PORT, "http")
    # All its addresses begin at its root: below a path it must know that path, and be asked with it.
    serve(sandbox, f"/w/{sandbox.id}/{PORT}/" if form == "path" else "/")
    return sandbox.tunnels.link(
        tunnel, "lab", form="whole-path" if form == "path" else "name", expires_in_seconds=seconds
    )


if __name__ == "__main__":
    sys.exit(main())
