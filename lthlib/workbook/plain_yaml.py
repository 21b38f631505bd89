"""YAML without surprises: plain values only, each read the way it looks.

PyYAML follows YAML 1.1, where `1e-3` is text, `no` is false, `010` is eight and `1:30` is ninety. Here numbers are
decimal, only `true` and `false` are booleans, only `null`, `~` and nothing are null, and all else is text. Repeated
keys, aliases and tags for other types are refused.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from lthlib.errors import InputError


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader with the core types of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own attribute, emptied)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not supported", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise yaml.MarkedYAMLError(problem=f"{repeated!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)$", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$",
        list("-+.0123456789"),
    ),
):
    _PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def read_yaml(text: str) -> Any:
    """The value of one YAML document; InputError, in one line, where it has none."""
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"not valid YAML{line}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise InputError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except (ValueError, RecursionError) as error:
        # Numbers of thousands of digits, explicit tags on the wrong text, brackets nested a thousand deep.
        raise InputError(f"not valid YAML: {error}") from error


def read_yaml_file(path: Path, kind: str) -> Any:
    """`read_yaml` of a file; InputError, which calls it a `kind`, where it cannot be read or is no YAML."""
    try:
        return read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the {kind} {str(path)!r}: {error.strerror} (valid: a YAML file)") from error
    except ValueError as error:
        raise InputError(f"{kind} {path.name}: {error}") from error
