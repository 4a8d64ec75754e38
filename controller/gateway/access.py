"""Who may use the gateway: the settings that guard its ports and its connections to Triton."""

from dataclasses import dataclass
from pathlib import Path

from trt_mtp.serve.tls_files import TlsFiles


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """What is None is not asked for: no TLS, no tokens, no limit."""

    tls: TlsFiles | None = None  # of the public ports; with a CA, clients need a certificate
    triton_tls: TlsFiles | None = None  # of connections to Triton
    tokens: Path | None = None  # the tenants' file
    max_prompt_tokens: int | None = None


OPEN = AccessConfig()  # to everybody who can connect
