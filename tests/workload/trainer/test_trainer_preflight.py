"""Preflight: everything that can be wrong is told before an accelerator is taken."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.models import tiny_gpt2, tiny_llama
from tests.support.training import Workshop, colour_rows, quiet_context, run_trainer, write_rows

from finetuning_api.finetuningjob import ParallelismSpec, ParallelStrategy
from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import PreflightResult
from finetuning_trainer import preflight as preflight_module
from finetuning_trainer.preflight import preflight
from finetuning_trainer.train import train_model
from finetuning_workload.errors import ProgramError


def checked(workshop: Workshop, **options: Any) -> PreflightResult:  # noqa: ANN401  (fields of TrainingSpec)
    return preflight(workshop.preflight_config(**options), quiet_context())


def refusal(workshop: Workshop, **options: Any) -> ProgramError:  # noqa: ANN401  (fields of TrainingSpec)
    with pytest.raises(ProgramError) as error:
        checked(workshop, **options)
    return error.value


def test_preflight_counts_what_training_will_find(workshop: Workshop) -> None:
    announced = checked(workshop, epochs=1.5)
    result = train_model(workshop.train_config(epochs=1.5), quiet_context())
    assert (announced.total_steps, announced.dataset) == (result.steps, result.dataset)
    record = json.loads((workshop.output / "provenance.json").read_text())
    assert announced.parameters == record["plan"]["parameters"]
    assert announced.trainable_parameters == record["plan"]["trainable_parameters"] == 8192
    assert announced.warnings == ()


def test_training_uses_the_tokens_that_preflight_left(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    checked(workshop)

    def built_again(*_args: object, **_options: object) -> None:
        pytest.fail("the data was tokenised a second time")

    monkeypatch.setattr("finetuning_workload.data.preparing._build", built_again)
    assert train_model(workshop.train_config(), quiet_context()).steps == 10


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("method", [{"type": "full"}, {"dora": True}])
def test_the_outline_of_a_model_takes_no_memory_and_counts_right(tmp_path: Path, make: Any, method: Any) -> None:  # noqa: ANN401  (a fixture's builder and fields)
    workshop = Workshop(tmp_path, make(tmp_path / "model"), write_rows(tmp_path / "data", colour_rows()))
    result = checked(workshop, method=method)
    assert (result.trainable_parameters == result.parameters) is (method.get("type") == "full")
    assert result.trainable_parameters > 0


def test_targets_that_do_not_exist_are_told_with_those_that_do(workshop: Workshop) -> None:
    error = refusal(workshop, method={"target_modules": "q_proj,c_attn"})
    assert error.reason is Reason.TARGET_MODULES_NOT_FOUND
    assert error.message == (
        "spec.method.targetModules names c_attn, which the model does not have;"
        " it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(workshop: Workshop) -> None:
    path = workshop.model / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"vocab_size": 100}))
    error = refusal(workshop)
    assert error.reason is Reason.TOKENIZER_MISMATCH
    assert "embeddings for 100 ids" in error.message


def test_a_model_without_tokenizer_is_refused(workshop: Workshop) -> None:
    for path in workshop.model.glob("*token*"):
        path.unlink()
    error = refusal(workshop)
    assert error.reason is Reason.TOKENIZER_NOT_FOUND
    assert "spec.tokenizer.source" in error.hint


def test_weights_that_are_only_pickled_are_refused(workshop: Workshop) -> None:
    (workshop.model / "model.safetensors").rename(workshop.model / "pytorch_model.bin")
    error = refusal(workshop)
    assert error.reason is Reason.UNSAFE_CONTENT
    assert "pytorch_model.bin" in error.message


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, None])
def test_a_weight_file_that_is_not_whole_is_refused(workshop: Workshop, damage: bytes | None) -> None:
    file = workshop.model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    error = refusal(workshop)
    assert error.reason is Reason.MODEL_UNREADABLE
    assert str(file) in error.message


def test_a_file_that_the_index_names_and_the_folder_lacks_is_told(workshop: Workshop) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (workshop.model / "model.safetensors").rename(workshop.model / "model-00001-of-00002.safetensors")
    (workshop.model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks model-00002-of-00002.safetensors" in refusal(workshop).message


def test_code_in_a_model_s_folder_is_never_run(workshop: Workshop) -> None:
    config = {"model_type": "invented", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (workshop.model / "config.json").write_text(json.dumps(config))
    (workshop.model / "code.py").write_text("raise SystemExit('code of the model was run')")
    error = refusal(workshop)
    assert error.reason is Reason.MODEL_UNREADABLE
    assert "never run" in error.hint


def test_rows_longer_than_the_model_s_positions_are_refused(tmp_path: Path) -> None:
    rows = [{"message": f"{number} " * 15, "answer": "x"} for number in range(40)]
    workshop = Workshop(tmp_path, tiny_gpt2(tmp_path / "m", positions=32), write_rows(tmp_path / "data", rows))
    error = refusal(workshop, max_length=64)
    assert error.reason is Reason.INVALID_SPEC
    assert "spec.training.maxLength is 64" in error.message
    assert "the model has 32 positions" in error.message


def test_a_limit_beyond_the_positions_that_no_row_reaches_is_a_warning(workshop: Workshop) -> None:
    (warning,) = checked(workshop, max_length=4096).warnings
    assert warning.startswith("spec.training.maxLength is 4096, the model has 512 positions")


def test_weights_that_cannot_fit_are_refused_and_tight_memory_is_a_warning(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight_module, "memory_limit", lambda: 10_000_000)
    error = refusal(workshop)
    assert error.reason is Reason.OUT_OF_MEMORY
    assert "10.0 MB are allowed" in error.message
    monkeypatch.setattr(preflight_module, "memory_limit", lambda: 601_500_000)
    assert "601.5 MB are allowed" in checked(workshop).warnings[0]
    monkeypatch.setattr(preflight_module, "memory_limit", lambda: 2 * 601_500_000)
    assert checked(workshop).warnings == ()
    two = ParallelismSpec(processes_per_worker=2)
    assert "601.5 MB are allowed" in checked(workshop, parallelism=two).warnings[0]


def test_what_is_not_supported_is_refused_by_name(workshop: Workshop) -> None:
    assert "method.type is qlora" in refusal(workshop, method={"type": "qlora"}).message


def test_a_strategy_whose_package_is_lacking_says_what_to_install(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = ParallelismSpec(processes_per_worker=2, strategy=ParallelStrategy.DEEPSPEED)
    checked(workshop, parallelism=two)

    monkeypatch.setitem(sys.modules, "deepspeed", None)  # As where it is not installed.
    error = refusal(workshop, parallelism=two)

    assert error.reason is Reason.UNSUPPORTED
    assert "deepspeed is not installed beside the trainer" in error.message
    assert "pip install 'finetuning-operator[deepspeed]'" in error.hint
    checked(workshop, parallelism=ParallelismSpec(strategy=ParallelStrategy.DEEPSPEED))


def test_the_program_tells_a_user_s_mistake_without_a_traceback(workshop: Workshop) -> None:
    write_rows(workshop.data, [{"text": "no message here"}] * 3)
    ended = run_trainer(workshop.preflight_config(), workshop.folder)
    assert (ended.code, ended.words.reason) == (ExitCode.USER_ERROR, Reason.COLUMN_NOT_FOUND)
    assert "Traceback" not in ended.log
