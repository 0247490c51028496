"""Dockerfiles: what is read of them, and what is refused, by line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.contract import dockerfile
from sandboxd.contract.dockerfile import DockerfileError, expand, parse, split


def only(text: str) -> dockerfile.Instruction:
    (instruction,) = parse(f"FROM base\n{text}").stages[0].body
    return instruction


def test_lines_are_joined_and_comments_among_them_are_none() -> None:
    found = only("RUN one && \\\n  # not this\n\n   two \\  \n&& three\n")
    assert found.rest == "one &&    two && three"
    assert found.line == 2


def test_escape_may_be_a_backtick() -> None:
    (found,) = parse("# escape=`\nFROM base\nRUN dir C:\\ `\n && b\n").stages[0].body
    assert found.rest == "dir C:\\  && b"


def test_a_directive_counts_only_at_the_top() -> None:
    (found,) = parse("\n# escape=`\nFROM base\nRUN a \\\n b").stages[0].body
    assert found.rest == "a  b"


@pytest.mark.parametrize("line", ["run x", "Run x", "  RUN   x", "RUN\tx"])
def test_keywords_are_of_any_case(line: str) -> None:
    assert (only(line).keyword, only(line).rest) == ("RUN", "x")


def test_stages_have_names_and_numbers() -> None:
    read = parse("ARG V=1\nFROM base:$V AS Build\nRUN a\nFROM scratch\nCOPY --from=build /a /b\nCOPY --from=0 /a /c\n")
    assert [(stage.number, stage.name) for stage in read.stages] == [(0, "build"), (1, None)]
    assert read.stage("build").number == 0
    assert read.stage("1").number == 1
    assert [stage.number for stage in dockerfile.needed(read, None, {})] == [0, 1]
    assert dockerfile.images(read, None, {"V": "9"}) == ["base:9"]


def test_a_stage_that_nobody_needs_names_no_image() -> None:
    read = parse("FROM one AS a\nFROM two AS b\nFROM three\nCOPY --from=b / /\nCOPY --from=other/x:1 / /\n")
    assert dockerfile.images(read, None, {}) == ["two", "three", "other/x:1"]
    assert dockerfile.images(read, "a", {}) == ["one"]


def test_json_and_shell_forms() -> None:
    assert only('RUN ["a", "b c"]').words() == ["a", "b c"]
    assert only("RUN [ -f x ] && y").words() is None
    assert only("RUN [1]").words() is None


def test_a_lone_heredoc_is_the_script_and_others_are_the_shells() -> None:
    first = only("RUN <<EOF\necho a\necho b\nEOF\n")
    assert first.script == "echo a\necho b\n"
    tabs = only("RUN <<-'E'\n\techo a\n\tE\n")
    assert tabs.script == "echo a\n"
    beside = only("RUN cat <<EOF > /x\ntext\nEOF\n")
    assert (beside.script, beside.body) == (None, "text\nEOF\n")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "no FROM"),
        ("RUN x", 1, "before the first FROM"),
        ("FROM base\n\nFETCH x", 3, "no instruction"),
        ("FROM --platform=linux/arm64 base", 1, "--platform"),
        ("FROM a b", 1, "FROM takes"),
        ("FROM a AS 9x", 1, "no name"),
        ("FROM base\nRUN --mount=type=cache,target=/x y", 2, "--mount"),
        ("FROM base\nCOPY --link a b", 2, "--link"),
        ("FROM base\nCOPY --from a b", 2, "one value"),
        ("FROM base\nRUN <<EOF\nx", 2, "no end"),
        ("FROM base\nRUN <<EOF\n#!/usr/bin/python3\nEOF", 2, "interpreter"),
        ("FROM base\nCOPY <<EOF /x\na\nEOF", 2, "RUN only"),
        ("FROM base\n# c\nRUN \\\n\n", 3, "says nothing"),
        ("# escape=x\nFROM base", 1, "escape"),
    ],
)
def test_what_is_not_understood_is_refused_by_line(text: str, line: int, says: str) -> None:
    with pytest.raises(DockerfileError, match=says) as caught:
        parse(text)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$A", "1"),
        ("${A}b", "1b"),
        ("$Ab", ""),
        ("${B:-x}", "x"),
        ("${E:-x}", "x"),
        ("${E-x}", ""),
        ("${A:+y}", "y"),
        ("${E:+y}", ""),
        ("${E+y}", "y"),
        ("${B:-${A}}", "1"),
        ("\\$A", "$A"),
        ("'$A'", "$A"),
        ('"$A c"', "1 c"),
        ("a$", "a$"),
        ("a\\ b", "a b"),
        ('"a\\"b"', 'a"b'),
        ('"a\\b"', "a\\b"),
    ],
)
def test_variables(text: str, value: str) -> None:
    assert expand(text, {"A": "1", "E": ""}.get, "\\", 1) == value


@pytest.mark.parametrize("text", ["${A", "${}", "${A%x}", "${B:?gone}", "'a", '"'])
def test_what_no_variable_is(text: str) -> None:
    with pytest.raises(DockerfileError):
        expand(text, {"A": "1"}.get, "\\", 7)


def _refused_at(text: str) -> int:
    """Return the line that is wrong; 0: none is."""
    try:
        dockerfile.images(parse(text), None, {"y": "1"})
    except DockerfileError as error:
        return error.line
    return 0


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    assert _refused_at(text) in {0, *range(1, len(text.splitlines()) + 2)}


@given(
    st.lists(
        st.sampled_from(["FROM a AS b\n", "RUN x\\\n", "y\n", "COPY --from=b . $x\n", "ARG x=${y:-'z'}\n", "#\n", "\n"])
    )
)
def test_any_lines_are_read_or_refused(lines: list[str]) -> None:
    assert 0 <= _refused_at("".join(lines)) <= len(lines) + 1


@given(st.text(alphabet=st.characters(exclude_characters="\\\"'$", exclude_categories=("Cs",))))
def test_plain_text_stays_what_it_is(text: str) -> None:
    assert expand(text, lambda _: None, "\\", 1) == text


@given(st.lists(st.text(alphabet="abc=/.-_", min_size=1)))
def test_words_are_split_at_blanks(words: list[str]) -> None:
    assert split(" \t ".join(words), "\\") == words
