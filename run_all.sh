#!/usr/bin/env bash
# Sets up what is missing, then runs the workbook. Needs bash and Python 3.11 or later.
#
#   ./run_all.sh                        every notebook with the quick profile; the report is results/quick/index.html
#   ./run_all.sh --profile mnist ...    arguments that begin with -- go on to `lth run` (see ./run_all.sh run --help)
#   ./run_all.sh notebooks              other arguments go on to `lth`: run, notebooks, report
#   ./run_all.sh lab                    JupyterLab on notebooks/
#   ./run_all.sh app                    the explorers as a page in the browser, on this machine only (fetches Voila)
#   ./run_all.sh check                  lint, types, clean notebooks and unit tests: minutes
#   ./run_all.sh test                   check, every notebook in the smoke profile, and the browser where Chromium is
#   ./run_all.sh python FILE ...        the Python that all of these use
#
# Arguments after check go on to pytest beside its choice of the unit tests (check -k costs). Arguments after test
# replace its choice: lint, then pytest with these alone (test tests/finders; test -m browser -n 0). Tests in a browser
# and those of .ci/nightly run only where -m names them.
#
# The packages go into .venv, unless the active Python has them and lthlib from this folder. PYTHON=/path/to/python
# chooses the Python that .venv is made with. Relative paths in arguments are relative to this folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# A pyenv shim can exist and still fail, and Debian's Python can lack ensurepip: only a try tells.
usable() {
  "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Whether an environment other than .venv has every dependency (with those of the tests, if $2 is test).
ready() {
  "$1" -I - "$PWD" "${2:-}" >/dev/null 2>&1 <<'EOF'
import re, sys, tomllib
from importlib import metadata, util
from pathlib import Path

root = Path(sys.argv[1]).resolve()
here = Path(util.find_spec("lthlib").origin).resolve().parents[1] == root
if not here or Path(sys.prefix).resolve() == root / ".venv":
    sys.exit(1)
project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
wanted = project["dependencies"] + (project["optional-dependencies"]["test"] if sys.argv[2] == "test" else [])
for requirement in wanted:
    metadata.version(re.match(r"[\w.-]+", requirement)[0])
EOF
}

base_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3 python; do
    if usable "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or later with venv was found; install one, or name it: PYTHON=/path/to/python $0" >&2
  return 2
}

# Leaves a stamp in .venv when all is installed, and a mark while it is not: an interrupted set-up starts anew.
set_up() {
  local stamp base
  stamp=$(cat pyproject.toml constraints.txt | cksum)
  if [ "$(cat .venv/set-up 2>/dev/null)" = "$stamp" ] && usable .venv/bin/python; then
    return
  fi
  if [ -e .venv/setting-up ] || ! usable .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    base=$(base_python)
    echo "Making .venv with $base" >&2
    "$base" -m venv --clear .venv
  fi
  echo "Installing the packages into .venv; the first time this fetches some gigabytes" >&2
  touch .venv/setting-up
  rm -f .venv/set-up
  .venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]' >&2
  printf '%s\n' "$stamp" >.venv/set-up
  rm .venv/setting-up
}

lint() {
  "$python" -m ruff check .
  "$python" -m ruff format --check .
  "$python" -m mypy
  if compgen -G "notebooks/*.ipynb" >/dev/null; then
    "$python" -m nbstripout --verify --keep-id --drop-tagged-cells injected-parameters \
      --extra-keys "metadata.papermill cell.metadata.papermill metadata.widgets cell.metadata.execution" \
      notebooks/*.ipynb
  fi
}

# After the other tests and in one process: a browser beside others on every core waits. On a crowded machine it can
# lose a key press once; what fails twice is broken.
in_browser() {
  "$python" -m pytest -m browser -n 0 -rs || "$python" -m pytest -m browser -n 0 -rs --last-failed
}

case "${1:-}" in
-h | --help)
  sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
  exit
  ;;
esac

python=$(command -v python || command -v python3 || true)
extra=
case "${1:-}" in check | test) extra=test ;; esac
if [ -z "$python" ] || ! ready "$python" "$extra"; then
  set_up
  python=$PWD/.venv/bin/python
fi

case "${1:-}" in
"")
  exec "$python" -m lthlib.workbook.cli run --profile quick
  ;;
check)
  shift
  lint
  exec "$python" -m pytest -m unit "$@"
  ;;
test)
  shift
  lint
  if [ $# -gt 0 ]; then
    exec "$python" -m pytest "$@"
  fi
  # The notebooks are executed once for both calls of pytest.
  LTH_SMOKE=$(mktemp -d)
  export LTH_SMOKE
  trap 'rm -rf "$LTH_SMOKE"' EXIT
  "$python" -m pytest -m "unit or notebook"
  if command -v chromium chromium-browser google-chrome >/dev/null; then
    in_browser
  else
    echo "No Chromium on the PATH (Debian: apt-get install chromium): the tests in a browser were left out" >&2
  fi
  ;;
python)
  shift
  exec "$python" "$@"
  ;;
lab)
  shift
  exec "$python" -m jupyterlab --ServerApp.root_dir="$PWD/notebooks" --ServerApp.ip=127.0.0.1 "$@"
  ;;
app)
  shift
  if ! "$python" -c 'import voila' 2>/dev/null; then
    echo "Installing Voila, which serves the page" >&2
    "$python" -m pip install --disable-pip-version-check -c constraints.txt voila >&2
  fi
  exec "$python" -m voila lthlib/widgets/dashboard.ipynb --Voila.ip=127.0.0.1 --Voila.auto_token=True "$@"
  ;;
--*)
  exec "$python" -m lthlib.workbook.cli run "$@"
  ;;
*)
  exec "$python" -m lthlib.workbook.cli "$@"
  ;;
esac
