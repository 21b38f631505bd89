"""The one error that is the user's to mend."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input: its message is one sentence that names the value and what would be valid."""


def unknown(kind: str, value: object, valid: Iterable[str]) -> InputError:
    """The error for a name that is not one of `valid`, with the nearest valid one suggested."""
    names = list(valid)
    near = get_close_matches(str(value), names, n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {value!r}{hint} (valid: {', '.join(names)})")
