"""Whose certificates count: the system's, those a file names, and in words what to do where one is not trusted."""

from __future__ import annotations

import ssl
from pathlib import Path

from domain.errors import Unavailable

UNTRUSTED = "certificate_untrusted"


def verify_for(url: str, ca_file: Path | None = None) -> ssl.SSLContext | bool:
    """Return what a connection to a URL verifies certificates by.

    The system's store, so that a CA added to it is known here too; OpenSSL itself reads ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``.

    Args:
        url: Of the server; without TLS there is nothing to load.
        ca_file: PEM file of certificates to trust instead.

    Raises:
        Unavailable: ``certificate_untrusted`` where the file cannot be read.
    """
    if not url.startswith("https:"):
        return True
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file is not None else None)
    except (OSError, ssl.SSLError) as error:
        raise Unavailable(f"{ca_file} holds no certificates that can be read ({error}).", code=UNTRUSTED) from error


def untrusted(url: str, error: BaseException, setting: str) -> Unavailable | None:
    """Return the error for a certificate that was refused; None where that is not what went wrong.

    Args:
        url: Of the server.
        error: What the HTTP library raised; the cause may lie some levels down.
        setting: Name of the variable that would name a CA.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    return Unavailable(
        f"The certificate of {url} is not trusted here ({cause.verify_message}). If that is your server, name the certificate of "
        f"the CA that signed its own by {setting} (or SSL_CERT_FILE); if not, somebody stands between you and it.",
        code=UNTRUSTED,
        metadata={"url": url, "reason": cause.verify_message},
    )
