"""The guest protocol, call by call, over plain HTTP: the binary alone on loopback, and as PID 1 inside runsc."""

import hashlib
import http.client
import os
import secrets
import socket
from pathlib import Path
from typing import Any

import pytest

from guest_kit import (
    RawGuest,
    Stream,
    eventually,
    native,
    output_bytes,
    process_id,
    sandboxed,
)
from sandboxd.contract.ids import new_id
from sandboxd.contract.processes import Process


@pytest.fixture(name="guest")
def _guest(raw_guest: RawGuest) -> RawGuest:
    return raw_guest


# --- who may call


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer x", "Basic abc", f"Bearer {'0' * 64}"])
def test_a_wrong_token_is_refused(guest: RawGuest, header: str) -> None:
    guest.call("GET", "health", headers={"Authorization": header}).refused(401, "unauthenticated")


def test_a_token_counts_as_the_bytes_it_spells(tmp_path: Path) -> None:
    with native(tmp_path) as first:
        spelled = first.token.upper()  # another text, the same bytes: the hash given was of the text
        first.call("GET", "health", headers={"Authorization": f"Bearer {spelled}"}).refused(401, "unauthenticated")


def test_a_stranger_is_closed_unread(tmp_path: Path) -> None:
    with native(tmp_path, "--peer", "192.0.2.7") as lonely, pytest.raises((http.client.HTTPException, OSError)):
        lonely.call("GET", "health")


def test_routes_and_methods(guest: RawGuest) -> None:
    guest.call("GET", "nothing").refused(404, "route_not_found")
    guest.call("GET", "../v2/health").refused(404, "route_not_found")
    guest.call("DELETE", "processes").refused(405, "method_not_allowed")
    guest.call("GET", f"processes/{process_id()}").refused(404, "process_not_found")


def test_health_says_what_runs(guest: RawGuest) -> None:
    before = guest.call("GET", "health").json
    assert before["protocol"] == 1
    assert before["version"] == "test"
    assert before["initialized"] is True
    process = guest.start("sleep 60")["id"]
    assert guest.call("GET", "health").json["processes_running"] == before["processes_running"] + 1
    guest.signal(process, "SIGKILL")
    guest.ended(process)
    after = guest.call("GET", "health").json
    assert after["processes_running"] == before["processes_running"]
    assert after["last_exit_at_us"] > before["last_exit_at_us"]


def test_oversized_headers_are_refused(guest: RawGuest) -> None:
    connection = guest.send("GET", "health", headers={"X-Padding": "x" * 20_000})
    assert connection.getresponse().status == 431


def test_connections_are_bounded(guest: RawGuest) -> None:
    held: list[socket.socket] = []
    try:
        refused = False
        held.extend(socket.create_connection((guest.host, guest.port), timeout=10) for _ in range(1100))
        held[-1].sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            refused = held[-1].recv(1) == b""
        except ConnectionError:
            refused = True
        assert refused
    finally:
        for one in held:
            one.close()
    eventually(lambda: _answers(guest))


def _answers(guest: RawGuest) -> bool:
    try:
        return guest.call("GET", "health").status == 200
    except (OSError, http.client.HTTPException):
        return False


# --- starting


def test_a_start_answers_a_process(guest: RawGuest) -> None:
    started = guest.start(["sleep", "0"], tag="job", timeout_seconds=30.0)
    view = Process.model_validate({**started, "sandbox_id": new_id("sbx", os.urandom)})
    assert view.argv == ["sleep", "0"]
    assert view.tag == "job"
    assert view.pid > 1
    assert view.timeout_seconds == 30
    ended = Process.model_validate({**guest.ended(started["id"]), "sandbox_id": new_id("sbx", os.urandom)})
    assert (ended.state, ended.exit_code, ended.reason, ended.signal) == ("ended", 0, "exited", None)
    assert ended.ended_at is not None
    assert ended.ended_at >= ended.started_at
    assert ended.cpu_used_seconds >= 0
    assert ended.stdin_closed


