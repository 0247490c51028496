"""The guest as PID 1 of a real sandbox: what it holds together, what it withholds, and what it lays out at init."""

import socket
from collections.abc import Generator

import pytest

from guest_kit import MAX_PROCESSES, RawGuest, eventually, output_bytes, process_id, sandboxed
from sandboxd.contract.frames import FrameKind

BOMB_LIMIT = 40
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_NET_RAW = 13
CAP_MKNOD = 27
CAP_SYS_MODULE = 16
CAP_SYS_BOOT = 22
CAP_SYS_RESOURCE = 24

ESCAPES = {
    "session": "setsid sleep 600 &",
    "double fork": "(sleep 600 &) &",
    "session and double fork": "setsid sh -c '(sleep 600 &)' &",
    "empty environment": "env -i setsid sh -c '(env -i sleep 600 &)' &",
    "deaf to signals": "setsid sh -c 'trap \"\" TERM HUP INT; sleep 600' &",
    "renamed": "python3 -c 'import ctypes,time; ctypes.CDLL(None).prctl(15, b\"x\"); time.sleep(600)' &",
    "stopped": "sh -c 'kill -STOP $$' &",
}


@pytest.fixture(scope="module")
def guest() -> Generator[RawGuest]:
    with sandboxed() as made:
        assert made.init().status == 200
        yield made


def members(guest: RawGuest) -> int:
    """How many processes there are besides PID 1."""
    return guest.call("GET", "metrics").json["processes"] - 1


def alone(guest: RawGuest) -> None:
    eventually(lambda: members(guest) == 0)


# --- one process, one tree


def test_it_is_pid_1_and_reaps_orphans(guest: RawGuest) -> None:
    assert guest.text("cat /proc/1/comm") == "guest\n"
    guest.text("(setsid true &); (true &)")
    alone(guest)
    assert "Z" not in guest.text("ps -eo stat=")


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES.keys())
def test_a_killed_tree_is_gone_whole(guest: RawGuest, escape: str) -> None:
    process = guest.start(f"{escape} echo ready; sleep 600")["id"]
    guest.follow(process).until(lambda frames: b"ready" in output_bytes(frames))
    eventually(lambda: members(guest) >= 2)
    assert guest.signal(process, "SIGKILL").status == 204
    assert guest.ended(process)["reason"] == "killed"
    alone(guest)


def test_a_time_out_takes_daemons_along(guest: RawGuest) -> None:
    ran = guest.run(
        f"{ESCAPES['deaf to signals']} {ESCAPES['empty environment']} sleep 600",
        timeout_seconds=0.5,
        kill_grace_seconds=0.5,
    )
    assert ran.exit["reason"] == "timed_out"
    alone(guest)


def test_the_output_limit_takes_daemons_along(guest: RawGuest) -> None:
    policy = {"mode": "ring", "ring_bytes": 65_536, "limit_bytes": 1000}
    assert guest.run(f"{ESCAPES['session']} yes", output=policy).exit["reason"] == "output_limit"
    alone(guest)


