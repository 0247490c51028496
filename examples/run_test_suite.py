"""Runs a project's test suite in a sandbox, as if nobody knew what the project does.

The project goes in as a tar through standard input, the suite's output streams back, the stream is broken and resumed
on purpose, the report comes back as JSON, and the exit code is the suite's.

    python examples/run_test_suite.py [--project DIR] [--break-every BYTES] [--report FILE]

Needs SANDLOT_URL and SANDLOT_API_KEY.
"""

import argparse
import io
import json
import sys
import tarfile
from pathlib import Path

from sandlot import Process, Sandbox, SandlotError

PROJECT = Path(__file__).resolve().parent / "python-tests"
INSIDE = "/home/user/project"


def pack(directory: Path) -> bytes:
    """Return the directory as a tar, without what running it here left behind."""

    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if "__pycache__" in member.name else member

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(directory, arcname=".", filter=wanted)
    return packed.getvalue()


def send(sandbox: Sandbox, tar: bytes) -> None:
    """Unpack a tar inside; it travels as the standard input of `tar`."""
    sandbox.run(["mkdir", "-p", INSIDE], check=True)
    process = sandbox.start(["tar", "-xzf", "-", "-C", INSIDE], stdin=True)
    process.write_stdin(tar, close=True)
    process.wait().check()


def show(process: Process, break_every: int) -> bytes:
    """Print the output while it comes, dropping the connection now and then, and return what was seen."""
    seen = bytearray()
    position, exited = 0, False
    while not exited:
        with process.output(after=position) as output:
            for frame in output:
                seen += frame.data
                sys.stdout.write(frame.text)
                sys.stdout.flush()
                exited = frame.kind == "exit"
                if break_every and output.position - position >= break_every:
                    # The connection is closed here, in the middle of the stream; the next one goes on after it.
                    break
            position = output.position
    return bytes(seen)


def main() -> int:
    """Do it, and return the exit code of the suite."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--project", type=Path, default=PROJECT)
    parser.add_argument("--break-every", type=int, default=1000, metavar="BYTES", help="0: never")
    parser.add_argument("--report", type=Path, help="where to keep the report")
    parser.add_argument("--image", default="base")
    options = parser.parse_args()
    with Sandbox.create(options.image, egress="blocked", timeout_seconds=600) as sandbox:
        send(sandbox, pack(options.project))
        suite = sandbox.start(["python3", "-u", "run_tests.py", "--report", "report.json"], cwd=INSIDE)
        seen = show(suite, options.break_every)
        result = suite.wait()
        # Read once more from the beginning, in one go: what was pieced together above must be the same.
        whole = b"".join(frame.data for frame in suite.output())
        if seen != whole:
            print(f"LOST OUTPUT: saw {len(seen)} bytes of {len(whole)}", file=sys.stderr)
            return 99
        report = json.loads(sandbox.run(["cat", f"{INSIDE}/report.json"], check=True).stdout)
        if options.report is not None:
            options.report.write_text(json.dumps(report, indent=1))
        print(f"{report['tests']} tests, {report['failed']} failed, {len(whole)} bytes of output, nothing lost")
    return 1 if result.exit_code is None else result.exit_code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SandlotError as error:
        print(error, file=sys.stderr)
        sys.exit(125)