def test_a_followed_start_gives_attached_output_and_exit(guest: RawGuest) -> None:
    ran = guest.run("printf out; printf err >&2; exit 3")
    assert ran.attached["state"] in {"running", "ended"}
    assert (ran.stdout, ran.stderr) == (b"out", b"err")
    assert ran.exit == {
        "exit_code": 3,
        "signal": None,
        "reason": "exited",
        "message": None,
        "start_error": None,
        "duration_seconds": ran.exit["duration_seconds"],
    }
    position = 0
    for frame in ran.frames[1:]:
        assert frame.seq == position
        position = frame.next_seq
    assert position == len(b"outerr")


def test_stderr_can_be_merged(guest: RawGuest) -> None:
    ran = guest.run("printf a; printf b >&2; printf c", merge_stderr=True)
    assert (ran.stdout, ran.stderr) == (b"abc", b"")


def test_the_same_start_joins_another_spec_does_not(guest: RawGuest) -> None:
    spec = guest.spec("echo once; exit 4")
    first = guest.call("POST", "processes", spec)
    assert first.status == 201
    again = guest.call("POST", "processes", spec, query={"follow": 1})
    assert again.status == 200
    assert again.frames[0].json()["id"] == spec["id"]
    assert output_bytes(again.frames) == b"once\n"
    assert again.frames[-1].json()["exit_code"] == 4
    third = guest.call("POST", "processes", spec)
    assert (third.status, third.json["state"]) == (200, "ended")
    guest.call("POST", "processes", spec | {"env": {"A": "b"}}).refused(422, "idempotency_mismatch")


def test_a_refused_start_can_be_repeated(guest: RawGuest) -> None:
    spec = guest.spec(["true"], cwd="/no/such/place")
    guest.call("POST", "processes", spec).refused(422, "cwd_not_found")
    assert guest.call("POST", "processes", spec | {"cwd": "/"}).status == 201


@pytest.mark.parametrize(
    ("argv", "code", "exit_code"),
    [
        (["no-such-command"], "command_not_found", 127),
        (["/no/such/command"], "command_not_found", 127),
        (["/etc/passwd"], "permission_denied", 126),
        (["/etc"], "permission_denied", 126),
    ],
)
def test_what_cannot_be_executed_is_a_process(guest: RawGuest, argv: list[str], code: str, exit_code: int) -> None:
    ran = guest.run(argv)
    assert (ran.exit["reason"], ran.exit["exit_code"]) == ("not_started", exit_code)
    assert ran.exit["start_error"]["code"] == code
    assert guest.show(ran.attached["id"])["start_error"]["code"] == code


def test_a_file_without_a_known_format(guest: RawGuest) -> None:
    place = f"/tmp/{process_id()}"
    assert guest.put(place, b"echo no interpreter line\n", mode="755").status == 201
    ran = guest.run([place])
    assert (ran.exit["reason"], ran.exit["exit_code"]) == ("not_started", 126)
    assert ran.exit["start_error"]["code"] == "exec_format"


