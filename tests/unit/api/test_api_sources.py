"""Sources are parsed into parts, and the identity of what they name depends on the bytes and on nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.api.factories import STEADY

from finetuning_api.base import SecretRef
from finetuning_api.rules import holds
from finetuning_api.sources import (
    Conversion,
    ParsedSource,
    Scheme,
    SourceError,
    SourceRef,
    parse_source,
    relocation_key,
    relocation_name,
)


@pytest.mark.parametrize(
    ("source", "parsed"),
    [
        ("data/rows.jsonl", ParsedSource(scheme=Scheme.FILE, location="data/rows.jsonl")),
        ("./data//rows.jsonl", ParsedSource(scheme=Scheme.FILE, location="data/rows.jsonl")),
        ("/data/", ParsedSource(scheme=Scheme.FILE, location="/data")),
        ("file:///my%20data", ParsedSource(scheme=Scheme.FILE, location="/my data")),
        ("odd#name", ParsedSource(scheme=Scheme.FILE, location="odd#name")),
        ("file:///data", ParsedSource(scheme=Scheme.FILE, location="/data")),
        ("hf://owner/name/", ParsedSource(scheme=Scheme.HF, location="owner/name")),
        (
            "pypi://package==1.0#folder/a%20b.gguf",
            ParsedSource(scheme=Scheme.PYPI, location="package==1.0", member="folder/a b.gguf"),
        ),
        ("git+https://host/repo.git", ParsedSource(scheme=Scheme.GIT_HTTPS, location="host/repo.git")),
    ],
)
def test_a_source_is_split_into_its_parts(source: str, parsed: ParsedSource) -> None:
    assert parse_source(source) == parsed


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ftp://host/key", "unknown scheme 'ftp'"),
        ("s3://", "names nothing"),
        ("https:///key", "names nothing"),
        ("https://me:secret@host/key", "user name or password"),
        ("git+https://token@host/repo", "user name or password"),
        ("oci://host/a#b/../../c", "leaves its folder"),
        ("oci://host/a#%2e%2e/c", "leaves its folder"),
    ],
)
def test_a_source_that_cannot_be_right_is_refused(source: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        parse_source(source)


def test_a_refusal_does_not_repeat_the_password() -> None:
    with pytest.raises(SourceError) as raised:
        parse_source("https://me:secret@host/key")
    assert "secret@" not in str(raised.value)


def test_a_gguf_file_is_converted_and_nothing_else_is() -> None:
    assert SourceRef(source="pypi://package==1#model.Q4_1.GGUF").conversion is Conversion.GGUF
    assert SourceRef(source="hf://owner/name-gguf").conversion is Conversion.NONE


REF = SourceRef(source="hf://owner/name", revision="main", include=["*.json", "*.safetensors"])


@pytest.mark.parametrize(
    "same",
    [
        REF,
        REF.model_copy(update={"source": "hf://owner/name/"}),
        REF.model_copy(update={"secret_ref": SecretRef(name="token")}),
        REF.model_copy(update={"size": "10Gi"}),
        REF.model_copy(update={"include": ["*.safetensors", "*.json"]}),
        REF.model_copy(update={"endpoint": ""}),
    ],
)
def test_the_same_bytes_have_the_same_identity(same: SourceRef) -> None:
    assert relocation_key(same) == relocation_key(REF)


@pytest.mark.parametrize(
    "other",
    [
        REF.model_copy(update={"source": "hf://owner/other"}),
        REF.model_copy(update={"source": "hf://owner/name#file"}),
        REF.model_copy(update={"revision": None}),
        REF.model_copy(update={"include": ["*.json"]}),
        REF.model_copy(update={"exclude": ["*.json"]}),
        REF.model_copy(update={"endpoint": "https://hub.example"}),
        REF.model_copy(update={"checksum": "sha256:" + "0" * 64}),
    ],
)
def test_other_bytes_have_another_identity(other: SourceRef) -> None:
    assert relocation_key(other) != relocation_key(REF)


def test_two_spellings_of_a_local_path_are_one_artifact() -> None:
    assert relocation_key(SourceRef(source="./data/rows.jsonl")) == relocation_key(SourceRef(source="data/rows.jsonl"))


def test_identities_stay_what_they_are_because_volumes_are_named_after_them() -> None:
    assert relocation_name(SourceRef(source="hf://owner/name")) == "reloc-0da586041ba98e3a8155"


SOURCES = st.builds(
    "".join,
    st.tuples(
        st.sampled_from([*(f"{scheme}://" for scheme in Scheme), "ftp://", "", "HF://"]),
        st.text(alphabet="ab1/.#@:=-% ", max_size=12),
    ),
)


@settings(STEADY)
@given(source=SOURCES.filter(bool))
def test_what_the_rules_accept_can_be_parsed(source: str) -> None:
    if all(holds(rule.rule, value={"source": source}) for rule in SourceRef.cel_rules):
        parsed = parse_source(source)
        assert parse_source(parsed.canonical) == parsed


@settings(STEADY)
@given(include=st.lists(st.text(min_size=1, max_size=5), max_size=4), revision=st.none() | st.text(max_size=5))
def test_an_identity_is_a_kubernetes_name(include: list[str], revision: str | None) -> None:
    name = relocation_name(REF.model_copy(update={"include": include, "revision": revision}))
    assert len(name) == 26
    assert name.removeprefix("reloc-").isalnum()
