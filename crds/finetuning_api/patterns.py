"""Every pattern of the API with what it means in words: validation explains a mismatch with the words."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression that RE2, Rust and Python read alike, and what it asks for."""

    regex: str
    words: str


LABEL = Pattern(
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    "lower-case letters, digits and '-', with a letter or digit at both ends",
)
SUBDOMAIN = Pattern(
    r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$",
    "lower-case letters, digits, '-' and '.', with a letter or digit at both ends",
)
QUANTITY = Pattern(
    r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$",
    "a Kubernetes quantity, for example 500m, 1, 16Gi or 1.5Ti",
)
DIGEST = Pattern(r"^sha256:[0-9a-f]{64}$", "sha256: and 64 lower-case hex digits")
REVISION = Pattern(
    r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$", "a commit, tag or version of letters, digits and . _ / : -, for example v1.0"
)
HTTP_ADDRESS = Pattern(
    r"^https?://[^ @]+$", "an address that starts with http:// or https://, without a user name or password in it"
)
HTTP_PATH = Pattern(r"^/[^ ]*$", "a path that starts with /")
FOLDER = Pattern(
    r"^(/\.?[A-Za-z0-9_][A-Za-z0-9._-]*)+$",
    "an absolute folder whose parts are letters, digits and . _ - without .. in it, for example /mnt/data",
)
MODULES = Pattern(
    r"^[^\s,]+(,[^\s,]+)*$", "all-linear, or names of modules separated by commas without spaces: q_proj,v_proj"
)
METRIC = Pattern(
    r"^[A-Za-z][A-Za-z0-9_-]*(\.[a-z0-9_]+)?$",
    "letters, digits, '-' and '_', starting with a letter; of a task its name, a dot and the metric",
)
OWN_NAME = Pattern(r"^[A-Za-z][A-Za-z0-9_-]*$", "letters, digits, '-' and '_', starting with a letter")
VARIABLE = Pattern(r"^[A-Za-z_][A-Za-z0-9_]*$", "letters, digits and '_', not starting with a digit")
DESTINATION = Pattern(
    r"^(oci://[^/ #@]+(/[^/ #@]+)+|hf://[A-Za-z0-9._-]+/[A-Za-z0-9._-]+)$",
    "oci://registry/repository:tag, or hf://owner/name for a model of a hub",
)
PYTHON_FILE = Pattern(
    r"^([A-Za-z0-9_][A-Za-z0-9._-]*/)*[A-Za-z0-9_][A-Za-z0-9._-]*\.py$",
    "the path of a .py file whose parts are letters, digits and . _ - without .. in it, for example metrics/tone.py",
)
TEMPLATE = Pattern(
    r"^([^{}]|\{\{|\}\}|\{[^{}]+\})*$",
    "text with {column} placeholders whose braces are balanced; a brace that is meant literally is doubled: {{ or }}",
)

PATTERNS: tuple[Pattern, ...] = (
    LABEL,
    SUBDOMAIN,
    QUANTITY,
    DIGEST,
    REVISION,
    HTTP_ADDRESS,
    HTTP_PATH,
    FOLDER,
    MODULES,
    METRIC,
    OWN_NAME,
    VARIABLE,
    DESTINATION,
    PYTHON_FILE,
    TEMPLATE,
)
"""Every pattern that a field may have."""
