# Sourced: `make_venv FILE` makes or reuses .venv and installs the requirements in FILE under constraints.txt, if they
# are not installed yet. Sets $root and $python.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# What an installation of FILE is known by.
stamp_of() { (cd "$root" && echo "$1" && cat requirements.txt requirements/*.txt constraints.txt) | sha256sum; }

make_venv() {
  local stamp=$root/.venv/installed
  if [ -x "$python" ] && grep -qsxF "$(stamp_of "$1")" "$stamp"; then return; fi
  if ! { new_enough "$python" && "$python" -m pip --version >/dev/null 2>&1; }; then  # none, half made, or too old
    if ! new_enough "${PYTHON:-python3}"; then
      echo "error: ${PYTHON:-python3}: Python 3.11 or newer is needed: name one with PYTHON=/path/to/python" >&2
      exit 2
    fi
    "${PYTHON:-python3}" -m venv --clear "$root/.venv"
  fi
  echo "installing $1 into .venv (torch with CUDA: some 5 GB, a minute or more)"
  "$python" -m pip install -q --disable-pip-version-check -r "$root/$1" -c "$root/constraints.txt"
  stamp_of "$1" >"$stamp"
  local held  # the requirements that FILE holds are installed with it
  for held in requirements.txt $(sed -n 's#^-r \([^.].*\)#requirements/\1#p' "$root/$1"); do stamp_of "$held" >>"$stamp"; done
}
