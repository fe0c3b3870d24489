"""`finetune run` with the stand-in program in place of the real ones: python -m tests.support.local_run STATE FILE."""

import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from finetuning_cli.display import LiveDisplay
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.lock import state_lock
from finetuning_cli.local.presets import load_presets
from finetuning_cli.local.run import LocalRun, Outcome
from finetuning_cli.manifest import load_manifest
from finetuning_operator.reconcile.plan import ImageRole

FAKES = dict.fromkeys(ImageRole, "tests.support.fake_program")


def run_with_fakes(
    state: Path,
    file: Path,
    *,
    wait: bool = True,
    programs: Mapping[ImageRole, str] = FAKES,
    presets: Path | None = None,
) -> Outcome:
    """Run a manifest with the stand-in program; works in the main thread of a process only."""
    manifest = load_manifest(file)
    offered = {} if presets is None else load_presets(presets)
    layout = Layout.at(state)
    errors = Console(stderr=True, width=200)

    def on_wait(holder: object) -> None:
        errors.print(f"waits for {holder}", markup=False)

    with state_lock(layout, job=manifest.names, wait=wait, on_wait=on_wait) as lock, LiveDisplay(errors) as display:
        return LocalRun(layout, manifest, lock=lock, display=display, programs=programs, presets=offered).run()


if __name__ == "__main__":
    outcome = run_with_fakes(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.exit(0 if outcome.stopped_by is None else 128 + signal.Signals(outcome.stopped_by))
