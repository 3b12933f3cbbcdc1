# Sourced: `make_venv FILE` makes or reuses .venv and installs the requirements in FILE under constraints.txt, if they
# are not installed yet. Sets $root and $python.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python

make_venv() {
  local wanted stamp=$root/.venv/installed
  wanted=$(cat "$root/requirements.txt" "$root/$1" "$root/constraints.txt" | sha256sum)
  if [ -x "$python" ] && grep -qsxF "$wanted" "$stamp"; then return; fi
  if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: ${PYTHON:-python3}: Python 3.11 or newer is needed: name one with PYTHON=/path/to/python" >&2
    exit 2
  fi
  echo "installing $1 into .venv (torch with CUDA: some 5 GB, a minute or more)"
  [ -x "$python" ] || "${PYTHON:-python3}" -m venv "$root/.venv"
  "$python" -m pip install -q --disable-pip-version-check -r "$root/$1" -c "$root/constraints.txt"
  echo "$wanted" >>"$stamp"
}
