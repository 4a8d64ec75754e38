"""Rollouts reach servers over TLS, and show themselves where that is asked for."""

from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.gateway_fixtures import triton_of_doubles
from trt_mtp.controller.client import Prompt
from trt_mtp.controller.rollout.spec import Server, Tls
from trt_mtp.controller.rollout.triton import RefusedError, TritonSite, UnreachableError
from trt_mtp.errors import InputError
from trt_mtp.serve.grpc_access import GrpcAccess
from trt_mtp.serve.tls_files import TlsFiles


def test_a_server_with_tls_is_rolled_out_to(tmp_path: Path) -> None:
    """With the right authority and certificate; nothing is sent in clear, nor to a stranger."""
    authority, others = Authority(tmp_path / "ca"), Authority(tmp_path / "other", "other")
    cert, key = authority.issue("client")
    access = GrpcAccess(tls=TlsFiles(*authority.issue("server"), authority.ca), admin_key="k" * 16)
    (tmp_path / "admin.key").write_text("k" * 16)
    with triton_of_doubles(tmp_path / "triton", access) as triton:

        def site(tls: Tls | None) -> TritonSite:
            address = triton.grpc_url.replace("127.0.0.1", "localhost")
            key_file = tmp_path / "admin.key"
            server = Server(grpc=address, tls=tls, admin_key_file=key_file, repository=tmp_path)
            return TritonSite(server, "qwen_mtp")

        trusted = site(Tls(ca=authority.ca, cert=cert, key=key))
        assert trusted.states()["qwen_mtp_k1"] == "READY"
        prompt = Prompt([{"role": "user", "content": "{}"}])
        assert trusted.answers("k1", [prompt], 30.0)
        for tls in (None, Tls(ca=others.ca, cert=cert, key=key), Tls(ca=authority.ca)):
            stranger = site(tls)
            with pytest.raises((UnreachableError, RefusedError)):
                stranger.states()
            stranger.close()
        trusted.close()
        with pytest.raises(InputError, match="no certificates in PEM"):
            site(Tls(ca=tmp_path / "admin.key"))
