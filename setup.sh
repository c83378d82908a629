# Sourced by the other scripts, from the root of the repository: makes .venv with the tested
# packages once, and puts it first on the PATH.

python=""
for name in python3 python3.14 python3.13 python3.12 python3.11; do
    if command -v "$name" >/dev/null &&
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$name
        break
    fi
done
if [ -z "$python" ]; then
    echo "error: no Python 3.11 or newer was found:" \
        "install one from python.org or your package manager" >&2
    exit 2
fi
# a system's upgrade can leave an environment without its packages, or whose Python fails
has_all='import importlib.util as u, sys
sys.exit(not all(map(u.find_spec, "torch numpy tiktoken tqdm matplotlib pytest".split())))'
if ! .venv/bin/python -c "$has_all" 2>/dev/null || ! cmp -s requirements.txt .venv/installed; then
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        echo "error: $python cannot make virtual environments: install its venv package" \
            "(Debian and Ubuntu: apt install python3-venv)" >&2
        exit 2
    fi
    echo "setting up .venv with $("$python" --version) (once: PyTorch is large, and takes minutes)"
    "$python" -m venv --clear .venv
    pip=(.venv/bin/python -m pip install --disable-pip-version-check)
    if [ ! -t 1 ]; then pip+=(--quiet); fi  # where nobody looks at its progress bars
    if ! "${pip[@]}" -r requirements.txt; then
        echo "error: the packages of requirements.txt could not be installed:" \
            "the lines above say why; is there a network?" >&2
        exit 2
    fi
    cp requirements.txt .venv/installed
fi
export PATH="$PWD/.venv/bin:$PATH"