def test_the_search_path_is_the_process_s(guest: RawGuest) -> None:
    directory = f"/tmp/{process_id()}"
    assert guest.put(f"{directory}/mine", b"#!/bin/sh\necho found\n", mode="755", parents=1).status == 201
    assert guest.text(["mine"], env={"PATH": f"/nowhere:{directory}"}) == "found\n"
    assert guest.text(["./mine"], cwd=directory) == "found\n"
    assert guest.run(["mine"]).exit["exit_code"] == 127


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"user": "nosuchuser"}, 422, "user_not_found"),
        ({"user": "0:nosuchgroup"}, 422, "user_not_found"),
        ({"user": "4294967295"}, 422, "user_not_found"),
        ({"cwd": "/etc/passwd"}, 422, "cwd_not_found"),
        ({"argv": ["echo", "x" * 131_072]}, 422, "argument_too_long"),
        ({"argv": ["echo", *["x" * 100_000] * 25]}, 422, "argument_too_long"),
        ({"env": {"A": "x" * 131_072}}, 422, "argument_too_long"),
        ({"env": {"A=B": "x"}}, 422, "invalid_request"),
        ({"env": {"": "x"}}, 422, "invalid_request"),
        ({"argv": []}, 422, "invalid_request"),
        ({"argv": [""]}, 422, "invalid_request"),
        ({"argv": ["a\0b"]}, 422, "invalid_request"),
        ({"shell": "x"}, 422, "invalid_request"),
        ({"id": "prcX"}, 422, "invalid_request"),
        ({"unknown": 1}, 422, "invalid_request"),
        ({"timeout_seconds": 0}, 422, "invalid_request"),
        ({"kill_grace_seconds": 61}, 422, "invalid_request"),
        ({"output": {"mode": "ring", "ring_bytes": 1, "limit_bytes": None}}, 422, "invalid_request"),
        ({"tty": {"rows": 0, "cols": 80}}, 422, "invalid_request"),
        ({"argv": 7}, 422, "invalid_request"),
    ],
    ids=str,
)
def test_what_a_start_refuses(guest: RawGuest, changes: dict[str, Any], status: int, code: str) -> None:
    guest.call("POST", "processes", guest.spec(["true"]) | changes).refused(status, code)


def test_a_body_that_is_not_json(guest: RawGuest) -> None:
    guest.call("POST", "processes", b"{").refused(400, "malformed_request")
    guest.call("POST", "processes", b"").refused(400, "malformed_request")
    guest.call("POST", "processes", b"x" * (17 << 20)).refused(413, "body_too_large")


def test_long_command_lines_fit_a_frame(guest: RawGuest) -> None:
    ran = guest.run(["sh", "-c", "printf %s $#", "sh", *["é" * 5000] * 40])
    assert ran.stdout == b"40"
    assert len(ran.attached["argv"]) < 40
    assert ran.attached["argv"][-1].endswith("…")


def test_lists_are_oldest_first_and_filtered(guest: RawGuest) -> None:
    tag = secrets.token_hex(4)
    made = [guest.start(command, tag=tag)["id"] for command in ("exit 0", "sleep 60", "exit 1")]
    guest.ended(made[0])
    guest.ended(made[2])

    def ids(**query: str) -> list[str]:
        return [item["id"] for item in guest.call("GET", "processes", query={"tag": tag, **query}).json["items"]]

    assert ids() == made
    assert ids(state="running") == [made[1]]
    assert ids(state="ended") == [made[0], made[2]]
    guest.call("GET", "processes", query={"state": "odd"}).refused(422, "invalid_request")
    guest.signal(made[1], "SIGKILL")


# --- what a process sees


def test_environment_of_a_first_shell(guest: RawGuest) -> None:
    guest.init(image_env={"IMAGE": "1", "BOTH": "image"}, env={"OWN": "2", "BOTH": "sandbox", "LAST": "sandbox"})
    try:
        text = guest.text(["env", "-0"], env={"LAST": "process"})
    finally:
        guest.init()
    seen = dict(line.split("=", 1) for line in text.split("\0") if line)
    home = guest.text("echo ~root").strip()
    assert seen == {
        "IMAGE": "1",
        "OWN": "2",
        "BOTH": "sandbox",
        "LAST": "process",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": home,
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
    }


def test_the_image_may_set_the_search_path(guest: RawGuest) -> None:
    guest.init(image_env={"PATH": "/opt/none:/usr/bin:/bin", "SSL_CERT_FILE": "/ca"})
    try:
        assert guest.text('printf "%s %s" "$PATH" "$SSL_CERT_FILE"') == "/opt/none:/usr/bin:/bin /ca"
    finally:
        guest.init()


def test_umask_session_and_descriptors(guest: RawGuest) -> None:
    assert guest.text("umask").strip() == "0022"
    script = (
        "import os; me = os.getpid();print(os.getsid(0) == me, os.getpgrp() == me, sorted(os.listdir('/proc/self/fd')))"
    )
    session, group, *files = guest.text(["python3", "-c", script]).split(maxsplit=2)
    assert (session, group) == ("True", "True")
    assert files == ["['0', '1', '2', '3']\n"]  # 3 is the listing itself
    assert guest.text("cat").strip() == ""


