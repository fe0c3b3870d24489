"""The file of a metric of the user's own, looked at without running it."""

import ast
from pathlib import Path

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import CustomMetricInput
from finetuning_workload.artifact import artifact_files
from finetuning_workload.errors import UserError

_SHOWN = 10


def require_metric_file(custom: CustomMetricInput) -> None:
    """Raise UserError(METRIC_UNAVAILABLE) where the file is not there, is no Python, or has no such function.

    Preflight asks too: nothing is trained for a metric with a typing error in it.
    """
    path = Path(custom.path) / custom.file
    if not path.is_file():
        found = sorted(each.relative_to(custom.path).as_posix() for each in artifact_files(Path(custom.path)))
        hint = f"It holds {', '.join(found[:_SHOWN])}; name one of them as evaluation.custom[].file."
        raise unavailable(custom, f"{custom.provenance.source} holds no {custom.file}", hint)
    try:
        module = ast.parse(path.read_bytes(), filename=custom.file)
    except SyntaxError as error:
        raise unavailable(
            custom, f"{custom.file}, line {error.lineno or 1}: {error.msg}", "Correct the file."
        ) from error
    names = _names(module)
    if custom.function not in names and "*" not in names:
        told = f"it defines {', '.join(sorted(names)[:_SHOWN])}" if names else "it defines nothing"
        hint = f"Name it as evaluation.custom[].function, or define {custom.function}(predictions, references, rows)."
        raise unavailable(custom, f"{custom.file} has no function {custom.function}; {told}", hint)


def unavailable(custom: CustomMetricInput, why: str, hint: str) -> UserError:
    """Return the error for a metric of the user's own that cannot be computed."""
    return UserError(Reason.METRIC_UNAVAILABLE, f"{custom.name} cannot be computed: {why}", hint)


def _names(module: ast.Module) -> set[str]:
    """Return what a file binds at its top level."""
    names = {part.name for part in module.body if isinstance(part, ast.FunctionDef | ast.ClassDef)}
    for part in module.body:
        if isinstance(part, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in part.names}
        elif isinstance(part, ast.Assign):
            names |= {target.id for target in part.targets if isinstance(target, ast.Name)}
        elif isinstance(part, ast.If | ast.Try):
            # What is bound under a condition is known only when it runs.
            names.add("*")
    return names
