"""TLS at the gateway's ports and towards Triton, and who may not call what."""

import asyncio
import http.client
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.certificates import Authority
from tests.conftest import CliResult
from tests.gateway_fixtures import (
    GatewayThread,
    running_gateway,
    triton_of_doubles,
    wait_until,
)
from trt_mtp.controller.gateway.access.config import AccessConfig, ConnectionLimits
from trt_mtp.controller.gateway.access.tls import WatchedTls, channel_credentials
from trt_mtp.controller.gateway.servers.triton_channel import TritonChannel
from trt_mtp.serve.grpc_access import GrpcAccess
from trt_mtp.serve.kserve import SERVICE
from trt_mtp.serve.tls_files import TlsFiles, server_context
from trt_mtp.serve.triton import TritonServer

ADMIN_KEY = "triton-grpc-protocol-admin-key"


def call(address: str, files: TlsFiles | None, method: str, request: Any, **options: Any) -> Any:
    """One unary call, over TLS where there are files; raises grpc.RpcError."""
    local = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
    channel = (
        grpc.secure_channel(address, channel_credentials(files.read()), options=local)
        if files
        else grpc.insecure_channel(address, options=local)
    )
    with channel:
        rpc = channel.unary_unary(f"/{SERVICE.full_name}/{method}")
        return rpc(request.SerializeToString(), timeout=60, **options)


def load_model(address: str, files: TlsFiles | None, admin_key: str) -> None:
    """Ask for a model that the request itself brings; raises grpc.RpcError."""
    request = pb.RepositoryModelLoadRequest(model_name="intruder")
    request.parameters["config"].string_param = '{"backend": "python"}'
    request.parameters["file:1/model.py"].bytes_param = b"raise SystemExit"
    call(address, files, "RepositoryModelLoad", request, metadata=((ADMIN_KEY, admin_key),))


def is_served(address: str, files: TlsFiles | None) -> bool:
    """Does the gateway answer a client that has these files?"""
    try:
        call(address, files, "ServerLive", pb.ServerLiveRequest())
    except grpc.RpcError:
        return False
    return True


def http_status(address: str, files: TlsFiles) -> int:
    """The status of /v2/health/ready over HTTPS; raises OSError."""
    context = ssl.create_default_context(cafile=str(files.ca))
    if files.cert is not None:
        context.load_cert_chain(files.cert, files.key)
    connection = http.client.HTTPSConnection(address, timeout=60, context=context)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status
    finally:
        connection.close()


def is_served_over_http(address: str, files: TlsFiles) -> bool:
    """Does the gateway answer over HTTPS?"""
    try:
        return http_status(address, files) == 200
    except OSError:
        return False


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority, with files for a server and a client."""
    return Authority(tmp_path)


@pytest.fixture
def client(authority: Authority) -> TlsFiles:
    """A client's files."""
    return TlsFiles(*authority.issue("client"), authority.ca)


@pytest.fixture
def secured(
    doubles: TritonServer, authority: Authority, client: TlsFiles
) -> Iterator[GatewayThread]:
    """A gateway that asks its clients for certificates."""
    tls = TlsFiles(*authority.issue("server"), authority.ca)
    access = AccessConfig(tls=tls)
    with running_gateway(doubles.grpc_url, http_port=0, access=access) as thread:
        yield thread


def test_clients_need_a_certificate(secured: GatewayThread, client: TlsFiles) -> None:
    """Plain connections and those without a certificate get nothing, on gRPC and on HTTP."""
    gateway = secured.gateway
    assert gateway.http_address is not None
    assert is_served(gateway.address, client)
    assert http_status(gateway.http_address, client) == 200
    assert not is_served(gateway.address, None)
    assert not is_served(gateway.address, TlsFiles(ca=client.ca))
    assert not is_served_over_http(gateway.http_address, TlsFiles(ca=client.ca))


