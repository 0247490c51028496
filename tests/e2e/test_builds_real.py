"""Builds on the real thing: Dockerfiles and steps run in sandboxes, their images started, hostile ones survived."""

import hashlib
import io
import json
import os
import signal
import zipfile
from collections.abc import Generator
from typing import Any

import pytest

from build_kit import tar
from harness import Platform
from harness import platform as platforms


@pytest.fixture(scope="module", name="platform")
def _platform() -> Generator[Platform]:
    with platforms(heartbeat_seconds="1") as running:
        yield running


def upload(platform: Platform, rows: dict[str, Any]) -> str:
    data = tar(rows)
    sha256 = hashlib.sha256(data).hexdigest()
    answer = platform.http.put(f"/v1/uploads/{sha256}", params={"total_bytes": len(data)}, content=data)
    assert answer.is_success, answer.text
    return sha256


def settled(platform: Platform, **spec: Any) -> dict[str, Any]:
    answer = platform.http.post("/v1/images", json=spec)
    assert answer.is_success, answer.text
    image = answer.json()
    while image["state"] not in {"ready", "failed"}:
        image = platform.http.get(f"/v1/images/{image['id']}", params={"wait_seconds": 60}).json()
    return image


def built(platform: Platform, **build: Any) -> dict[str, Any]:
    image = settled(platform, build=build)
    assert image["state"] == "ready", image["message"]
    return image


def said(platform: Platform, image: str, shell: str) -> str:
    answer = platform.http.post("/v1/run", json={"image": image, "command": {"shell": shell, "merge_stderr": True}})
    assert answer.is_success, answer.text
    return answer.json()["stdout"]


def log(platform: Platform, image: dict[str, Any]) -> list[dict[str, Any]]:
    text = platform.http.get(f"/v1/images/{image['id']}/log").text
    return [json.loads(line) for line in text.splitlines()]


def cached(image: dict[str, Any]) -> list[bool]:
    return [step["cached"] for step in image["steps"]]


DOCKERFILE = """\
# syntax=docker/dockerfile:1
ARG WORD=hello
FROM base AS made
ARG WORD
USER root
RUN mkdir /out && echo "echo $WORD" > /out/tool && chmod 755 /out/tool && rm /etc/issue

FROM base
USER root
RUN apt-get --version > /versions && rm -rf /var/log && mkdir /var/log && ln -s /versions /link && ln /versions /hard
COPY --chown=user:user src /srv/src
COPY --from=made /out/tool /usr/local/bin/
ENV GREETING="good day" PATH=$PATH:/srv/bin
WORKDIR /srv/work
RUN <<END
touch here
chown user .
END
USER user
CMD ["tool"]
"""


def test_a_dockerfile_with_stages_and_its_second_build(platform: Platform) -> None:
    context = upload(platform, {"src": None, "src/a.py": "print('a')", "src/b.tmp": "b", ".dockerignore": "**/*.tmp"})
    image = built(platform, dockerfile=DOCKERFILE, context=context)
    assert image["config"]["user"] == "user"
    assert image["config"]["cwd"] == "/srv/work"
    text = said(
        platform,
        image["id"],
        "tool; id -un; pwd; echo $GREETING; ls /srv/src; stat -c '%U %h' /srv/src/a.py /hard; cat /link | head -c 3; "
        "echo; ls here /etc/issue; ls -A /var/log | wc -l",
    )
    # the issue was removed in the other stage only
    wanted = ["hello", "user", "/srv/work", "good day", "a.py", "user 1", "root 2", "apt", "/etc/issue", "here", "0"]
    assert text.splitlines() == wanted
    again = built(platform, dockerfile=DOCKERFILE, context=context)
    assert again["digest"] == image["digest"]
    assert all(step["cached"] for step in again["steps"] if step["state"] == "done")
    changed = built(platform, dockerfile=DOCKERFILE.replace("touch here", "touch there"), context=context)
    ran = [step["text"] for step in changed["steps"] if step["state"] == "done" and not step["cached"]]
    assert [text for text in ran if text.startswith("RUN")] == ["RUN touch there …"]


def test_steps_in_code_with_a_package_of_ones_own(platform: Platform) -> None:
    context = upload(platform, {"dist": None, "dist/greeting-1.0-py3-none-any.whl": wheel()})
    steps = [
        {"copy": {"from": "dist/*.whl", "to": "/tmp/"}},
        {"pip_install": ["--no-index", "/tmp/greeting-1.0-py3-none-any.whl"]},
        {"env": {"WHO": "world"}},
    ]
    image = built(platform, steps=steps, context=context)
    assert said(platform, image["id"], "python3 -c 'import greeting; greeting.greet()'") == "hello world\n"
    more = built(platform, steps=[*steps, {"run": "true"}], context=context)
    assert cached(more) == [True, True, True, False]