def test_users_by_name_and_number(guest: RawGuest) -> None:
    assert guest.text("id -u; id -g; pwd; echo $HOME", user="nobody").split()[:1] == ["65534"]
    assert guest.text("id -u; id -g; id -G; echo $HOME $USER", user="12345").split() == [
        "12345",
        "0",
        "0",
        "/",
        "12345",
    ]
    assert guest.text("id -u; id -g; id -G", user="12345:54321").split() == ["12345", "54321", "54321"]
    started = guest.start("exit", user="12345:54321")
    assert (started["uid"], started["gid"], started["user"]) == (12345, 54321, "12345")


def test_working_directories(guest: RawGuest) -> None:
    def where(**spec: Any) -> str:
        return guest.text(["/bin/pwd", "-P"], **spec).strip()

    guest.init(cwd="/usr", image_cwd="/etc")
    assert where() == "/usr"
    assert where(cwd="lib/../bin") == "/usr/bin"
    assert where(cwd="/etc") == "/etc"
    guest.init(image_cwd="/etc")
    assert where() == "/etc"
    guest.init(image_cwd="/")
    assert where() == guest.text("echo ~root").strip()
    assert where(user="12345") == "/"
    guest.init()


def test_init_answers_the_defaults(guest: RawGuest) -> None:
    answer = guest.init(user="nobody", cwd="/usr").json
    assert (answer["user"], answer["uid"], answer["cwd"], answer["version"]) == ("nobody", 65534, "/usr", "test")
    assert answer["shell"] == "/bin/bash"
    assert answer["boot_id"] == guest.init().json["boot_id"]
    guest.call("POST", "init", {"hostnam": "x"}).refused(422, "invalid_request")


# --- ends


def test_signals_name_themselves(guest: RawGuest) -> None:
    for signal, number in (("SIGUSR1", 10), ("SIGTERM", 15), ("SIGRTMIN+1", 35)):
        process = guest.start("sleep 60")["id"]
        assert guest.signal(process, signal).status == 204
        ended = guest.ended(process)
        assert (ended["reason"], ended["exit_code"], ended["signal"]) == ("signaled", 128 + number, signal)
    ran = guest.run("kill -KILL $$")
    assert (ran.exit["reason"], ran.exit["exit_code"], ran.exit["signal"]) == ("signaled", 137, "SIGKILL")


def test_a_killed_tree_says_so(guest: RawGuest) -> None:
    process = guest.start("sleep 60 & sleep 60")["id"]
    assert guest.signal(process, "SIGKILL").status == 204
    ended = guest.ended(process)
    assert (ended["reason"], ended["exit_code"], ended["signal"]) == ("killed", 137, "SIGKILL")
    assert guest.signal(process, "SIGTERM").refused(409, "process_ended")["reason"] == "killed"


def test_a_signal_to_the_process_alone_spares_its_children(guest: RawGuest) -> None:
    process = guest.start('trap "exit 5" TERM; sleep 60 & echo $!; wait')["id"]
    stream = guest.follow(process)
    stream.until(lambda frames: b"\n" in output_bytes(frames))
    child = int(stream.text())
    assert guest.signal(process, "SIGTERM", scope="process").status == 204
    assert guest.ended(process)["exit_code"] == 5
    assert guest.alive(child)
    guest.text(["kill", str(child)])


def test_a_signal_is_sent_once_for_its_key(guest: RawGuest) -> None:
    process = guest.start('trap "echo got" USR1; echo ready; while :; do sleep 0.05; done')["id"]
    stream = guest.follow(process)
    stream.until(lambda frames: b"ready" in output_bytes(frames))
    for key, count in (("one", 1), ("one", 1), ("two", 2), (None, 3)):
        assert guest.signal(process, "SIGUSR1", scope="process", key=key).status == 204
        stream.until(lambda frames, count=count: output_bytes(frames).count(b"got") >= count)
    assert guest.signal(process, "SIGKILL", key="end").status == 204
    stream.rest()
    assert stream.text().count(b"got") == 3
    assert guest.signal(process, "SIGKILL", key="end").status == 204
    guest.signal(process, "SIGKILL", key="another").refused(409, "process_ended")