def test_certificates_are_replaced_without_a_restart(
    secured: GatewayThread,
    authority: Authority,
    client: TlsFiles,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A new authority and its certificates count for new connections.

    Damaged files count for none, nor does a certificate that has expired.
    """
    gateway = secured.gateway
    assert gateway.http_address is not None
    server_key = tmp_path / "server.key"
    intact = server_key.read_bytes()
    server_key.write_text("half of it")
    assert is_served(gateway.address, client)
    assert is_served_over_http(gateway.http_address, client)
    server_key.write_bytes(intact)
    authority.issue("server", -3, -2)
    is_refused = "TLS files can't be used, those read before stay: the certificate in"
    wait_until(lambda: is_refused in caplog.text)  # by HTTP, which looks every second
    assert is_served(gateway.address, client)
    assert is_served_over_http(gateway.http_address, client)
    old = TlsFiles(*authority.issue("old"), Path(authority.ca).rename(tmp_path / "old.pem"))
    fresh = Authority(tmp_path)  # in the place of the one before
    fresh.issue("server")
    files = TlsFiles(*fresh.issue("client"), fresh.ca)
    wait_until(lambda: is_served(gateway.address, files))
    wait_until(lambda: is_served_over_http(str(gateway.http_address), files))
    assert not is_served(gateway.address, old)
    assert not is_served_over_http(gateway.http_address, old)


def test_triton_behind_mutual_tls(tmp_path: Path) -> None:
    """The gateway has a certificate for Triton, which refuses others; nobody loads models."""
    authority = Authority(tmp_path / "certificates")
    tls = TlsFiles(*authority.issue("triton"), authority.ca)
    own = TlsFiles(*authority.issue("gateway"), authority.ca)
    with triton_of_doubles(tmp_path / "triton", GrpcAccess(tls=tls)) as triton:
        assert not is_served(triton.grpc_url, None)
        assert not is_served(triton.grpc_url, TlsFiles(ca=authority.ca))
        with running_gateway(triton.grpc_url, access=AccessConfig(triton_tls=own)) as thread:
            ready = call(
                thread.gateway.address, None, "ModelReady", pb.ModelReadyRequest(name="qwen_mtp")
            )
            assert pb.ModelReadyResponse.FromString(ready).ready
            for key in ("", triton.admin_key):
                with pytest.raises(grpc.RpcError, match="is a management call"):
                    load_model(thread.gateway.address, None, key)
        for key in ("", "wrong"):
            with pytest.raises(grpc.RpcError, match="restricted"):
                load_model(triton.grpc_url, own, key)
        index = pb.RepositoryIndexRequest()
        metadata = ((ADMIN_KEY, triton.admin_key),)
        raw = call(triton.grpc_url, own, "RepositoryIndex", index, metadata=metadata)
        names = [model.name for model in pb.RepositoryIndexResponse.FromString(raw).models]
        assert "qwen_mtp_k3" in names
        assert "intruder" not in names


def test_a_new_client_certificate_is_used_towards_triton(
    authority: Authority, client: TlsFiles, tmp_path: Path
) -> None:
    """When its files change, the next look connects again; a call in flight finishes."""
    tls = TlsFiles(*authority.issue("server"), authority.ca)

    async def who(_: bytes, context: Any) -> bytes:
        """The name in the client's certificate, a while after the call began."""
        await asyncio.sleep(0.3)
        return bytes(context.auth_context()["x509_common_name"][0])

    async def talk() -> list[bytes]:
        from trt_mtp.controller.gateway.access.tls import server_credentials

        server = grpc.aio.server()
        handlers = {"ServerLive": grpc.unary_unary_rpc_method_handler(who)}
        handler = grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)
        server.add_generic_rpc_handlers((handler,))
        port = server.add_secure_port("127.0.0.1:0", server_credentials(tls))
        await server.start()
        channel = TritonChannel(f"127.0.0.1:{port}", client)
        names = [await channel.unary["ServerLive"](b"")]
        assert not channel.renew()
        in_flight = asyncio.ensure_future(channel.unary["ServerLive"](b""))
        await asyncio.sleep(0)
        cert, key = authority.issue("successor")
        assert client.cert is not None
        assert client.key is not None
        cert.replace(client.cert)
        key.replace(client.key)
        assert channel.renew()
        names += [await channel.unary["ServerLive"](b""), await in_flight]
        await channel.close()
        await server.stop(0)
        return names

    assert asyncio.run(asyncio.wait_for(talk(), 60)) == [b"client", b"successor", b"client"]


