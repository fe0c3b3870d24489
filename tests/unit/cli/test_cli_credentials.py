import pytest

from finetuning_api.sources import Scheme
from finetuning_cli.local.credentials import Secrets, offline
from finetuning_workload.errors import UserError


def test_document_reaches_a_step_under_the_prefix_of_the_contract() -> None:
    secrets = Secrets({"token": {"HF_TOKEN": "x"}})

    assert secrets.environment("token", scheme=Scheme.HF, own={}) == {"SOURCE_SECRET_HF_TOKEN": "x"}


def test_without_a_document_the_users_environment_serves() -> None:
    own = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "PATH": "/bin"}

    assert Secrets().environment("bucket", scheme=Scheme.S3, own=own) == {
        "SOURCE_SECRET_AWS_ACCESS_KEY_ID": "a",
        "SOURCE_SECRET_AWS_SECRET_ACCESS_KEY": "b",
    }


@pytest.mark.parametrize(
    ("scheme", "own", "names"),
    [
        (Scheme.HF, {}, "HF_TOKEN"),
        (Scheme.S3, {"AWS_ACCESS_KEY_ID": "a"}, "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_missing_credentials_are_named(scheme: Scheme, own: dict[str, str], names: str) -> None:
    with pytest.raises(UserError) as caught:
        Secrets().environment("token", scheme=scheme, own=own)

    assert "'token'" in caught.value.message
    assert f"set {names} in the environment" in caught.value.hint


def test_secrets_are_not_shown() -> None:
    assert "hidden" not in repr(Secrets({"token": {"HF_TOKEN": "hidden"}}))


def test_step_without_network_is_told_so_and_gets_no_credentials() -> None:
    environment = offline({"HF_TOKEN": "x", "AWS_SECRET_ACCESS_KEY": "y", "HOME": "/home/me"})

    assert environment == {
        "HOME": "/home/me",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
