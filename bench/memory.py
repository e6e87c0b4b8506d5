"""Peak memory of a call, in its own process: `python -m bench.memory CASE SIZE PROVIDER MODE DTYPE N`."""

import json
import sys
from typing import cast

import torch

from .problems import make_problem
from .providers import providers
from .registry import CASES, Mode, Size
from .timing import resident_memory
from .verify import make_call


def main() -> None:
    """Warm the libraries up on a small problem, then measure the asked one."""
    name, size, provider, mode, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    case, device = CASES[name], torch.device("cpu")
    calls = []
    for s in (Size(20, min(2, Size.parse(size).systems)), Size.parse(size)):
        problem = make_problem(case, s, getattr(torch, dtype), device)
        calls.append(make_call(problem, providers()[provider].build(problem), cast(Mode, mode)))
    for _ in range(2):
        calls[0]()
    print(json.dumps({"peak_mib": resident_memory(calls[1])}))


if __name__ == "__main__":
    main()
