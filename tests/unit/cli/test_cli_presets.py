from pathlib import Path

import pytest

from finetuning_api.finetuningjob import Preset
from finetuning_cli.local.presets import load_presets
from finetuning_workload.errors import UserError


def _file(folder: Path, text: str) -> Path:
    path = folder / "values.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_presets_are_read_from_the_values_of_an_installation(tmp_path: Path) -> None:
    written = _file(tmp_path, "replicaCount: 2\npresets:\n  small: {training: {epochs: 1}}\n")

    assert load_presets(written) == {"small": Preset.model_validate({"training": {"epochs": 1}})}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("small: {training: {epochs: 1}}", "holds no presets"),
        ("presets: {small: {training: {epoch: 1}}}", "presets.small.training.epoch"),
        ("presets: {small: [}", "cannot read the presets"),
    ],
)
def test_a_file_without_usable_presets_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_presets(_file(tmp_path, text))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the presets"):
        load_presets(tmp_path / "none.yaml")
