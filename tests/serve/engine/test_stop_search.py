"""The search for stop texts against Python's own, and how much it does for long ones."""

from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.serve.engine.stop_search import StopSearch

TEXTS = st.lists(st.text(alphabet="ab", min_size=1, max_size=6), min_size=1, max_size=5)


@given(TEXTS, st.text(alphabet="abc", max_size=40))
def test_the_first_text_that_is_complete_is_found(texts: list[str], answer: str) -> None:
    """After each character: what it completes, the longest one, or how much may begin a text."""
    search = StopSearch(texts)
    for end, char in enumerate(answer, start=1):
        so_far = answer[:end]
        complete = [len(text) for text in texts if so_far.endswith(text)]
        assert search.push(char) == max(complete, default=0)
        if complete:
            break
        begun = [n for text in texts for n in range(len(text)) if so_far.endswith(text[:n])]
        assert search.num_open == max(begun)


class _Counted(str):
    """A character that counts how often it is looked up."""

    __slots__ = ()
    num_looks = 0

    def __hash__(self) -> int:
        _Counted.num_looks += 1
        return super().__hash__()


def test_the_work_is_linear() -> None:
    """Texts that nearly are in the answer everywhere cost a few looks for each character."""
    search = StopSearch("a" * size + "b" for size in range(1_000, 1_024))
    _Counted.num_looks = 0
    answer = ("a" * 999 + "c") * 20
    for char in answer:
        assert search.push(_Counted(char)) == 0
    assert _Counted.num_looks < 6 * len(answer)
