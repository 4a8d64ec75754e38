"""Whose prompt is read next, where several are there."""

from pathlib import Path

from tests.engine_fixtures import Answer, Blocker, opened
from trt_mtp.serve.engine.base import Chunk, Request, SamplingParams
from trt_mtp.serve.engine.cpu import CpuEngine


def first_tokens(engine: CpuEngine, sizes: list[int]) -> list[int]:
    """Prompts of these sizes, there at once, in the order in which their answers begin."""
    blocked, order, answers = Blocker(), list[int](), [Answer() for _ in sizes]
    engine.submit(Request((5,), SamplingParams(max_tokens=1)), blocked.on_chunk)
    assert blocked.is_entered.wait(10)
    for at, (size, answer) in enumerate(zip(sizes, answers, strict=True)):

        def on_chunk(chunk: Chunk, at: int = at, answer: Answer = answer) -> None:
            order.append(at)
            answer.on_chunk(chunk)

        engine.submit(Request((7,) * size, SamplingParams(max_tokens=1)), on_chunk)
    blocked.go_on.set()
    for answer in (blocked.answer, *answers):
        answer.wait()
    return order


def test_a_short_prompt_waits_for_no_long_ones(drafting: Path) -> None:
    """It is read beside the oldest of those that came before it, not after all of them."""
    with opened(drafting, 2) as engine:
        assert first_tokens(engine, [200, 200, 200, 10]) == [3, 0, 1, 2]


def test_short_prompts_hold_up_no_long_one(drafting: Path) -> None:
    """It has half of the turns, however many shorter ones there are."""
    with opened(drafting, 2) as engine:
        order = first_tokens(engine, [250, *[10] * 7])
    assert order.index(0) in (3, 4)
