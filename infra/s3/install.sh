#!/usr/bin/env bash
# Installs the S3 server that tests and `python infra/s3/serve.py` use, into .venv-s3. Does nothing if it is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=.venv-s3
stamp=$venv/.installed
want=$(sha256sum infra/s3/requirements.txt | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then exit 0; fi
"${PYTHON:-python3}" -m venv --clear "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r infra/s3/requirements.txt
echo "$want" > "$stamp"
