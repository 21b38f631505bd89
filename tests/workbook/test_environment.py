"""One list of dependencies in three files, and a set-up that finds a Python and recovers when it is interrupted."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [Requirement(text) for text in [*PROJECT["dependencies"], *(PROJECT["optional-dependencies"]["test"])]]
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()
PINS = {
    canonicalize_name(line.partition("==")[0]): line.partition("==")[2]
    for line in CONSTRAINTS
    if line and not line.startswith("#")
}


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_each_dependency_is_pinned_to_a_version_that_pyproject_allows(requirement: Requirement) -> None:
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_constraints_are_versions_and_nothing_else() -> None:
    lines = [line for line in CONSTRAINTS if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line) for line in lines)
    assert len(PINS) == len(lines)
    # torch pins its CUDA libraries itself; other builds of torch have others.
    assert not [name for name in PINS if re.match(r"nvidia-|cuda-|triton$", name)]


def test_environment_yml_installs_this_package_on_a_python_that_it_allows() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, extra = environment["dependencies"]
    assert SpecifierSet(PROJECT["requires-python"]).contains(Version(python.removeprefix("python=")))
    assert pip == "pip"
    assert extra == {"pip": ["--constraint constraints.txt", "-e .[test]"]}


def test_no_committed_file_names_a_package_registry() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(
        rb"https?://[^\s\"')]*(/simple\b|/whl\b|pythonhosted|artifactory|/pypi\b)|index[-]url|find[-]links"
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert [path.name for path in files if pattern.search(path.read_bytes())] == []


# A stand-in for Python that notes what it was asked for. `-m venv` makes .venv with itself as the interpreter.
STUB = """#!{bash}
case "$*" in
-c*) exit 0 ;;
-I*) exit "${{READY:-1}}" ;;
"-m pip --version") exit 0 ;;
"-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
esac
echo "$*" >>"{log}"
case "$*" in
"-m pip install"*) exit "${{INSTALL:-0}}" ;;
*browser*) exit "${{BROWSER:-0}}" ;;
esac
"""
INSTALL = "-m pip install --disable-pip-version-check -c constraints.txt -e .[test]"
VENV = "-m venv --clear .venv"
LTH = "-m lthlib.workbook.cli"


class Machine:
    """A folder with run_all.sh and a PATH on which the only Pythons are the given ones."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.bin = folder / "bin"
        self.project = folder / "project"
        for path in (self.bin, self.project):
            path.mkdir()
        for name in ("bash", "cat", "cksum", "cp", "dirname", "mkdir", "mktemp", "rm", "sed", "touch"):
            (self.bin / name).symlink_to(shutil.which(name) or name)
        for name in ("run_all.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.project)

    def python(self, name: str, works: bool = True) -> None:
        path = self.bin / name
        path.write_text(STUB.format(bash=self.bin / "bash", log=self.log) if works else "#!/bin/sh\nexit 127\n")
        path.chmod(0o755)

    def run(self, *arguments: str, **environment: str) -> tuple[int, list[str], str]:
        """The exit code, what the stand-in was asked for, and the error text."""
        self.log.write_text("")
        done = subprocess.run(
            [str(self.bin / "bash"), str(self.project / "run_all.sh"), *arguments],
            env={"PATH": str(self.bin), "HOME": os.environ.get("HOME", "/"), **environment},
            cwd=self.bin,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, self.log.read_text().splitlines(), done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.python("python3.13", works=False)  # a pyenv shim of a version that is not active
    machine.python("python3.12")
    return machine


def test_first_call_sets_up_and_later_calls_do_not(machine: Machine) -> None:
    code, calls, error = machine.run()
    assert (code, calls) == (0, [VENV, INSTALL, f"{LTH} run --profile quick"])
    assert "Making .venv with" in error
    assert "python3.12" in error
    assert machine.run()[1] == [f"{LTH} run --profile quick"]


def test_arguments_go_on_to_lth(machine: Machine) -> None:
    machine.run()
    assert machine.run("--profile", "mnist", "--set", "a=b c")[1] == [f"{LTH} run --profile mnist --set a=b c"]
    assert machine.run("notebooks")[1] == [f"{LTH} notebooks"]
    assert machine.run("run", "01")[1] == [f"{LTH} run 01"]
    (lab,) = machine.run("lab", "--no-browser")[1]
    assert lab.startswith("-m jupyterlab --ServerApp.root_dir=")
    assert lab.endswith("notebooks --ServerApp.ip=127.0.0.1 --no-browser")


def test_servers_listen_on_this_machine_alone_and_ask_for_their_token(machine: Machine) -> None:
    machine.run()
    (app,) = machine.run("app")[1]
    assert "--Voila.ip=127.0.0.1 --Voila.auto_token=True" in app
    # JupyterLab makes a token by itself unless it is told not to.
    assert "token" not in machine.run("lab")[1][0]


def test_test_runs_every_check(machine: Machine) -> None:
    machine.run()
    notebooks = machine.project / "notebooks"
    notebooks.mkdir()
    (notebooks / "00.ipynb").touch()
    calls = machine.run("test", "-x")[1]
    assert [call.split()[1] for call in calls] == ["ruff", "ruff", "mypy", "nbstripout", "pytest"]
    assert calls[-1] == "-m pytest -x"
    calls = machine.run("check", "-x")[1]
    assert [call.split()[1] for call in calls] == ["ruff", "ruff", "mypy", "nbstripout", "pytest"]
    assert calls[-1] == "-m pytest -m unit -x"


def test_the_browser_comes_last_where_there_is_one_and_is_tried_twice(machine: Machine) -> None:
    machine.run()
    code, calls, error = machine.run("test")
    assert (code, calls[-1]) == (0, "-m pytest -m unit or notebook")
    assert "the tests in a browser were left out" in error
    (machine.bin / "chromium").symlink_to("/bin/sh")
    alone = "-m pytest -m browser -n 0 -rs"
    assert machine.run("test")[1][-2:] == ["-m pytest -m unit or notebook", alone]
    code, calls, _ = machine.run("test", BROWSER="1")
    assert (code, calls[-2:]) == (1, [alone, f"{alone} --last-failed"])
    assert machine.run("python", "a.py")[1] == ["a.py"]


def test_changed_pins_are_installed_into_the_same_venv(machine: Machine) -> None:
    machine.run()
    (machine.project / "constraints.txt").write_text("numpy==9.9\n")
    assert machine.run()[1] == [INSTALL, f"{LTH} run --profile quick"]


def test_an_interrupted_set_up_starts_anew(machine: Machine) -> None:
    code, calls, _ = machine.run(INSTALL="1")
    assert (code, calls) == (1, [VENV, INSTALL])
    assert machine.run()[1] == [VENV, INSTALL, f"{LTH} run --profile quick"]


def test_an_active_python_that_has_everything_is_used(machine: Machine) -> None:
    machine.python("python")
    assert machine.run("notebooks", READY="0")[1] == [f"{LTH} notebooks"]
    assert not (machine.project / ".venv").exists()


def test_without_a_fitting_python_it_says_so(machine: Machine) -> None:
    machine.python("python3.12", works=False)
    code, calls, error = machine.run()
    assert (code, calls) == (2, [])
    assert "no Python 3.11 or later" in error
    assert "Traceback" not in error


def test_a_python_can_be_named(machine: Machine) -> None:
    machine.python("mine")
    machine.python("python3.12", works=False)
    assert machine.run(PYTHON=str(machine.bin / "mine"))[0] == 0