def test_unknown_signals_and_scopes(guest: RawGuest) -> None:
    process = guest.start("sleep 60")["id"]
    guest.signal(process, "SIGNONE").refused(422, "invalid_request")
    guest.signal(process, "SIGRTMIN+99").refused(422, "invalid_request")
    guest.signal(process, "SIGTERM", scope="all").refused(422, "invalid_request")
    guest.signal(process, "SIGKILL")


def test_a_time_out_terminates_then_kills(guest: RawGuest) -> None:
    polite = guest.run('trap "echo bye; exit 0" TERM; while :; do sleep 0.05; done', timeout_seconds=0.5)
    assert (polite.exit["reason"], polite.exit["exit_code"]) == ("timed_out", 124)
    assert polite.stdout == b"bye\n"
    stubborn = guest.run('trap "" TERM; while :; do sleep 0.05; done', timeout_seconds=0.3, kill_grace_seconds=0.3)
    assert (stubborn.exit["reason"], stubborn.exit["exit_code"]) == ("timed_out", 124)


def test_the_exit_does_not_wait_for_grandchildren(guest: RawGuest) -> None:
    ran = guest.run("(sleep 60; echo late) & echo $!; head -c 300000 /dev/zero; exit 6")
    assert ran.exit["exit_code"] == 6
    child, _, data = ran.stdout.partition(b"\n")
    assert data == bytes(300_000)
    assert guest.alive(int(child))
    guest.text(["kill", child.decode()])


def test_what_grandchildren_write_later_is_dropped(guest: RawGuest) -> None:
    marker = f"/tmp/{process_id()}"
    ran = guest.run(
        f"(until test -e {marker}.go; do sleep 0.05; done; head -c 200000 /dev/zero; touch {marker}) & echo now"
    )
    assert ran.stdout == b"now\n"
    guest.text(["touch", f"{marker}.go"])
    eventually(lambda: guest.run(["test", "-e", marker]).exit["exit_code"] == 0)  # it was not held up
    assert output_bytes(guest.output(ran.attached["id"])) == b"now\n"


def test_waiting_for_the_end(guest: RawGuest) -> None:
    process = guest.start("sleep 0.3; exit 2")["id"]
    assert guest.show(process)["state"] == "running"
    assert guest.show(process, 0.01)["state"] == "running"
    assert guest.show(process, 30)["exit_code"] == 2


