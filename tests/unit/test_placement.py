"""Placement: which node, and why none."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from api.services.placement import CANDIDATES, Choice, NoChoice, NodeView, choose
from sandboxd.contract.messages import Capacity, Resources
from sandboxd.contract.ready import ready_key

IMAGE = "img" + "a" * 20


def amounts(cpus: float, memory_mib: int = 0, disk_mib: int = 0, sandboxes: int = 0) -> Capacity:
    return Capacity(cpus=cpus, memory_mib=memory_mib, disk_mib=disk_mib, sandboxes=sandboxes)


def a_node(
    name: str,
    *,
    used: float = 0,
    cpus: float = 8,
    ready: bool = True,
    refusals: int = 0,
    has_ready: int = 0,
    images: Sequence[str] = (IMAGE,),
) -> NodeView:
    return NodeView(
        id=name,
        ready=ready,
        capacity=amounts(cpus, 65536, 655360, 100),
        used=amounts(used),
        images=images,
        refusals=refusals,
        ready_sandboxes={ready_key(IMAGE, Resources()): has_ready},
    )


def first(_: int) -> int:
    return 0


def place(
    nodes: Sequence[NodeView], resources: Resources | None = None, tried: frozenset[str] = frozenset()
) -> Choice | NoChoice:
    return choose(nodes, resources or Resources(), IMAGE, tried=tried, draw=first)


def why(result: Choice | NoChoice) -> str:
    assert isinstance(result, NoChoice)
    return result.why


def test_the_emptiest_of_the_drawn_is_chosen() -> None:
    assert place([a_node("a", used=4), a_node("b", used=1), a_node("c", used=3)]) == Choice("b")


def test_only_a_few_are_looked_at() -> None:
    nodes = [a_node(f"n{number}", used=4) for number in range(CANDIDATES)] + [a_node("empty")]
    assert place(nodes) == Choice("n0")


def test_nodes_that_have_just_refused_are_avoided() -> None:
    assert place([a_node("a", refusals=3), a_node("b", used=4)]) == Choice("b")


def test_one_that_is_ready_is_liked_but_not_required() -> None:
    others = [a_node(f"n{number}") for number in range(2 * CANDIDATES)]
    assert place([*others, a_node("quick", used=1, has_ready=1)]) == Choice("quick")
    assert place([*others, a_node("quick", used=7, has_ready=1)]) == Choice("n0")
    assert place([*others, a_node("quick", used=8, has_ready=1)]) == Choice("n0")
    assert place([*others, a_node("spent", used=1, has_ready=-1)]) == Choice("n0")
    assert place([*others, a_node("other", used=1, has_ready=1)], Resources(memory_mib=64)) == Choice("n0")


def test_without_reports_nothing_is_said_to_be_impossible() -> None:
    assert why(place([])) == "silent"


def test_what_no_node_could_ever_give_is_named() -> None:
    result = place([a_node("a", used=8), a_node("b", cpus=4)], Resources(cpus=9))
    assert isinstance(result, NoChoice)
    assert (result.why, result.limit) == ("impossible", {"cpus": 8.0})
    assert "9" in result.detail


def test_dimensions_of_different_nodes_do_not_add_up() -> None:
    wide = NodeView(id="w", ready=True, capacity=amounts(8, 1024, 99999, 9), used=amounts(0), images=[IMAGE])
    deep = NodeView(id="d", ready=True, capacity=amounts(1, 8192, 99999, 9), used=amounts(0), images=[IMAGE])
    assert why(place([wide, deep], Resources(cpus=8, memory_mib=8192))) == "impossible"


def test_full_is_not_impossible() -> None:
    assert why(place([a_node("a", used=8)])) == "full"
    crowded = NodeView(
        id="c", ready=True, capacity=amounts(8, 65536, 65536, 3), used=amounts(0, 0, 0, 3), images=[IMAGE]
    )
    assert why(place([crowded])) == "full"


def test_images_silence_and_refusals() -> None:
    assert why(place([a_node("a", images=[])])) == "image"
    assert why(place([a_node("a", ready=False)])) == "silent"
    assert why(place([a_node("a")], tried=frozenset({"a"}))) == "full"
    assert place([a_node("a"), a_node("b")], tried=frozenset({"a"})) == Choice("b")


@given(
    st.lists(st.tuples(st.floats(0.1, 64), st.floats(0, 64), st.booleans(), st.booleans()), max_size=12),
    st.floats(0.1, 64),
    st.randoms(use_true_random=False),
)
def test_a_choice_always_fits(shapes: list[tuple[float, float, bool, bool]], cpus: float, random: object) -> None:
    nodes = [
        a_node(f"n{number}", cpus=total, used=used, ready=ready, images=[IMAGE] if has else [])
        for number, (total, used, ready, has) in enumerate(shapes)
    ]
    draw = getattr(random, "randrange")  # noqa: B009 - hypothesis gives no public type for it
    result = choose(nodes, Resources(cpus=cpus), IMAGE, tried=frozenset(), draw=draw)
    fitting = {node.id for node in nodes if node.ready and node.images and node.used.cpus + cpus <= node.capacity.cpus}
    if isinstance(result, Choice):
        assert result.node_id in fitting
    else:
        assert not fitting
