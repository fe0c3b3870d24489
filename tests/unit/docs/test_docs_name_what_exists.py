"""What README and docs name is there: pages and their sections, make targets, files, commands, modules and values."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml

from finetuning_api.validation import load_manifests, validate_manifest
from finetuning_cli.main import app

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "charts/finetuning-operator/README.md")),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
        *(ROOT / "hack").rglob("*.md"),
    ]
)
DECISIONS = ROOT / "docs" / "decisions"  # They also name what was not chosen, and what is no longer there.
CURRENT = [page for page in PAGES if DECISIONS not in page.parents]
GENERATED = ROOT / "docs" / "manifest-reference.md"

BLOCK = re.MULTILINE | re.DOTALL
FENCED = re.compile(r"^```.*?^```$", BLOCK)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
MAKE = re.compile(r"(?:^|[;&|] +|\$ )make +([a-z][a-z0-9-]*)", re.MULTILINE)
FILE = re.compile(r"(?<![\w./-])((?:hack|examples|charts|docs|tests|crds|bench)/[\w./-]+\w)")
MODULE = re.compile(r"python3? -m ([\w.]+)")
FINETUNE = re.compile(r"(?:^|[;&|] +|\$ |bin/)finetune ([a-z][a-z0-9-]*)", re.MULTILINE)
VALUE = re.compile(r"--set(?:-string|-json)?[ =]'?([\w.\\/]+?)(?:\[\d+\])?[=.{]")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_of(page: Path) -> Iterator[str]:
    """Yield blocks and words of code."""
    text = text_of(page)
    yield from FENCED.findall(text)
    yield from INLINE.findall(FENCED.sub("", text))


def found(pattern: re.Pattern[str], page: Path) -> set[str]:
    return {match for code in code_of(page) for match in pattern.findall(code)}


def slugs(page: Path) -> set[str]:
    """Return what a heading is called in a link, by the rule of GitHub."""
    headings = HEADING.findall(FENCED.sub("", text_of(page)))
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_leads_to_a_file_and_its_section(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCED.sub("", text_of(page))):
        address, _, section = link.partition("#")
        if re.match(r"[a-z]+:", address):
            continue
        target = (page.parent / address).resolve() if address else page
        if not target.exists() or (section and section not in slugs(target)):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    assert found(MAKE, page) - targets == set()


@pytest.mark.parametrize("page", CURRENT, ids=page_id)
def test_every_file_exists(page: Path) -> None:
    named = {name for name in found(FILE, page) if "..." not in name}
    folders = (ROOT, page.parent)

    assert [name for name in sorted(named) if not any((folder / name).exists() for folder in folders)] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_module_can_be_run(page: Path) -> None:
    own = {name for name in found(MODULE, page) if name.startswith(("finetuning", "hack", "bench"))}

    assert [name for name in sorted(own) if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("page", CURRENT, ids=page_id)
def test_every_command_is_one_of_finetune(page: Path) -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}

    assert found(FINETUNE, page) - known == set()


@pytest.mark.parametrize("page", [page for page in PAGES if page != GENERATED], ids=page_id)
def test_every_value_is_one_of_the_chart(page: Path) -> None:
    values = yaml.safe_load((ROOT / "charts" / "finetuning-operator" / "values.yaml").read_text(encoding="utf-8"))
    unknown = []
    for name in found(VALUE, page):
        place = values
        for part in name.split("."):
            if not isinstance(place, dict) or part not in place:
                unknown.append(name)
                break
            place = place[part] or {part: None}

    assert unknown == []


def test_every_example_of_values_is_one_that_the_chart_takes() -> None:
    schema = json.loads((ROOT / "charts" / "finetuning-operator" / "values.schema.json").read_text(encoding="utf-8"))
    shown = [block for page in CURRENT for block in re.findall(r"^```yaml\n(# values.*?)^```$", text_of(page), BLOCK)]

    for block in shown:
        jsonschema.validate(yaml.safe_load(block), schema)
    assert len(shown) >= 3


@pytest.mark.parametrize("page", CURRENT, ids=page_id)
def test_every_whole_object_is_valid(page: Path) -> None:
    blocks = re.findall(r"^```yaml\n(apiVersion: finetuning.dev/.*?)^```$", text_of(page), BLOCK)

    found = [error for block in blocks for each in load_manifests(block) for error in validate_manifest(each.content)]
    assert found == []


def test_every_page_is_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = (link.partition("#")[0] for link in LINK.findall(FENCED.sub("", text_of(page))))
        waiting += [(page.parent / link).resolve() for link in links if link and ":" not in link]

    lost = [page_id(page) for page in (ROOT / "docs").glob("*.md") if page not in seen]
    assert lost == []