def test_metrics_and_ports(guest: RawGuest) -> None:
    script = (
        "import socket, sys\ns = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\n"
        "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    process = guest.start(["python3", "-c", script], stdin=True)
    stream = guest.follow(process["id"])
    stream.until(lambda frames: b"\n" in output_bytes(frames))
    port = int(stream.text())
    metrics = guest.call("GET", "metrics").json
    assert {"port": port, "protocol": "tcp", "address": "127.0.0.1", "pid": process["pid"]} in metrics["ports"]
    assert metrics["processes"] >= 2
    assert metrics["memory_used_bytes"] > 0
    assert metrics["cpu_used_seconds"] > 0
    assert 0 <= metrics["disk_used_bytes"] <= metrics["disk_limit_bytes"]
    guest.stdin(process["id"], b"", close=True)
    guest.ended(process["id"])


def test_the_log_is_text(guest: RawGuest) -> None:
    reply = guest.call("GET", "log")
    assert reply.status == 200
    assert guest.token not in reply.body.decode()


def test_records_are_bounded(tmp_path: Path) -> None:
    with native(tmp_path) as made:
        made.init()
        first = made.start(["true"])["id"]
        made.ended(first)
        for _ in range(1000):
            made.ended(made.start(["true"])["id"])
        items = made.call("GET", "processes").json["items"]
        assert len(items) == 1000
        made.call("GET", f"processes/{first}").refused(404, "process_not_found")


def test_rings_of_ended_processes_are_bounded(tmp_path: Path) -> None:
    policy = {"mode": "ring", "ring_bytes": 32 << 20, "limit_bytes": None}
    with native(tmp_path) as made:
        made.init()
        ids = [made.start(f"head -c {30 << 20} /dev/zero", output=policy)["id"] for _ in range(3)]
        for one in ids:
            if made.call("GET", f"processes/{one}", query={"wait_seconds": 30}).status == 200:
                continue
        assert len(made.call("GET", "processes").json["items"]) < 3


def test_the_backstop_ends_the_guest(tmp_path: Path) -> None:
    with native(tmp_path, "--backstop-seconds", "0.5") as made:
        eventually(lambda: not _answers(made))


def test_the_backstop_moves(tmp_path: Path) -> None:
    with native(tmp_path, "--backstop-seconds", "600") as made:
        assert made.call("POST", "backstop", {"seconds": None}).status == 204
        assert made.call("POST", "backstop", {"seconds": 0.2}).status == 204
        eventually(lambda: not _answers(made))


def test_a_new_token_replaces_the_old(tmp_path: Path) -> None:
    with native(tmp_path) as made:
        token = secrets.token_hex(32)
        digest = hashlib.sha256(token.encode()).hexdigest()
        assert made.init(token_sha256=digest).status == 200
        made.call("GET", "health").refused(401, "unauthenticated")
        made.token = token
        assert made.call("GET", "health").status == 200


def test_with_a_new_token_nothing_of_before_is_known(tmp_path: Path) -> None:
    with native(tmp_path) as made:
        made.init()
        done = made.run("echo before").attached["id"]
        running = made.start("sleep 600")["id"]
        token = secrets.token_hex(32)
        digest = hashlib.sha256(token.encode()).hexdigest()
        made.init(token_sha256=digest).refused(422, "invalid_request")
        made.call("POST", f"processes/{running}/signal", {"signal": "SIGKILL", "scope": "tree"})
        eventually(lambda: made.call("GET", "health").json["processes_running"] == 0)
        assert made.init(token_sha256=digest).status == 200
        made.token = token
        assert made.call("GET", "processes").json["items"] == []
        made.call("GET", f"processes/{done}").refused(404, "process_not_found")
        assert made.call("GET", "health").json["last_exit_at_us"] == 0


def test_shutdown_ends_everything(tmp_path: Path) -> None:
    with native(tmp_path) as made:
        made.init()
        _shut_down(made)


def test_shutdown_of_a_sandbox() -> None:
    with sandboxed() as made:
        made.init()
        made.start("setsid sh -c 'trap \"\" TERM; sleep 600' & sleep 600")
        _shut_down(made)
        assert made.call("GET", "metrics").json["processes"] == 1


def _shut_down(guest: RawGuest) -> None:
    polite = guest.start('trap "echo bye; exit 0" TERM; echo ready; while :; do sleep 0.05; done')["id"]
    stubborn = guest.start('trap "" TERM; echo ready; while :; do sleep 0.05; done')["id"]
    done = guest.run("exit 3").attached["id"]
    for process in (polite, stubborn):
        guest.follow(process).until(lambda frames: b"ready" in output_bytes(frames))
    stream: Stream = guest.follow(polite)
    assert guest.call("POST", "shutdown", {"grace_seconds": 0.5}).json["ended"] >= 2
    for process in (polite, stubborn):
        view = guest.show(process)
        assert (view["state"], view["reason"], view["exit_code"]) == ("ended", "sandbox_stopped", 137)
    assert guest.show(done)["exit_code"] == 3
    stream.rest()
    assert stream.text() == b"ready\nbye\n"
    guest.call("POST", "processes", guest.spec(["true"])).refused(409, "sandbox_not_ready")
