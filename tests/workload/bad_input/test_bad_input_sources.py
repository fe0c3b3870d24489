"""Hubs that refuse and networks that are not there, as `finetune run` tells them.

What other tests show of the same faults at the level of the relocator, and is not repeated here:

================================================  ====================================================================
cut, stalled and wrong bytes; interrupted copies  tests/workload/relocation/test_relocator_{hub,web,objects,oci}.py
refusals of S3, registries, git and indexes       tests/workload/relocation/test_relocator_{objects,oci,git,pypi}.py
Secrets that a source names                       tests/unit/cli/test_cli_credentials.py
================================================  ====================================================================
"""

import socket
from collections.abc import Iterator, Mapping
from contextlib import closing

import pytest
from tests.support.bad_input import Desk, require_nothing_half_done, require_told
from tests.support.hub import Hub
from tests.support.loopback import Fault, Trouble
from tests.support.processes import wait_until

from finetuning_api.reasons import Reason

TOLD_WITHIN_SECONDS = 60
"""What a user without a network is promised."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def hub(desk: Desk) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in (desk.folder / "model").iterdir()}
    with Hub() as made:
        made.add_model("acme/tiny", files)
        made.add_model("acme/altered", files)
        made.add_model("acme/private", files, private=True)
        made.add_model("acme/gated", files, gated=True)
        made.add_model("acme/closed", files, gated=True, license_accepted=False)
        yield made


@pytest.mark.parametrize(
    ("name", "model", "token", "reason", "told"),
    [
        (
            "missing",
            {"source": "hf://acme/nothing"},
            "hf_valid",
            Reason.SOURCE_NOT_FOUND,
            ("model: ", "hf://acme/nothing was not found (404)", "a private one needs a token (HF_TOKEN)"),
        ),
        (
            "private",
            {"source": "hf://acme/private"},
            "",
            Reason.AUTHENTICATION_REQUIRED,
            ("hf://acme/private", "(401)", "HF_TOKEN into a Secret", "secretRef", "HF_TOKEN in the environment"),
        ),
        (
            "gated",
            {"source": "hf://acme/gated"},
            "",
            Reason.AUTHENTICATION_REQUIRED,
            ("hf://acme/gated", "(401)", "HF_TOKEN in the environment"),
        ),
        (
            "expired",
            {"source": "hf://acme/tiny"},
            "hf_expired",
            Reason.AUTHENTICATION_REQUIRED,
            ("hf://acme/tiny", "(401)", "HF_TOKEN is set in the environment, but is not accepted"),
        ),
        (
            "closed",
            {"source": "hf://acme/closed"},
            "hf_valid",
            Reason.ACCESS_DENIED,
            ("hf://acme/closed refuses access (403)", "Accept its license at", "account of the token"),
        ),
        (
            "revision",
            {"source": "hf://acme/tiny", "revision": "v9"},
            "",
            Reason.REVISION_NOT_FOUND,
            ("hf://acme/tiny has no revision 'v9'", "Set revision to a commit, tag or version that exists"),
        ),
        (
            "checksum",
            {"source": "hf://acme/tiny", "checksum": f"sha256:{'0' * 64}"},
            "",
            Reason.CHECKSUM_MISMATCH,
            ("hf://acme/tiny", "0" * 64, "Correct checksum if the new content is right"),
        ),
    ],
)
def test_refusal_of_a_hub_says_which_and_what_to_do(
    desk: Desk, hub: Hub, *, name: str, model: Mapping[str, str], token: str, reason: Reason, told: tuple[str, ...]
) -> None:
    ended = desk.run(name, {"model": {"endpoint": hub.url, **model}}, extra={"HF_TOKEN": token})

    require_told(desk, name, ended, reason=reason, told=told)
    require_nothing_half_done(desk, name)
    assert not token or token not in ended.terminal


def test_bytes_that_stay_wrong_are_told_with_both_sums_and_never_become_an_artifact(desk: Desk, hub: Hub) -> None:
    hub.fail_file("acme/altered", "model.safetensors", Fault(Trouble.WRONG_BYTES, after_bytes=100, times=1000))
    changes = {"model": {"source": "hf://acme/altered", "endpoint": hub.url}, "backoffLimit": 0}

    ended = desk.run("altered", changes)

    told = ("model.safetensors of hf://acme/altered arrived damaged", "expected sha256", "proxy or mirror")
    require_told(desk, "altered", ended, reason=Reason.CHECKSUM_MISMATCH, told=told)
    assert not (desk.artifact("altered", "model") / "manifest.json").exists()
    assert "train" not in desk.steps("altered")


@pytest.mark.parametrize(
    ("name", "told"), [("no-name", "cannot reach hub.invalid"), ("refused", "cannot reach 127.0.0.1")]
)
def test_no_network_is_told_in_time_after_every_retry(desk: Desk, *, name: str, told: str) -> None:
    with closing(socket.socket()) as reserved:
        # Bound, but not listening: nobody else can answer there.
        reserved.bind(("127.0.0.1", 0))
        endpoints = {"no-name": "http://hub.invalid", "refused": f"http://127.0.0.1:{reserved.getsockname()[1]}"}
        changes = {"model": {"source": "hf://acme/tiny", "endpoint": endpoints[name]}}

        ended = desk.run(name, changes, seconds=TOLD_WITHIN_SECONDS)

    told_to_user = (told, "Check the network, the proxy (HTTPS_PROXY)")
    require_told(desk, name, ended, reason=Reason.NETWORK_UNREACHABLE, told=told_to_user)
    assert "train" not in desk.steps(name)


def test_host_that_never_answers_is_told_in_time_while_it_is_tried_again(desk: Desk) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        process = desk.start("silent", {"model": {"source": "hf://acme/tiny", "endpoint": f"http://{address}"}})

        def told() -> bool:
            found = desk.state / "objects" / "FineTuningJob" / "silent.yaml"
            stages = desk.job("silent").status.stages if found.exists() else []
            return any(f"cannot reach {address}" in stage.message for stage in stages)

        wait_until(told, seconds=TOLD_WITHIN_SECONDS, what="the user is told that the host does not answer")
        assert process.stderr is not None
        line = next(line for line in process.stderr if "tries again" in line)
        process.terminate()
        process.communicate(timeout=60)

    assert f"tries again after: cannot reach {address}: it takes the connection, but does not answer" in line
