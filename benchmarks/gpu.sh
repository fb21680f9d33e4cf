#!/usr/bin/env bash
# All that needs a GPU, in under 10 minutes: the tests marked `gpu`, then stall and overhead.
#   PYTHON=.venv/bin/python bash benchmarks/gpu.sh
# It installs nothing: PYTHON has torch for CUDA and the project with [dev].
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHONPATH="$PWD" CUBLAS_WORKSPACE_CONFIG=:4096:8

"$python" - <<'EOF'
import sys
import torch
if not torch.cuda.is_available():
    sys.exit("no GPU that CUDA can use")
print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda)
EOF
timeout 300 "$python" -m pytest -m gpu -rs tests/contract/test_gpu.py
timeout 120 "$python" benchmarks/gpu.py
timeout 120 "$python" benchmarks/gpu.py --bf16
