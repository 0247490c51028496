"""What a build comes to before anything is done: steps, configs, keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.builds.plan import DirectoryStep, FileStep, Planner, RunStep, first_key, images, next_key
from sandboxd.contract.dockerfile import DockerfileError
from sandboxd.contract.images import Build, Step
from sandboxd.images.base import ImageConfig

START = ImageConfig(env={"PATH": "/bin", "OLD": "o"}, user="user", cwd="/home/user", cmd=("sh",))


def planned(text: str, **more: object) -> tuple[list[object], ImageConfig]:
    planner = Planner(Build.model_validate({"dockerfile": text, **more}))
    plan = planner.plan(planner.stages()[-1][0], START)
    return list(plan.steps), plan.steps[-1].config


def test_config_follows_the_instructions() -> None:
    _, config = planned(
        "FROM base\nENV A=1 B='x y'\nENV PATH $PATH:/opt\nLABEL l=$A\nUSER root\n"
        "WORKDIR srv\nWORKDIR app/\nEXPOSE 80 53/udp\n"
        'ENTRYPOINT ["/run"]\nCMD serve now\n'
    )
    assert config == ImageConfig(
        env={"PATH": "/bin:/opt", "OLD": "o", "A": "1", "B": "x y"},
        user="root",
        cwd="/home/user/srv/app",
        entrypoint=("/run",),
        cmd=("/bin/sh", "-c", "serve now"),
        labels={"l": "1"},
        ports=("80", "53/udp"),
    )


def test_a_path_that_nobody_set_is_the_usual_one() -> None:
    planner = Planner(Build(dockerfile="FROM scratch\nENV PATH=$PATH:/opt\n"))
    (step,) = planner.plan(0, ImageConfig()).steps
    assert step.config.env["PATH"].endswith(":/bin:/opt")


def test_an_entrypoint_takes_the_bases_cmd_away() -> None:
    assert planned('FROM base\nENTRYPOINT ["/run"]')[1].cmd == ()
    assert planned('FROM base\nCMD ["x"]\nENTRYPOINT ["/run"]')[1].cmd == ("x",)


def test_arguments() -> None:
    steps, _ = planned("ARG V=1\nFROM base\nRUN a\nARG V\nARG W=w$V\nENV OLD=n\nRUN b", build_args={"W": "2"})
    first, second = (step for step in steps if isinstance(step, RunStep))
    assert "V" not in first.env
    assert second.env == {"PATH": "/bin", "OLD": "n", "V": "1", "W": "2"}
    assert second.argv == ("/bin/sh", "-c", "b")


def test_copy() -> None:
    steps, _ = planned(
        "FROM a AS one\nFROM base\nWORKDIR /w\nCOPY --chown=1:2 --chmod=755 a b* to/\n"
        'COPY --from=one ["/x y", "."]\nCOPY --from=img:1 / /'
    )
    assert isinstance(steps[0], DirectoryStep)
    first, second, third = (step for step in steps if isinstance(step, FileStep))
    assert (first.sources, first.to, first.mode, first.owner) == (("a", "b*"), "/w/to/", 0o755, "1:2")
    assert (second.stage, second.sources, second.to) == (0, ("/x y",), "/w/")
    assert (third.image, third.to) == ("img:1", "/")


def test_shells_scripts_and_notes() -> None:
    steps, _ = planned('FROM base\nSHELL ["/bin/bash", "-ec"]\nRUN <<E\na\nb\nE\nRUN ["x", "$y"]\nVOLUME /v\n')
    first, second = (step for step in steps if isinstance(step, RunStep))
    assert first.argv == ("/bin/bash", "-ec", "a\nb\n")
    assert second.argv == ("x", "$y")
    assert "is not acted on" in str(steps[-1])


@pytest.mark.parametrize(
    "line",
    [
        "ADD https://x/y /",
        "ADD x.tar.gz /",
        "COPY a",
        "COPY a b c",
        "COPY --chmod=u+x a b",
        "ONBUILD RUN x",
        "SHELL x",
        "USER a/b",
        "COPY [a",
        "ENV A",
    ],
)
def test_what_cannot_be_done_is_refused_by_line(line: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        planned(f"FROM base\nRUN x\n{line}")
    assert caught.value.line == 3


def test_steps_in_code() -> None:
    build = Build.model_validate(
        {
            "from": "other",
            "steps": [
                {"pip_install": ["numpy"]},
                {"apt_install": ["git"]},
                {"npm_install": ["x"]},
                {"run": "echo"},
                {"env": {"A": "1"}},
                {"workdir": "w"},
                {"copy": {"from": "a", "to": "b/", "mode": "755"}},
                {"user": "nobody"},
                {"run": ["a", "b"]},
            ],
        }
    )
    planner = Planner(build)
    assert planner.stages() == [(0, "other")]
    assert images(build) == ["other"]
    steps = planner.plan(0, START).steps
    runs = [step for step in steps if isinstance(step, RunStep)]
    assert [run.user for run in runs] == ["0", "0", "0", "user", "nobody"]
    assert runs[0].argv[-1] == "numpy"
    assert runs[1].argv[-2:] == ("apt_install", "git")
    assert runs[3].argv == ("/bin/sh", "-c", "echo")
    assert (runs[4].argv, runs[4].env["A"], runs[4].cwd) == (("a", "b"), "1", "/home/user/w")
    (copy,) = (step for step in steps if isinstance(step, FileStep))
    assert (copy.to, copy.mode) == ("/home/user/w/b/", 0o755)


def _keys(build: Build, project: str = "p", digest: str = "d") -> list[str]:
    planner = Planner(build)
    keys = [first_key(project, "img")]
    for step in planner.plan(planner.stages()[-1][0], START).steps:
        keys.append(next_key(keys[-1], step, [digest] if isinstance(step, FileStep) else []))
    return keys


def _build(text: str) -> Build:
    return Build.model_validate({"dockerfile": text})


def test_keys_follow_what_a_step_sees() -> None:
    text = "FROM base\nRUN a\nCOPY x y\nENV A=1\nRUN b\n"
    same = _keys(_build(text))
    assert same == _keys(_build(text.replace("RUN a", "RUN   a\n# a comment")))
    assert same != _keys(_build(text), project="other")
    assert same[1] == _keys(_build(text), digest="e")[1] != _keys(_build(text), digest="e")[2]
    assert same[2] == _keys(_build(text.replace("A=1", "A=2")))[2]
    assert same[-1] != _keys(_build(text.replace("A=1", "A=2")))[-1]
    assert same[2] == same[3], "what changes the config alone makes no image"


@given(
    st.lists(st.sampled_from(["run", "env", "workdir", "user", "pip_install"]), max_size=8),
    st.text(min_size=1, max_size=20),
)
def test_any_steps_have_keys(kinds: list[str], word: str) -> None:
    word = word.replace("\0", "") or "x"
    values: dict[str, object] = {"run": word, "env": {"A": word}, "workdir": word, "user": "u", "pip_install": [word]}
    build = Build(steps=[Step.model_validate({kind: values[kind]}) for kind in kinds])
    assert _keys(build) == _keys(build)
