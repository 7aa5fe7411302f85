#!/bin/sh
# The image's one step of installing: dq-serve and what it needs, from package registries alone, into an environment.
#   install.sh SOURCE ENVIRONMENT
set -eu
source=$1 environment=$2
python3 -m venv "$environment"
"$environment/bin/python" -m pip install --disable-pip-version-check --no-cache-dir -q -c "$source/constraints.txt" \
	"$source[serve,pipelines,otel]"
# fails where the kernels were not compiled
"$environment/bin/python" -c 'from dq_kernels.cpu.library import known_isas; print("instruction sets here:", *known_isas())'
"$environment/bin/dq-serve" --version
