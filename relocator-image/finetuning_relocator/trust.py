"""Authorities of the site: certificates that programs trust besides the public ones."""

import ssl
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

import certifi

from finetuning_api.runconfig import EXTRA_CA_ENV
from finetuning_workload.files import explained_os_errors

_READ_BY_CLIENTS = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "AWS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
)
"""Variables by which OpenSSL, requests, clients of S3, curl, git and pip find the authorities that they trust alone."""


def trust_extra_authorities(environment: MutableMapping[str, str]) -> None:
    """Let every client of this process trust the file that FINETUNING_EXTRA_CA names, too.

    Each client takes one bundle in place of its own, so one with both is written. Without the variable nothing changes.
    """
    extra = environment.get(EXTRA_CA_ENV)
    if not extra:
        return
    known = ssl.get_default_verify_paths().cafile or certifi.where()
    with explained_os_errors("write its certificates"):
        parts = [Path(each).read_text(encoding="utf-8").rstrip("\n") for each in (known, extra)]
        with tempfile.NamedTemporaryFile("w", prefix="authorities-", suffix=".pem", delete=False) as bundle:
            bundle.write("\n".join((*parts, "")))
    environment.update(dict.fromkeys(_READ_BY_CLIENTS, bundle.name))
