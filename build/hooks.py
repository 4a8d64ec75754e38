"""What `trt-mtp build` gets from the stages after it, which build/ never imports."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# reference variant and folders of variants -> what comparing each with it showed
Verify = Callable[[Path, Sequence[Path]], list[dict[str, Any]]]
Schedules = dict[int, dict[int, int]]  # by draft length: largest batch size -> tokens to draft


class Hooks(NamedTuple):
    """Functions of serve/ and controller/, joined in trt_mtp/cli.py."""

    verify: Verify
    # a profile's file, draft lengths, the largest batch, shares of tasks as typed -> schedules
    schedules: Callable[[Path, Sequence[int], int, str | None], Schedules]
