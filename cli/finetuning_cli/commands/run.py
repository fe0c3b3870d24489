"""`finetune run`: one manifest on this machine."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import typer
from rich.console import Console

from finetuning_api.base import ConditionType, Resource
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import FineTuningJob, Preset
from finetuning_api.relocation import Relocation
from finetuning_cli.display import LiveDisplay
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.lock import Holder, state_lock
from finetuning_cli.local.presets import load_presets
from finetuning_cli.local.run import LocalRun, Outcome
from finetuning_cli.local.store import to_yaml
from finetuning_cli.manifest import Manifest, load_manifest
from finetuning_cli.output import brought, headline, print_outcome
from finetuning_operator.reconcile.conditions import is_true

_SIGNAL_EXIT = 128
"""A process that a signal ends has 128 and the signal's number as its exit code, by the convention of shells."""


def run_file(file: Path, *, state: Path, wait: bool, output: str | None, presets: Path | None = None) -> int:
    """Run a manifest and return the exit code: 0, 1 when something failed, 130 or 143 after a signal."""
    layout = Layout.at(state)
    offered = {} if presets is None else load_presets(presets)
    outcome = run_manifest(load_manifest(file), layout=layout, wait=wait, presets=offered)
    if outcome.stopped_by is not None and not _finished(outcome):
        return stopped(outcome, again=f"finetune run {file}")
    _print(outcome, layout=layout, output=output)
    return 0 if all(_succeeded(outcome.objects[key]) for key in outcome.roots) else 1


def run_manifest(
    manifest: Manifest, *, layout: Layout, wait: bool = True, presets: Mapping[str, Preset] = MappingProxyType({})
) -> Outcome:
    """Do what a manifest asks for, with progress on standard error, once the state folder is free."""
    errors = Console(stderr=True)

    def on_wait(holder: Holder | None) -> None:
        errors.print(f"waits: {layout.root} is in use by {holder or 'another run'}", markup=False, soft_wrap=True)

    with state_lock(layout, job=manifest.names, wait=wait, on_wait=on_wait) as lock, LiveDisplay(errors) as display:
        return LocalRun(layout, manifest, lock=lock, display=display, presets=presets).run()


def stopped(outcome: Outcome, *, again: str) -> int:
    """Tell how to go on after a signal, and return the exit code."""
    Console(stderr=True).print(f"stopped; go on with: {again}", markup=False, soft_wrap=True)
    return 1 if outcome.stopped_by is None else _SIGNAL_EXIT + outcome.stopped_by


def _print(outcome: Outcome, *, layout: Layout, output: str | None) -> None:
    resources = [outcome.objects[key] for key in outcome.roots]
    if output is not None:
        errors = Console(stderr=True)
        for resource in resources:
            if not _succeeded(resource):
                told = f"{resource.kind} {resource.metadata.name}: {headline(resource)}"
                errors.print(told, markup=False, highlight=False, soft_wrap=True)
    if output == "yaml":
        typer.echo("---\n".join(to_yaml(resource) for resource in resources), nl=False)
    elif output == "json":
        wires = [resource.to_wire() for resource in resources]
        typer.echo(json.dumps(wires[0] if len(wires) == 1 else wires, indent=2))
    else:
        console = Console()
        for resource in resources:
            print_outcome(console, resource, layout=layout)
            if not _succeeded(resource):
                advice = f"after a correction: finetune delete {resource.metadata.name}, then finetune run again"
                console.print(f"  {advice}; what was relocated stays", markup=False, highlight=False, soft_wrap=True)
        console.print(f"  {brought(outcome.transferred_bytes)}", highlight=False)


def _finished(outcome: Outcome) -> bool:
    return all(_succeeded(outcome.objects[key]) for key in outcome.roots)


def _succeeded(resource: Resource) -> bool:
    match resource:
        case FineTuningJob() | EvaluationJob():
            return is_true(resource.status.conditions, ConditionType.COMPLETE) or resource.spec.suspend
        case Relocation():
            return is_true(resource.status.conditions, ConditionType.READY)
    return False
