"""Claims are read as stated, margins come from the profile, and mistakes in the file are named."""

from pathlib import Path

import pytest

from lthlib.errors import InputError
from lthlib.evidence import statements


@pytest.mark.parametrize("notebook", sorted(path.stem for path in statements.FOLDER.glob("*.yaml")))
def test_committed_statements_are_whole(notebook: str) -> None:
    claims = statements.stated(notebook, margin=0.5)
    assert claims
    for name, claim in claims.items():
        assert claim.id == name
        assert claim.source
        assert claim.statistic
    assert list(statements.statement_table(claims).data["id"]) == list(claims)


def test_margins_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "FOLDER", tmp_path)
    text = "- {id: A, claim: c, source: s, statistic: t, kind: non-inferior, margin: epsilon}\n"
    (tmp_path / "one.yaml").write_text(text)
    assert statements.stated("one", epsilon=0.25)["A"].margin == 0.25
    with pytest.raises(InputError, match="unknown margin of claim A 'epsilon'"):
        statements.stated("one")
    (tmp_path / "one.yaml").write_text(text + text)
    with pytest.raises(InputError, match="'A' is stated twice"):
        statements.stated("one", epsilon=0.25)
    (tmp_path / "one.yaml").write_text("- {id: A, clam: c}\n")
    with pytest.raises(InputError, match="did you mean 'claim'"):
        statements.stated("one")
    with pytest.raises(InputError, match="unknown notebook with stated claims 'two'"):
        statements.stated("two")
