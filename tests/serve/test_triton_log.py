"""What Triton's log says of its start."""

from pathlib import Path

import pytest

from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.triton_log import TritonLog


def test_a_process_that_can_not_be_started_is_said_at_once(tmp_path: Path) -> None:
    """Triton itself waits for it without end, where there is no bash for example."""
    log = TritonLog(tmp_path / "triton.log")
    log.begin()
    log.require_start()
    with log.file.open("a") as file:
        file.write("Failed to run python backend stub. Errno = 2\nPython backend stub path: /x\n")
    log.read()
    with pytest.raises(TrtMtpError, match=r"a model \(No such file or directory\); it needs bash"):
        log.require_start()
