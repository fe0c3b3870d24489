import datetime as dt
import socket
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from finetuning_operator.cluster.progress.certificates import KeyPair, ReloadingContext, SelfSigned, self_signed

SERVICE = "finetuning-progress.finetuning-system.svc"


def _made(names: Sequence[str] = (SERVICE,)) -> SelfSigned:
    return self_signed(names, now=dt.datetime.now(dt.UTC))


def _shake_hands(server: ssl.SSLContext, *, ca: str, name: str) -> None:
    """Meet over a socket pair. Raises ssl.SSLError where the client does not trust what it sees."""
    client = ssl.create_default_context(cadata=ca)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()
    failures: list[OSError] = []

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        thread.join()
        theirs.close()


def _context(signed: SelfSigned, folder: Path) -> ReloadingContext:
    return ReloadingContext(*signed.write(folder))


@pytest.mark.parametrize("name", [SERVICE, "127.0.0.1", "fd00::1"])
def test_a_certificate_made_here_is_trusted_by_strict_clients_for_each_of_its_names(name: str, tmp_path: Path) -> None:
    signed = _made([SERVICE, "127.0.0.1", "fd00::1"])

    _shake_hands(_context(signed, tmp_path).context, ca=signed.ca, name=name)


def test_a_certificate_made_here_is_trusted_for_no_other_name_and_by_no_other_authority(tmp_path: Path) -> None:
    signed = _made()
    context = _context(signed, tmp_path).context

    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(context, ca=signed.ca, name="elsewhere.svc")
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(context, ca=_made().ca, name=SERVICE)


def test_a_key_is_written_for_its_owner_only(tmp_path: Path) -> None:
    _, key = _made().write(tmp_path)

    assert key.stat().st_mode & 0o777 == 0o600


def test_new_files_are_served_when_both_belong_together(tmp_path: Path) -> None:
    old, new = _made(), _made()
    reloading = _context(old, tmp_path)
    assert reloading.refresh() is False

    (tmp_path / "tls.crt").write_bytes(new.pair.certificate)
    assert reloading.refresh() is False
    _shake_hands(reloading.context, ca=old.ca, name=SERVICE)

    (tmp_path / "tls.key").write_bytes(new.pair.key)
    assert reloading.refresh() is True
    _shake_hands(reloading.context, ca=new.ca, name=SERVICE)


@pytest.mark.parametrize("damage", ["gone", "empty"])
def test_files_that_cannot_be_served_keep_the_old_certificate(damage: str, tmp_path: Path) -> None:
    signed = _made()
    reloading = _context(signed, tmp_path)
    if damage == "gone":
        (tmp_path / "tls.crt").unlink()
    else:
        (tmp_path / "tls.crt").write_bytes(b"")

    assert reloading.refresh() is False
    _shake_hands(reloading.context, ca=signed.ca, name=SERVICE)


def test_files_that_cannot_be_served_at_the_start_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        ReloadingContext(tmp_path / "tls.crt", tmp_path / "tls.key")
    with pytest.raises(ssl.SSLError):
        KeyPair(_made().pair.certificate, _made().pair.key).load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
