#!/usr/bin/env bash
# Build the wheel from a clean copy and use it in an environment of its own, outside the checkout.
# Usage: tests/wheel.sh PYTHON
set -euo pipefail
python=$(realpath --no-symlinks "$1")
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

git -C "$root" archive HEAD | tar -x -C "$work" --one-top-level=source
"$python" -m build --wheel --outdir "$work/dist" "$work/source" >/dev/null
foreign=$("$python" -m zipfile --list "$work"/dist/*.whl | awk 'NR > 1 {print $1}' | grep -vE '^tercet(-[^/]*\.dist-info)?/' || true)
test -z "$foreign" || { echo "the wheel installs outside tercet/: $foreign"; exit 1; }

"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --constraint "$root/constraints.txt" torch
wheel=$(ls "$work"/dist/*.whl)
"$work/venv/bin/pip" install --quiet --constraint "$root/constraints.txt" "$wheel[demo]"
cd "$work"
printf '{"query": "sort a list", "positive": "xs.sort()"}\n{"query": "open a file", "positive": "open(path)"}\n' > pairs.jsonl
venv/bin/tercet --version
venv/bin/tercet finetune tiny data.train=pairs.jsonl output=run train.steps=2
venv/bin/python -c 'from sentence_transformers import SentenceTransformer; print(SentenceTransformer("run/model").encode(["sort"]).shape)'
venv/bin/tercet finetune tiny data.train=absent.jsonl output=other && exit 1 || test $? -eq 2
echo "wheel: ok"
