"""`lth doctor`: one line for each thing a run needs, and exit code 1 where one is not well."""

import gzip
import sys
from hashlib import md5
from pathlib import Path

import pytest
from torchvision import datasets

from lthlib.workbook import cli, doctor


def test_a_machine_that_is_ready(tmp_path: Path) -> None:
    findings = {finding.what + finding.state[:7]: finding for finding in doctor.examine(tmp_path / "out", tmp_path)}
    lines = [str(finding) for finding in findings.values()]
    assert [line.split()[1] for line in lines] == [
        "versions",
        "device",
        "rounding",
        "disk",
        "memory",
        "results",
        "data",
        "data",
    ]
    assert lines[-1] == "ok   data      digits: 1200 + 297 + 300 images"
    assert "torch" in lines[0]
    assert lines[5].endswith("out can be made")
    assert list(tmp_path.iterdir()) == []
    assert all("\n" not in line for line in lines)


def test_what_is_missing_or_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor.metadata, "requires", lambda _: ["numpy>=99", "no-such-package", "ray>=1; extra == 'ray'"]
    )
    finding = doctor._packages()
    assert not finding.well
    assert finding.state.endswith("is not >=99; no-such-package is missing")


def test_too_little_room_and_no_access_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "FREE_DISK", 2**80)
    monkeypatch.setattr(doctor, "FREE_MEMORY", 2**80)
    assert not doctor._disk(tmp_path / "not" / "there").well
    assert not doctor._memory().well
    (tmp_path / "file").touch()
    results, data = doctor._access(tmp_path / "file", tmp_path)
    assert (results.well, data.well) == (False, True)
    assert "choose a writable folder" in results.state


def test_a_data_file_unlike_its_archive_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    packed = {name: gzip.compress(name.encode()) for name in ("a.gz", "b.gz", "c.gz")}
    for name, content in packed.items():
        (raw / name).write_bytes(content)
        (raw / name).with_suffix("").write_bytes(name.encode())
    resources = [(name, md5(content).hexdigest()) for name, content in packed.items()]
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    assert list(doctor._unlike_their_archives(tmp_path, "mnist")) == []
    (raw / "a").write_bytes(b"A.gz")
    (raw / "b.gz").write_bytes(packed["b.gz"][:-1])
    assert list(doctor._unlike_their_archives(tmp_path, "mnist")) == ["a", "b.gz"]


@pytest.mark.parametrize("well", [True, False])
def test_the_command_s_exit_code(
    well: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda *_: iter([doctor.Finding("disk", well, "1 GiB")]))
    monkeypatch.setattr(sys, "argv", ["lth", "doctor"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == (0 if well else 1)
    assert capsys.readouterr().out == f"{'ok ' if well else 'BAD'}  disk      1 GiB\n"
