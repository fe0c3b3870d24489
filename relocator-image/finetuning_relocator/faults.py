"""The failures of sources in one wording: what was asked for, why it was refused, what to do."""

from difflib import get_close_matches
from http import HTTPStatus

from finetuning_api.reasons import Reason
from finetuning_relocator.credentials import Credentials
from finetuning_workload.errors import EnvironmentFault, ProgramError, UserError

_NAMES_SHOWN = 8
_TRY_LATER = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


def not_found(what: str, hint: str = "Check the spelling of source.", *, status: int | None = None) -> UserError:
    """Return the error for a source that does not exist, with the HTTP status that says so."""
    told = f" ({status})" if status else ""
    return UserError(Reason.SOURCE_NOT_FOUND, f"{what} was not found{told}", hint)


def revision_not_found(what: str, revision: str, hint: str = "") -> UserError:
    """Return the error for a revision that the source does not have."""
    return UserError(
        Reason.REVISION_NOT_FOUND,
        f"{what} has no revision {revision!r}",
        hint or "Set revision to a commit, tag or version that exists.",
    )


def authentication_required(what: str, credentials: Credentials, *keys: str) -> UserError:
    """Return the error for a source that wants to know who asks (401)."""
    message = f"{what} asks for credentials (401)"
    return UserError(Reason.AUTHENTICATION_REQUIRED, message, credentials.how_to_give(*keys))


def access_denied(what: str, hint: str) -> UserError:
    """Return the error for a source that knows who asks and refuses (403)."""
    return UserError(Reason.ACCESS_DENIED, f"{what} refuses access (403)", hint)


def unreachable(host: str, detail: object) -> EnvironmentFault:
    """Return the fault for a host without connection or name."""
    message = f"cannot reach {host}: {detail}"
    hint = "Check the network, the proxy (HTTPS_PROXY) and, on a cluster, the egress rules of relocation pods."
    return EnvironmentFault(Reason.NETWORK_UNREACHABLE, message, hint)


def unavailable(what: str, detail: object) -> EnvironmentFault:
    """Return the fault for a server that answers, but with an error of its own (5xx)."""
    message = f"{what} is not available now: {detail}"
    return EnvironmentFault(Reason.SOURCE_UNAVAILABLE, message, "The server is at fault; try again later.")


def stalled(what: str, seconds: float) -> EnvironmentFault:
    """Return the fault for a transfer without one new byte."""
    message = f"{what}: no byte arrived for {seconds:g} s"
    hint = "What has arrived is kept; the next attempt goes on from there."
    return EnvironmentFault(Reason.DOWNLOAD_STALLED, message, hint)


def wrong_bytes(path: str, *, expected: str, found: str) -> EnvironmentFault:
    """Return the fault for bytes that are not those that the source announced."""
    message = f"{path} arrived damaged: expected {expected}, got {found}"
    hint = "A proxy or mirror may alter files, or the source may be damaged."
    return EnvironmentFault(Reason.CHECKSUM_MISMATCH, message, hint)


def unsafe(message: str, hint: str) -> UserError:
    """Return the error for content that is never brought onto a volume."""
    return UserError(Reason.UNSAFE_CONTENT, message, hint)


def missing_member(member: str, names: list[str], *, of: str) -> UserError:
    """Return the error for a file that a source does not hold, with the names that are nearest."""
    near = get_close_matches(member, names, n=_NAMES_SHOWN, cutoff=0.5)
    base = {name.rpartition("/")[2]: name for name in names}
    near = near or [base[name] for name in get_close_matches(member.rpartition("/")[2], list(base), n=_NAMES_SHOWN)]
    shown = near or sorted(names)[:_NAMES_SHOWN]
    kind = "the nearest names are" if near else "it holds"
    listed = ", ".join(shown) if shown else "no files at all"
    hint = f"Write one of its files after #; {kind} {listed}."
    return not_found(f"the file {member!r} in {of}", hint)


def from_status(status: int, *, what: str, credentials: Credentials, keys: tuple[str, ...]) -> ProgramError | None:
    """Return what an HTTP status means, None for one that is no failure."""
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED}:
        return authentication_required(what, credentials, *keys)
    if status == HTTPStatus.FORBIDDEN:
        return access_denied(what, credentials.how_to_give(*keys))
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
        return not_found(what, status=status)
    if status in _TRY_LATER or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return unavailable(what, f"HTTP {status}")
    if status >= HTTPStatus.BAD_REQUEST:
        return UserError(Reason.SOURCE_NOT_FOUND, f"{what} answered HTTP {status}", "Check source and endpoint.")
    return None
