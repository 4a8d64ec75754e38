"""Who can reach a Triton server's gRPC, as its options say it."""

from dataclasses import dataclass

from trt_mtp.serve.hosts import in_url
from trt_mtp.serve.ports import HOST
from trt_mtp.serve.tls_files import TlsFiles


@dataclass(frozen=True, slots=True)
class GrpcAccess:
    """Access to Triton's gRPC; its HTTP and metrics ports are open to this machine only."""

    host: str = HOST  # the address to listen on
    tls: TlsFiles | None = None  # with a CA, clients need a certificate
    admin_key: str = ""  # for the management calls; empty: a random one

    def options(self) -> dict[str, object]:
        """Options of tritonserver."""
        options: dict[str, object] = {"grpc-address": in_url(self.host)}
        if self.tls is not None:
            options |= {
                "grpc-use-ssl": "true",
                "grpc-server-cert": self.tls.cert,
                "grpc-server-key": self.tls.key,
            }
            if self.tls.ca is not None:
                options |= {"grpc-use-ssl-mutual": "true", "grpc-root-cert": self.tls.ca}
        return options


LOCAL = GrpcAccess()
