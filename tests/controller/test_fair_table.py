"""Names of many owners: who has its share loses nothing, whatever others do."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.controller.fair_table import FairTable

uses = st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(0, 30))


@given(st.lists(uses, max_size=200), st.integers(1, 12))
def test_the_largest_forgets_what_it_used_longest_ago(
    steps: list[tuple[str | None, int]], capacity: int
) -> None:
    """Against a table that looks through everything."""
    table, kept = FairTable(capacity), dict[tuple[str | None, str], int]()
    for at, (owner, number) in enumerate(steps):
        name = f"{owner}/{number}"
        gone = table.use(owner, name)
        kept[owner, name] = at
        sizes = Counter(who for who, _ in kept)
        assert (gone is not None) == (len(kept) > capacity)
        if gone is not None:
            [who] = [who for who, each in kept if each == gone]
            assert sizes[who] == max(sizes.values())
            assert kept[who, gone] == min(at for (each, _), at in kept.items() if each == who)
            del kept[who, gone]


def test_a_share_is_safe() -> None:
    """Ten thousand names of one owner cost another none of its own."""
    table = FairTable(100)
    mine = [f"mine/{number}" for number in range(50)]
    gone = [table.use("me", name) for name in mine]
    gone += [table.use("flood", f"flood/{number}") for number in range(10_000)]
    assert not set(mine) & set(gone)
    assert [table.use("me", name) for name in mine] == [None] * 50
