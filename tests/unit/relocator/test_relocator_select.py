"""Which files of a source are taken."""

import pytest
from tests.support.relocator import reference

from finetuning_api.reasons import Reason
from finetuning_relocator.select import select
from finetuning_relocator.sources.base import Listing, RemoteFile
from finetuning_workload.errors import UserError


def taken(*paths: str, source: str = "hf://acme/tiny", **fields: object) -> set[str]:
    listing = Listing(files=tuple(RemoteFile(path=path, key=path) for path in paths))
    return {file.path for file in select(listing, reference(source, fields), what=source).files}


def refused(*paths: str, source: str = "hf://acme/tiny", **fields: object) -> UserError:
    with pytest.raises(UserError) as error:
        taken(*paths, source=source, **fields)
    return error.value


def test_data_is_taken_whole() -> None:
    paths = ("train.jsonl", "load.py", "pictures/a.png", "README.md")
    assert taken(*paths) == set(paths)


def test_a_model_is_taken_without_code_pictures_and_other_frameworks() -> None:
    kept = {"config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "README.md", "merges.txt"}
    left_out = {"modeling_x.py", "banner.PNG", "tf_model.h5", "onnx/model.onnx", "flax_model.msgpack", "run.sh"}
    assert taken(*kept, *left_out) == kept


def test_an_adapter_beside_its_pickle_is_taken_without_it() -> None:
    assert taken("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin") == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_an_include_is_the_users_own_choice() -> None:
    assert taken("config.json", "model.safetensors", "modeling_x.py", include=["*.py"]) == {"modeling_x.py"}


def test_pickles_are_not_given_out_even_when_asked_for() -> None:
    error = refused("config.json", "model.safetensors", "pytorch_model.bin", include=["*.bin"])
    assert error.reason is Reason.UNSAFE_CONTENT
    assert "pytorch_model.bin" in error.message
    assert refused("x.pkl", source="hf://acme/tiny#x.pkl").reason is Reason.UNSAFE_CONTENT


def test_tokenizer_files_of_a_pickle_only_model_may_be_taken() -> None:
    assert taken("tokenizer.json", "pytorch_model.bin", include=["*.json"]) == {"tokenizer.json"}


def test_a_pattern_with_a_slash_at_its_end_is_a_folder() -> None:
    assert taken("data/a.txt", "data/deep/b.txt", "c.txt", include=["data/"]) == {"data/a.txt", "data/deep/b.txt"}


def test_what_belongs_to_git_is_never_taken() -> None:
    assert taken("a.txt", ".gitattributes", ".git/config", "sub/.git/config") == {"a.txt"}


def test_the_names_of_the_relocator_itself_are_left_out() -> None:
    assert taken("a.txt", "manifest.json", "deep/manifest.json") == {"a.txt", "deep/manifest.json"}


def test_a_member_is_a_file_or_a_folder() -> None:
    paths = ("data/a.txt", "data/deep/b.txt", "c.txt")
    assert taken(*paths, source="hf://datasets/acme/x#data/a.txt") == {"a.txt"}
    assert taken(*paths, source="hf://datasets/acme/x#data") == {"a.txt", "deep/b.txt"}


def test_a_missing_member_names_the_nearest_file_wherever_it_lies() -> None:
    error = refused("models/tiny.Q4.gguf", "README.md", source="hf://acme/tiny#tiny.Q4.guf")
    assert error.reason is Reason.SOURCE_NOT_FOUND
    assert "models/tiny.Q4.gguf" in error.hint


def test_a_selection_that_leaves_nothing_says_what_there_was() -> None:
    error = refused("a.txt", "b.txt", exclude=["*"])
    assert error.reason is Reason.SOURCE_NOT_FOUND
    assert "a.txt, b.txt" in error.hint
