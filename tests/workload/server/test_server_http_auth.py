"""Who may ask: tokens in a folder, several at a time, exchanged and expiring while the server runs."""

import logging
import os
from datetime import UTC, datetime
from pathlib import Path

import openai
import pytest
from tests.support.served import serve_config, served

from finetuning_server.http.auth import TokenFolder

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
COMPLETION = {"model": "base", "prompt": "x"}


def write(folder: Path, **tokens: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in tokens.items():
        (folder / name).write_text(content)
    return folder


def swap(mount: Path, version: str, **tokens: str) -> None:
    """Exchange the files of a mounted Secret as the kubelet does: all at once, by its link ``..data``."""
    write(mount / version, **tokens)
    (mount / "..data_tmp").symlink_to(version)
    (mount / "..data_tmp").replace(mount / "..data")
    for name in tokens:
        if not (mount / name).is_symlink():
            (mount / name).symlink_to(Path("..data") / name)


def test_every_token_of_the_folder_has_its_holder(tmp_path: Path) -> None:
    tokens = TokenFolder(write(tmp_path / "tokens", ann="token-of-ann\n", bob="token-of-bob"))

    assert [tokens.holder_of(token) for token in ("token-of-ann", "token-of-bob")] == ["ann", "bob"]
    assert [tokens.holder_of(token) for token in ("", "token-of-an", "token-of-anna", "ann")] == [None] * 4


@pytest.mark.parametrize(
    ("expires", "holder"),
    [
        ("2026-01-01T12:00:01Z", "ann"),
        ("2026-01-01T13:00:00+01:00", None),
        ("2026-01-01T12:00:00Z", None),
        ("2025-12-31T23:00:00-14:00", "ann"),
    ],
)
def test_a_token_counts_until_it_expires(tmp_path: Path, expires: str, holder: str | None) -> None:
    folder = write(tmp_path / "tokens", ann=f"token-of-ann\nexpires: {expires}\n")

    assert TokenFolder(folder, now=lambda: NOON).holder_of("token-of-ann") == holder


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n",
        "two words",
        "token-of-ann\nexpires: tomorrow",
        "token-of-ann\nexpires: 2026-01-01T12:00:00",
        "token-of-ann\nexpires:",
        "token-of-ann\nnote: hers",
        "token-of-ann\nexpires: 2027-01-01T00:00:00Z\nmore",
        "tökén",
        "x" * 8193,
    ],
)
def test_a_malformed_file_refuses_its_token_and_no_other_and_is_named_without_its_content(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "tokens", bob="token-of-bob", ann=content)
    tokens = TokenFolder(folder, now=lambda: NOON)

    assert tokens.holder_of("token-of-bob") == "bob"
    first = content.partition("\n")[0]
    assert tokens.holder_of(first) is None
    (told,) = caplog.messages
    assert str(folder / "ann") in told
    assert not first or first not in told.replace(str(folder), "")


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_without_a_usable_token_refuses_all_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, made: bool
) -> None:
    if made:
        write(tmp_path / "tokens")
    tokens = TokenFolder(tmp_path / "tokens")

    assert [tokens.holder_of("x"), tokens.holder_of("")] == [None, None]
    assert caplog.messages == [f"no usable token in {tmp_path / 'tokens'}: every request is refused"]


def test_exchanged_files_count_from_the_next_request(tmp_path: Path) -> None:
    mount = tmp_path / "tokens"
    mount.mkdir()
    swap(mount, "..1", ann="first-token")
    tokens = TokenFolder(mount)
    before = tokens.holder_of("first-token")

    swap(mount, "..2", ann="other-token", bob="token-of-bob")

    assert before == "ann"
    asked = ("first-token", "other-token", "token-of-bob")
    assert [tokens.holder_of(token) for token in asked] == [None, "ann", "bob"]


def test_a_file_that_cannot_be_read_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "tokens", bob="token-of-bob")
    (folder / "ann").mkdir()

    assert TokenFolder(folder).holder_of("token-of-bob") == "bob"
    assert caplog.messages == [f"the token in {folder / 'ann'} is not accepted: {os.strerror(21)}"]


def test_only_holders_are_answered_and_the_log_has_their_names_and_no_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="finetuning_server")
    folder = write(tmp_path / "tokens", ann="token-of-ann", old="token-of-old\nexpires: 2020-01-01T00:00:00Z")
    with served(config=serve_config(tokens_path=str(folder))) as server, server.http() as client:
        answers = [
            client.post("/v1/completions", json=COMPLETION, headers=headers)
            for headers in (
                {},
                {"Authorization": "Bearer"},
                {"Authorization": "Bearer token-of-bob"},
                {"Authorization": "Bearer token-of-old"},
                {"Authorization": "Basic token-of-ann"},
                {"Authorization": "token-of-ann"},
                {b"Authorization": b"Bearer t\xf6k"},
                {"Authorization": "bearer token-of-ann", "X-Request-Id": "hers"},
            )
        ]
        paths = ["/v1/models", "/openapi.json", "/nowhere", "/healthz", "/readyz", "/metrics"]
        statuses = [client.get(path).status_code for path in paths]
        with pytest.raises(openai.AuthenticationError) as caught:
            server.openai("token-of-bob").models.list()
        assert [model.id for model in server.openai("token-of-ann").models.list()] == ["base", "tuned"]
        hers = server.line("hers")

    assert [answer.status_code for answer in answers] == [401] * 7 + [200]
    assert answers[0].headers["www-authenticate"] == 'Bearer realm="finetuning"'
    assert answers[2].headers["www-authenticate"] == 'Bearer realm="finetuning", error="invalid_token"'
    assert statuses == [401, 401, 401, 200, 200, 200]
    assert caught.value.code == "invalid_api_key"
    assert hers["holder"] == "ann"
    written = server.log.getvalue() + caplog.text + "".join(answer.text for answer in answers[:7])
    assert "token-of" not in written


def test_the_document_names_the_token_where_one_is_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path / "tokens", ann="token-of-ann")
    with served(config=serve_config(tokens_path=str(folder))) as server, server.http() as client:
        document = client.get("/openapi.json", headers={"Authorization": "Bearer token-of-ann"}).json()

    secured = {
        path for path, operations in document["paths"].items() if any("security" in o for o in operations.values())
    }
    assert document["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    assert set(document["paths"]) - secured == {"/healthz", "/readyz", "/metrics"}
