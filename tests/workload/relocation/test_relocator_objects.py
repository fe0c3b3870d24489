"""s3:// with obstore against moto's server, and gs:// against a fake of its API."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import pytest
from moto.server import ThreadedMotoServer
from tests.support.gcs import FakeGcs
from tests.support.loopback import Fault, Trouble
from tests.support.relocator import STALL_SECONDS, Relocator, assert_refused, files_in

from finetuning_api.reasons import ExitCode

ROWS = b'{"text": "row"}\n' * 60_000
OBJECTS = {"rows/train.jsonl": ROWS, "rows/more/test.jsonl": b"{}\n", "other/x.txt": b"x"}
BUCKET = "tickets"


@dataclass(frozen=True, slots=True)
class S3:
    """A running S3 server and a client of it."""

    url: str
    client: Any


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    login = {"aws_access_key_id": "key", "aws_secret_access_key": "s3cret"}
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **login)
    client.create_bucket(Bucket=BUCKET)
    for key, data in OBJECTS.items():
        client.put_object(Bucket=BUCKET, Key=key, Body=data)
    client.put_object(Bucket=BUCKET, Key="rows/", Body=b"")
    client.put_object_acl(Bucket=BUCKET, Key="other/x.txt", ACL="public-read")
    yield S3(url=url, client=client)
    server.stop()


@pytest.fixture
def login(relocator: Relocator) -> None:
    relocator.environment |= {
        "SOURCE_SECRET_AWS_ACCESS_KEY_ID": "key",
        "SOURCE_SECRET_AWS_SECRET_ACCESS_KEY": "s3cret",
        "SOURCE_SECRET_AWS_REGION": "eu-central-1",
    }


@pytest.mark.usefixtures("login")
def test_one_object_is_taken_alone(s3: S3, relocator: Relocator, destination: Path) -> None:
    ended = relocator.relocate(f"s3://{BUCKET}/rows/train.jsonl", destination, endpoint=s3.url)
    assert ended.exit_code == ExitCode.DONE, ended.log
    assert files_in(destination) == {"train.jsonl": ROWS}


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.usefixtures("login")
def test_everything_below_a_prefix_is_taken(s3: S3, relocator: Relocator, destination: Path, slash: str) -> None:
    ended = relocator.relocate(f"s3://{BUCKET}/rows{slash}", destination, endpoint=s3.url)
    assert files_in(destination) == {"train.jsonl": ROWS, "more/test.jsonl": b"{}\n"}
    assert ended.artifact.transferred_bytes == ended.artifact.size_bytes == len(ROWS) + 3


def test_a_public_object_needs_no_credentials(s3: S3, relocator: Relocator, destination: Path) -> None:
    ended = relocator.relocate(f"s3://{BUCKET}/other/x.txt", destination, endpoint=s3.url)
    assert ended.exit_code == ExitCode.DONE, ended.log


def test_a_private_bucket_says_which_keys_it_wants(s3: S3, relocator: Relocator, destination: Path) -> None:
    ended = relocator.relocate(f"s3://{BUCKET}/rows/train.jsonl", destination, endpoint=s3.url)
    assert_refused(ended, "AuthenticationRequired", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "secretRef")


@pytest.mark.usefixtures("login")
def test_a_prefix_is_measured(s3: S3, relocator: Relocator) -> None:
    measured = relocator.measure(f"s3://{BUCKET}/rows", endpoint=s3.url).measured
    assert (measured.size_bytes, measured.files) == (len(ROWS) + 3, 2)


@pytest.mark.parametrize("source", [f"s3://{BUCKET}/absent", "s3://no-such-bucket/rows"])
@pytest.mark.usefixtures("login")
def test_what_does_not_exist_is_not_found(s3: S3, relocator: Relocator, destination: Path, source: str) -> None:
    ended = relocator.relocate(source, destination, endpoint=s3.url)
    assert_refused(ended, "SourceNotFound", source, "bucket")
    assert not destination.exists()


@pytest.mark.usefixtures("login")
def test_a_damaged_object_is_the_only_one_that_is_fetched_again(
    s3: S3, relocator: Relocator, destination: Path
) -> None:
    relocator.relocate(f"s3://{BUCKET}/rows", destination, endpoint=s3.url)
    (destination / "more" / "test.jsonl").write_bytes(b"[]\n")
    ended = relocator.relocate(f"s3://{BUCKET}/rows", destination, endpoint=s3.url)
    assert ended.artifact.transferred_bytes == 3
    assert files_in(destination) == {"train.jsonl": ROWS, "more/test.jsonl": b"{}\n"}


@pytest.fixture
def gcs() -> Iterator[FakeGcs]:
    with FakeGcs({BUCKET: OBJECTS}) as running:
        yield running


def test_a_bucket_of_gcs_is_read_the_same_way(gcs: FakeGcs, relocator: Relocator, destination: Path) -> None:
    ended = relocator.relocate(f"gs://{BUCKET}/rows", destination, endpoint=gcs.url)
    assert ended.exit_code == ExitCode.DONE, ended.log
    assert files_in(destination) == {"train.jsonl": ROWS, "more/test.jsonl": b"{}\n"}


def test_a_cut_object_goes_on_where_it_stopped(gcs: FakeGcs, relocator: Relocator, destination: Path) -> None:
    path = f"/{BUCKET}/rows/train.jsonl"
    gcs.fail(path, Fault(Trouble.CUT, after_bytes=600_000))
    ended = relocator.relocate(f"gs://{BUCKET}/rows/train.jsonl", destination, endpoint=gcs.url)
    assert files_in(destination) == {"train.jsonl": ROWS}
    assert [seen.range_start > 0 for seen in gcs.requests_for(path)] == [False, True]
    assert ended.artifact.transferred_bytes == len(ROWS)


def test_a_stalled_object_goes_on_in_the_next_run(gcs: FakeGcs, relocator: Relocator, destination: Path) -> None:
    path = f"/{BUCKET}/rows/train.jsonl"
    gcs.fail(path, Fault(Trouble.STALL, after_bytes=600_000))
    stalled = relocator.relocate(f"gs://{BUCKET}/rows", destination, endpoint=gcs.url, stall_seconds=STALL_SECONDS)
    assert_refused(stalled, "DownloadStalled", "train.jsonl", exit_code=ExitCode.ENVIRONMENT)
    ended = relocator.relocate(f"gs://{BUCKET}/rows", destination, endpoint=gcs.url)
    assert ended.artifact.transferred_bytes < len(ROWS)
    assert files_in(destination) == {"train.jsonl": ROWS, "more/test.jsonl": b"{}\n"}


@pytest.mark.parametrize(
    ("status", "key", "reason", "exit_code"),
    [
        (401, None, "AuthenticationRequired", ExitCode.USER_ERROR),
        (403, None, "AuthenticationRequired", ExitCode.USER_ERROR),
        (403, "key", "AccessDenied", ExitCode.USER_ERROR),
        (503, "key", "SourceUnavailable", ExitCode.ENVIRONMENT),
    ],
)
def test_refusals_are_told_apart(
    gcs: FakeGcs,
    relocator: Relocator,
    destination: Path,
    *,
    status: int,
    key: str | None,
    reason: str,
    exit_code: ExitCode,
) -> None:
    """obstore reports S3's and GCS's answers alike; S3 is asked here, because its keys need no token endpoint."""
    if key is not None:
        relocator.environment |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "s3cret"}
    gcs.refuse_everything(status)
    ended = relocator.relocate(f"s3://{BUCKET}/rows", destination, endpoint=gcs.url)
    assert_refused(ended, reason, BUCKET, exit_code=exit_code)


def test_a_store_that_is_not_there_is_told_soon(relocator: Relocator, destination: Path) -> None:
    ended = relocator.relocate(f"s3://{BUCKET}/rows", destination, endpoint="http://127.0.0.1:9")
    assert_refused(ended, "NetworkUnreachable", "127.0.0.1:9", exit_code=ExitCode.ENVIRONMENT)
