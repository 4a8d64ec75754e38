"""The chart's Envoy, started as its pod would start it, in front of a gateway."""

import os
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.certificates import Authority
from tests.envoy import EXAMPLE, Ports, address, envoy, several, validated
from tests.gateway_fixtures import raw_stream, running_gateway, script_request, text_of, wait_until
from tests.programs import TIMEOUT_S
from tools.chart import manifests, render
from trt_mtp.serve.triton import TritonServer
