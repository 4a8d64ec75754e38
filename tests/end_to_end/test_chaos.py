"""The short form of the fault harness: `python -m tests.chaos` is the long one."""

import asyncio

from tests.chaos.campaign import parts, run


def test_no_stream_is_lost_while_a_variant_lives() -> None:
    """Through twenty faults every answer is whole, or refused before its first token."""
    report = asyncio.run(run(parts(20, variants_share=0.0), seed=2, on_progress=print))
    assert report["lost"] == 0, report["losses"]
    assert report["faults"] == 20
    assert report["failed_over"] > 0
    ends = ("intact", "refused", "lost", "left")
    assert report["started"] == sum(report[end] for end in ends)
