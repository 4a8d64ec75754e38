"""Where tritonserver is, and what of it is lent to a server."""

import os
from pathlib import Path

import pytest

from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.triton_install import STUB, TritonInstall


@pytest.fixture
def install(tmp_path: Path) -> TritonInstall:
    """An install of two files."""
    files = (tmp_path / "lib" / "libtriton_python.so", tmp_path / "lib" / STUB)
    (tmp_path / "lib").mkdir()
    for file in files:
        file.write_text(file.name)
        file.chmod(0o755)
    return TritonInstall(tmp_path / "tritonserver", files)


def test_what_triton_does_to_its_stub_is_done_to_a_copy(
    install: TritonInstall, tmp_path: Path
) -> None:
    """Triton takes a stub's permissions from everybody but its owner; other users need it too."""
    for _ in range(2):  # as at a restart
        install.link_backends(tmp_path / "backends")
        stub = tmp_path / "backends" / "python" / STUB
        assert stub.read_text() == STUB
        assert os.access(stub, os.X_OK)
        stub.chmod(0o100)
    assert install.stub.stat().st_mode & 0o777 == 0o755
    assert (stub.parent / "libtriton_python.so").is_symlink()


def test_a_stub_that_can_not_be_run_is_named(install: TritonInstall, tmp_path: Path) -> None:
    """With what its owner can do; Triton's own sentence is about a file in our folder."""
    install.stub.chmod(0o600)
    with pytest.raises(TrtMtpError, match=f"chmod 755 .*{STUB}"):
        install.link_backends(tmp_path / "backends")