def test_daemons_outlive_a_normal_exit_and_end_with_the_sandbox() -> None:
    with sandboxed() as made:
        made.init()
        assert made.run(f"{ESCAPES['empty environment']} sleep 0.2").exit["reason"] == "exited"
        assert members(made) >= 1
        assert made.call("POST", "shutdown", {"grace_seconds": 0.2}).status == 200
        assert members(made) == 0


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_a_fork_bomb_is_held_and_ends(guest: RawGuest, user: str) -> None:
    guest.init(max_processes=BOMB_LIMIT)
    try:
        bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
        process = guest.start(["python3", "-c", bomb], user=user)["id"]
        eventually(lambda: charged(guest) > BOMB_LIMIT // 2)
        assert charged(guest) <= BOMB_LIMIT * 2  # the runtime counts with some slack
        assert guest.run("echo still here").stdout == b"still here\n"
        assert guest.signal(process, "SIGKILL").status == 204
        guest.ended(process)
        alone(guest)
    finally:
        guest.init()


def charged(guest: RawGuest) -> int:
    """How many processes the fullest tree has, as its group counts them. Forks nothing: there may be no room to."""
    script = (
        "m=0; for f in /sys/fs/cgroup/pids/sandlot/*/pids.current; do read n < $f; ((n > m)) && m=$n; done; echo $m"
    )
    return int(guest.text(script))


def test_many_short_processes_are_no_bomb(guest: RawGuest) -> None:
    count = MAX_PROCESSES * 3
    script = f"i=0; while [ $i -lt {count} ]; do /bin/true || exit 1; i=$((i+1)); done"
    assert guest.run(["sh", "-c", script]).exit["exit_code"] == 0


def test_many_threads_are_held(guest: RawGuest) -> None:
    script = (
        "import threading\nstop = threading.Event()\ncount = 0\n"
        "try:\n    while count < 5000:\n        threading.Thread(target=stop.wait, daemon=True).start(); count += 1\n"
        "except RuntimeError: pass\nprint(count, flush=True)\nimport os; os._exit(0)"
    )
    assert 0 < int(guest.text(["python3", "-c", script])) <= MAX_PROCESSES * 2
    alone(guest)


# --- what users' processes do not get


def capabilities(guest: RawGuest, command: str, user: str) -> dict[str, int]:
    text = guest.text(f"{command} grep ^Cap /proc/self/status", user=user)
    return {name.rstrip(":"): int(value, 16) for name, value in (line.split() for line in text.splitlines())}


@pytest.mark.parametrize(("command", "user"), [("", "root"), ("sudo -n", "root"), ("sudo -n", "user"), ("", "user")])
def test_capabilities_are_cut(guest: RawGuest, command: str, user: str) -> None:
    sets = capabilities(guest, command, user)
    for number in (
        CAP_SYS_ADMIN,
        CAP_SYS_PTRACE,
        CAP_NET_RAW,
        CAP_MKNOD,
        CAP_SYS_MODULE,
        CAP_SYS_BOOT,
        CAP_SYS_RESOURCE,
    ):
        assert not any(value >> number & 1 for value in sets.values())
    assert sets["CapInh"] == sets["CapAmb"] == 0
    assert (sets["CapEff"] != 0) == (user == "root" or command != "")


def test_setuid_programs_work(guest: RawGuest) -> None:
    assert guest.text("sudo -n id -u", user="user") == "0\n"
    assert guest.text("sudo -n -u user id -un") == "user\n"


@pytest.mark.parametrize("user", ["root", "user"])
def test_the_guest_cannot_be_read_or_traced(guest: RawGuest, user: str) -> None:
    script = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.ptrace(16, 1, 0, 0))\n"
        "try: open('/proc/1/mem', 'rb').read(1); print('read')\n"
        "except OSError: print('refused')"
    )
    assert guest.text(["python3", "-c", script], user=user) == "-1\nrefused\n"


def test_mounts_are_refused(guest: RawGuest) -> None:
    assert guest.run("mount -t tmpfs none /mnt").exit["exit_code"] != 0
    assert guest.run("unshare -m true").exit["exit_code"] != 0


def test_a_user_cannot_leave_its_group(guest: RawGuest) -> None:
    for name in ("cgroup.procs", "tasks"):
        ran = guest.run(f"echo $$ > /sys/fs/cgroup/pids/{name}", user="user")
        assert b"Permission denied" in ran.stderr
    ran = guest.run("for f in /sys/fs/cgroup/pids/sandlot/*/pids.max; do echo max > $f; done", user="user")
    assert b"Permission denied" in ran.stderr


def test_the_guest_survives_signals(guest: RawGuest) -> None:
    guest.run("for s in TERM INT HUP QUIT USR1 USR2 PIPE; do kill -$s 1; done")
    assert guest.call("GET", "health").status == 200
    assert guest.text("echo fine") == "fine\n"


def test_signal_handling_of_processes_is_plain(guest: RawGuest) -> None:
    assert guest.text(["bash", "-c", "trap -p"]) == ""  # bash names what was ignored when it started
    blocked = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    assert guest.text(["python3", "-c", blocked]) == "set()\n"


def test_the_guest_s_files_do_not_leak(guest: RawGuest) -> None:
    assert (
        guest.text(["python3", "-c", "import os; print(sorted(os.listdir('/proc/self/fd')))"])
        == "['0', '1', '2', '3']\n"
    )


def test_limits_of_processes(guest: RawGuest) -> None:
    text = guest.text("ulimit -Sn; ulimit -Hn; ulimit -c; ulimit -u")
    assert text.split() == ["65536", "1048576", "0", str(MAX_PROCESSES)]


# --- init


