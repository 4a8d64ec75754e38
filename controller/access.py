"""Who may use the gateway: the settings that guard its ports and its connections to Triton."""

from dataclasses import dataclass

from trt_mtp.serve.tls_files import TlsFiles


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """What is None is not asked for: no TLS."""

    tls: TlsFiles | None = None  # of the public ports; with a CA, clients need a certificate
    triton_tls: TlsFiles | None = None  # of connections to Triton


OPEN = AccessConfig()  # to everybody who can connect
