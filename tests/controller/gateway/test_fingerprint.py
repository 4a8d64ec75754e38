"""A profile is for one deployment: who refuses another, and what they name."""

import pytest

from tests.gateway_fixtures import running_gateway
from trt_mtp.controller.gateway.process import check_fingerprint
from trt_mtp.controller.profile import Profile
from trt_mtp.errors import InputError
from trt_mtp.serve.triton import TritonServer


def test_the_gateway_names_the_parts_that_differ(doubles: TritonServer) -> None:
    """A profile of another deployment is refused with each part that is not the same."""
    with running_gateway(doubles.grpc_url) as thread:
        check_fingerprint(Profile(fingerprint="f0"), "p.json", thread.gateway)
        other = Profile(fingerprint="f1", measured_on={"device": "H100", "engine": "x"})
        with pytest.raises(InputError, match=r"device is double, not H100\): calibrate again"):
            check_fingerprint(other, "p.json", thread.gateway)
        many_parts = Profile(fingerprint="f1", measured_on=dict.fromkeys("abcdefgh", "x"))
        with pytest.raises(InputError, match="; 6 more") as many:
            check_fingerprint(many_parts, "p.json", thread.gateway)
        elsewhere = Profile(fingerprint="f1", measured_on={"server": "llamacpp", "model": "q"})
        with pytest.raises(InputError, match=r"OpenAI's API \(llamacpp\), not on") as short:
            check_fingerprint(elsewhere, "p.json", thread.gateway)
    assert max(len(str(many.value)), len(str(short.value))) < 320