def test_init_names_the_sandbox(guest: RawGuest) -> None:
    name = "sbxaaaaaaaaaaaaaaaaaaaa"
    assert guest.text(["hostname"]) == f"{name}\n"
    assert guest.text(["cat", "/etc/hostname"]) == f"{name}\n"
    assert guest.text(["cat", "/etc/resolv.conf"]) == "nameserver 192.0.2.1\n"
    lines = [line.split() for line in guest.text(["cat", "/etc/hosts"]).splitlines()]
    assert ["127.0.0.1", "localhost"] in lines
    assert [guest.host, name] in lines
    assert guest.text(["stat", "-c", "%a", "/tmp"]) == "1777\n"
    assert guest.text(
        ["python3", "-c", "import socket; print(socket.gethostbyname(socket.gethostname()))"]
    ).strip() == (guest.host)


def test_a_repeated_init_renames_it(guest: RawGuest) -> None:
    process = guest.start("sleep 600")["id"]
    assert guest.init(hostname="sbxbbbbbbbbbbbbbbbbbbbb", resolvers=["192.0.2.9", "192.0.2.8"]).status == 200
    try:
        assert guest.text(["hostname"]) == "sbxbbbbbbbbbbbbbbbbbbbb\n"
        assert guest.text(["cat", "/etc/resolv.conf"]) == "nameserver 192.0.2.9\nnameserver 192.0.2.8\n"
        assert guest.show(process)["state"] == "running"
    finally:
        guest.init()
        guest.signal(process, "SIGKILL")


def test_hostile_files_do_not_hold_init_up(guest: RawGuest) -> None:
    guest.text("rm -f /etc/resolv.conf /etc/hosts; mkfifo /etc/resolv.conf; ln -s /proc/1/mem /etc/hosts")
    assert guest.init().status == 200
    assert guest.text(["cat", "/etc/resolv.conf"]) == "nameserver 192.0.2.1\n"
    assert "localhost" in guest.text(["cat", "/etc/hosts"])
    guest.text("cp /etc/passwd /etc/kept; rm /etc/passwd; mkfifo /etc/passwd")
    guest.call("POST", "processes", guest.spec(["true"], user="user")).refused(422, "user_not_found")
    guest.text("rm /etc/passwd; mv /etc/kept /etc/passwd", user="0:0")
    assert guest.text("id -un", user="user") == "user\n"


def test_a_second_user_added_later_is_found(guest: RawGuest) -> None:
    guest.call("POST", "processes", guest.spec(["true"], user="later")).refused(422, "user_not_found")
    guest.text("echo later:x:4321:4321::/tmp:/bin/sh >> /etc/passwd; echo crowd:x:777:later >> /etc/group")
    assert guest.text("id -u; id -G; pwd", user="later").split() == ["4321", "4321", "777", "/tmp"]


# --- the wire


def test_only_the_peer_is_answered(guest: RawGuest) -> None:
    probe = (
        "import socket\ns = socket.create_connection(('127.0.0.1', 49979), 5)\n"
        "s.sendall(b'GET /v1/health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"
        "try: print(len(s.recv(100)))\nexcept ConnectionError: print(0)"
    )
    assert guest.text(["python3", "-c", probe]) == "0\n"


def test_a_terminal_belongs_to_its_user(guest: RawGuest) -> None:
    ran = guest.run("stat -c %U $(tty); exec < /dev/tty; echo opened", user="user", tty={"rows": 24, "cols": 80})
    assert ran.channel(FrameKind.TERMINAL) == b"user\r\nopened\r\n"


def test_a_disk_that_is_full_says_so() -> None:
    with sandboxed() as made:
        made.init()
        place = f"/root/{process_id()}"
        made.put(place, bytes(600 << 20)).refused(507, "disk_full")
        assert made.text("ls -A /root | grep -c sandlot- || true") == "0\n"
        assert made.put(place, b"small").status == 201


def test_the_backstop_ends_the_sandbox() -> None:
    with sandboxed(backstop_seconds=600.0) as made:
        assert made.init(backstop_seconds=0.3).status == 200
        eventually(lambda: not _reachable(made))


def _reachable(guest: RawGuest) -> bool:
    try:
        socket.create_connection((guest.host, guest.port), timeout=1).close()
    except OSError:
        return False
    return True


def test_it_is_static_and_small(guest: RawGuest) -> None:
    assert int(guest.text(["stat", "-c", "%s", "/.sandlot/guest"])) <= 8 << 20
    assert guest.run("touch /.sandlot/x").exit["exit_code"] != 0