def wheel() -> bytes:
    """A package without anything of a network."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("greeting.py", "import os\ndef greet(): print('hello', os.environ['WHO'])\n")
        info = "greeting-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


def test_a_failure_shows_step_output_and_exit_code(platform: Platform) -> None:
    image = settled(
        platform, build={"dockerfile": "FROM base\nRUN echo before\nRUN echo why >&2; exit 42\nRUN never\n"}
    )
    assert (image["state"], image["reason"]) == ("failed", "step_failed")
    assert "step 2 of 3" in image["message"]
    assert [step["exit_code"] for step in image["steps"]] == [None, 42, None]
    lines = log(platform, image)
    assert ("stderr", 1, "why") in [(line["kind"], line.get("step"), line.get("text")) for line in lines]
    assert lines[-1]["kind"] == "exit"


def test_a_running_sandbox_becomes_an_image_and_runs_on(platform: Platform) -> None:
    sandbox = platform.create(image="base", user="0")
    calls = f"/v1/sandboxes/{sandbox['id']}"
    shell = "echo kept > /root/kept; mkdir /srv/x; echo left > /srv/x/out; rm -r /opt"
    assert platform.http.post(f"{calls}/run", json={"shell": shell}).json()["exit_code"] == 0
    image = settled(platform, sandbox={"sandbox_id": sandbox["id"], "exclude": ["srv/x"]}, config={"user": "0"})
    assert image["state"] == "ready", image["message"]
    text = said(platform, image["id"], "cat /root/kept; ls /srv; ls /opt")
    assert text == "kept\nls: cannot access '/opt': No such file or directory\n"
    answer = platform.http.post(f"{calls}/run", json={"argv": ["cat", "/root/kept"]})
    assert answer.json()["stdout"] == "kept\n"
    platform.http.delete(f"/v1/sandboxes/{sandbox['id']}", params={"grace_seconds": 0})


def test_steps_are_bounded_and_reach_what_they_may(platform: Platform) -> None:
    small = {"resources": {"disk_mib": 64, "memory_mib": 256}}
    full = settled(platform, build={"dockerfile": "FROM base\nUSER root\nRUN cat /dev/zero > /fill", **small})
    assert full["reason"] == "step_failed"
    assert "No space left on device" in full["message"]
    sparse = settled(platform, build={"dockerfile": "FROM base\nUSER root\nRUN truncate -s 1T /sparse", **small})
    assert sparse["reason"] == "too_large"
    slow = settled(platform, build={"dockerfile": "FROM base\nRUN sleep 1000", "timeout_seconds": 2})
    assert slow["reason"] == "timed_out"
    blocked = settled(
        platform,
        build={"dockerfile": "FROM base\nRUN curl -sS -m 5 http://192.0.2.1/", "egress": {"mode": "blocked"}},
    )
    assert blocked["reason"] == "step_failed"
    platform.wait_until(lambda: not platform.node_sandboxes(), "nothing of the builds' sandboxes is left")


HOSTILE = """\
FROM base
USER root
RUN python3 - <<'END'
import os, socket
os.chdir("/srv")
for name in (b"\\xff\\xfe", b"a\\nb", b"n" * 255, b".wh.x", b".wh..wh..opq"):
    open(name, "w").close()
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
deep = "/".join(["d"] * 100)
os.makedirs(deep)
os.symlink("/proc/self/root/" * 100, "loop")
os.symlink("../" * 100 + "etc/shadow", "out")
for number in range(5000):
    open(f"f{number}", "w").close()
END
"""


def test_what_a_step_leaves_behind_harms_nobody(platform: Platform) -> None:
    image = built(platform, dockerfile=HOSTILE)
    assert image["dropped"] == {"pipes": 1}
    text = said(platform, image["id"], "cd /srv; ls -A | wc -l; ls -d .wh.x; ls -d d/d/d; readlink out | head -c 9")
    assert text.split() == ["5009", ".wh.x", "d/d/d", "../../../"]


def test_a_killed_node_goes_on_with_a_build(platform: Platform) -> None:
    text = "FROM base\nRUN echo first > /tmp/first\nRUN sleep 3; cat /tmp/first\n"
    image = platform.http.post("/v1/images", json={"build": {"dockerfile": text}}).json()

    def second_runs() -> bool:
        steps = platform.http.get(f"/v1/images/{image['id']}").json()["steps"] or [{}, {"state": ""}]
        return steps[1]["state"] == "running"

    platform.wait_until(second_runs, "the second step runs")
    os.kill(platform.pid("node"), signal.SIGKILL)
    platform.wait_until(
        lambda: platform.http.get(f"/v1/images/{image['id']}").json()["state"] == "ready", "the build is done"
    )
    done = platform.http.get(f"/v1/images/{image['id']}").json()
    assert cached(done) == [True, False]
    platform.wait_until(lambda: not platform.node_sandboxes(), "nothing of the builds' sandboxes is left")
