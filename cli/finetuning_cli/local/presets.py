"""Presets on one machine: an installation has them in its settings, a run reads them from a file."""

from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from finetuning_api.base import Name
from finetuning_api.finetuningjob import Preset
from finetuning_api.reasons import Reason
from finetuning_workload.errors import UserError


def load_presets(path: Path) -> dict[str, Preset]:
    """Return the presets of a YAML file, which has them as the values of the chart do: below ``presets``.

    What else such a file holds is left alone. Raises UserError that names the file and what is wrong with it.
    """
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(written, dict) or not isinstance(written.get("presets"), dict):
            raise UserError(Reason.INVALID_SPEC, f"{path} holds no presets", "Write them below the key presets.")
        return TypeAdapter(dict[Name, Preset]).validate_python(written["presets"], extra="forbid")
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        hint = "Give a YAML file in UTF-8."
        raise UserError(Reason.INVALID_SPEC, f"cannot read the presets {path}: {error}", hint) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(("presets", *(str(part) for part in first["loc"])))
        hint = "A preset holds fields of a FineTuningJob's spec, in their places."
        raise UserError(Reason.INVALID_SPEC, f"{path}: {field}: {first['msg']}", hint) from error