@pytest.mark.parametrize("command", ["gateway", "serve"])
def test_tls_options_that_do_not_fit_end_in_a_sentence(
    cli: Callable[..., CliResult], authority: Authority, tmp_path: Path, command: str
) -> None:
    """Half a pair, a CA alone, files of something else: exit code 2, before anything starts."""
    cert, key = authority.issue("server")
    expired, early = authority.issue("expired", -3, -2), authority.issue("early", 2, 3)
    common = {"gateway": ("--triton", "127.0.0.1:1", "--port", "0"), "serve": (str(tmp_path),)}
    for options, message in (
        (("--tls-cert", cert), "give both, or neither"),
        (("--tls-client-ca", authority.ca), "--tls-client-ca goes with --tls-cert and --tls-key"),
        (("--tls-cert", cert, "--tls-key", authority.issue("other")[1]), "no certificate and its"),
        (("--tls-cert", cert, "--tls-key", key, "--tls-client-ca", key), "has no certificates"),
        (("--tls-cert", expired[0], "--tls-key", expired[1]), "expired.crt expired on 20"),
        (("--tls-cert", early[0], "--tls-key", early[1]), "early.crt is not valid before 20"),
        (("--tls-cert", tmp_path / "none", "--tls-key", key), "does not exist"),
    ):
        result = cli(command, *common[command], *options)
        assert (result.code, "Traceback" in result.err) == (2, False)
        assert message in result.err


def test_what_was_tried_out_is_what_is_used(authority: Authority, tmp_path: Path) -> None:
    """Files that change once more after a look are another look's matter."""
    files = TlsFiles(*authority.issue("changing"), authority.ca)
    watched = WatchedTls(files)
    for path in files.paths:
        path.write_text("half a certificate")
    assert server_context(watched.contents).cert_store_stats()["x509_ca"] == 1
    assert not watched.has_changed()
    assert server_context(watched.contents).cert_store_stats()["x509_ca"] == 1


def test_files_that_cannot_be_used_are_told_once(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """However often they are looked at; again when something else is wrong, or after good ones."""
    cert, key = authority.issue("told")
    watched = WatchedTls(TlsFiles(cert, key, authority.ca))
    intact = Path(cert).read_bytes()
    for content in (b"half", None, b"half", intact, b"half"):
        if content is None:
            Path(cert).unlink()
        else:
            Path(cert).write_bytes(content)
        for look in range(3):
            assert watched.has_changed() == (content == intact and look == 0)
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 4


def test_handshakes_that_never_end_are_few_and_end(
    doubles: TritonServer, authority: Authority, client: TlsFiles
) -> None:
    """Strangers' took all files that a process may open, and both ports answered nobody."""
    limits = ConnectionLimits(max_connections=8, handshake_s=2.0)
    access = AccessConfig(TlsFiles(*authority.issue("server"), authority.ca), connections=limits)
    with running_gateway(doubles.grpc_url, http_port=0, access=access) as thread:
        address = str(thread.gateway.http_address)
        host, _, port = address.rpartition(":")
        silent = [socket.create_connection((host, int(port)), 60) for _ in range(9)]
        assert silent[-1].recv(1) == b""  # one too many
        assert [each.recv(1) for each in silent[:-1]] == [b""] * 8
        wait_until(lambda: is_served_over_http(address, client))
        for each in silent:
            each.close()
