"""Readers of what sandboxes and strangers send first, given what a fuzzer makes of real ones; so many, and no more."""

import os
import ssl
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from netpolicy import dns

pytest.importorskip("atheris", reason="there is no fuzzer for this machine")

_PROGRAM = Path(__file__).with_name("fuzz_readers.py")
_REPOSITORY = _PROGRAM.parents[2]
_QUESTION = dns.ask("packages.example.com", 4711)


def _hello(name: str) -> bytes:
    outgoing = ssl.MemoryBIO()
    connection = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def _begun(reader: str) -> list[bytes]:
    if reader == "hello":
        return [_hello("packages.example.com"), _hello("a.test")]
    if reader == "head":
        return [
            b"POST /x HTTP/1.1\r\nHost: a.test:80\r\nContent-Length: 3\r\n\r\nabc",
            b"GET http://a.test/x HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n",
        ]
    answer = dns.answer(dns.read_question(_QUESTION), [IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")], 60)
    return [_QUESTION] if reader == "question" else [answer]


def _fuzzed(reader: str, corpus: Path, runs: int) -> subprocess.CompletedProcess[str]:
    corpus.mkdir()
    for number, data in enumerate(_begun(reader)):
        (corpus / str(number)).write_bytes(data)
    # Not libFuzzer's limit: it reads the peak that the kernel keeps over an exec, pytest's. The program has its own.
    options = [f"-runs={runs}", "-seed=1", "-max_len=2048", "-timeout=20", "-rss_limit_mb=0"]
    return subprocess.run(
        [sys.executable, str(_PROGRAM), reader, *options, f"-artifact_prefix={corpus.parent}/", str(corpus)],
        env=os.environ | {"PYTHONPATH": str(_REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("reader", "runs"), [("hello", 60_000), ("head", 150_000), ("question", 150_000), ("answer", 60_000)]
)
def test_no_bytes_break_a_reader_or_are_read_in_two_ways(reader: str, runs: int, tmp_path: Path) -> None:
    done = _fuzzed(reader, tmp_path / "corpus", runs)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {runs} runs" in done.stderr
    assert len(list((tmp_path / "corpus").iterdir())) > len(_begun(reader)), "it found no way to go on"


def test_the_fuzzer_would_find_a_reader_that_breaks(tmp_path: Path) -> None:
    done = _fuzzed("broken", tmp_path / "corpus", 150_000)
    assert done.returncode != 0
    assert "IndexError" in done.stderr + done.stdout
