"""
Registers, spills, shared memory and instructions of every Triton kernel, without a GPU.

Every kernel is compiled ahead of time with the launch parameters of `tuned/default.json` for the
architectures below. `python -m bench.static_cost` rewrites bench/results/static_cost.csv, or those rows
that `--kernel`, `--variant` and `--target` choose; with `--check` it
compares instead, and fails where spills, registers, shared memory or instructions grew by more than 5%: any
spill fails where there was none. Other versions of Triton have a file of their own, such as
static_cost-3.6.csv, which need not hold every family.
All kernels take three quarters of an hour of one core, so both compile only those whose source changed: each
row has a digest of what Triton makes of the kernel before its first pass, and of the options. `--anew`
compiles all.
Instructions are counted in the machine code, once each however often they run.
"""

import argparse
import csv
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel module is imported
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from triton import knobs
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

from .progress import Bar
from .static_electrostatics import Variant
from .static_small import small_variants
from .static_variants import variants

RESULTS = Path(__file__).parent / "results" / "static_cost.csv"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
GROWTH = 1.05
# What an instruction's mnemonic starts with, by column, on NVIDIA and on AMD
NVIDIA = {"fma32": "FFMA", "fma64": "DFMA", "special": "MUFU", "shared_loads": "LDS", "global_loads": "LDG"}
AMD = {
    "fma32": r"v_(pk_)?(fma|fmac)_f32",
    "fma64": r"v_(fma|fmac)_f64",
    "special": r"v_(sin|cos|exp|log|rcp|rsq|sqrt)_",
    "shared_loads": "ds_(read|load)",
    "global_loads": "(global|buffer|flat)_load",
}


def results_of(version: str) -> Path:
    """The committed file of a version of Triton: its own, or that of the newest."""
    own = RESULTS.with_name(f"static_cost-{'.'.join(version.split('.')[:2])}.csv")
    return own if own.exists() else RESULTS


@dataclass
class Cost:
    """
    A row of the results.

    Attributes:
        kernel, variant, dtype, target: What was compiled.
        parameters: Launch parameters.
        registers: Per thread.
        spill_bytes: Of memory per thread: the stack on NVIDIA, scratch on AMD.
        shared_bytes: Per program.
        instructions: All of them.
        fma32, fma64, special, shared_loads, global_loads: Of these kinds.
        seconds: Of processor time to compile, this process and the assembler's; not compared.
        triton: Version of the compiler.
        source: Digest of what the compiler was given, see `digest`.
    """

    kernel: str
    variant: str
    dtype: str
    target: str
    parameters: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: int
    fma32: int
    fma64: int
    special: int
    shared_loads: int
    global_loads: int
    seconds: float
    triton: str
    source: str

    @property
    def key(self) -> tuple[str, ...]:
        """What identifies a row."""
        return self.kernel, self.variant, self.dtype, self.target


def _tool(name: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def _nvidia(cubin: bytes) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = _tool("cuobjdump", "--dump-resource-usage", str(file))
        code = _tool("nvdisasm", "-c", str(file))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    # an address in a comment, perhaps a predicate, the mnemonic
    line = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)"
    names = re.findall(line, code, re.MULTILINE)
    names = [n for n in names if n != "NOP"]
    counts = {column: sum(n.startswith(start) for n in names) for column, start in NVIDIA.items()}
    return {
        "registers": int(found.group(1)),
        "spill_bytes": int(found.group(2)),
        "instructions": len(names),
        **counts,
    }


def _amd(text: str) -> dict[str, int]:
    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        return int(found.group(1)) if found else 0

    body = text.split(".amdgpu_metadata")[0]
    names = re.findall(r"^\s+([a-z]+_[a-z0-9_]+)\b", body, re.MULTILINE)
    names = [n for n in names if n.startswith(("v_", "s_", "ds_", "global_", "buffer_", "flat_", "scratch_"))]
    counts = {c: sum(re.match(pattern, n) is not None for n in names) for c, pattern in AMD.items()}
    return {
        "registers": field("vgpr_count"),
        "spill_bytes": field("private_segment_fixed_size"),
        "instructions": len(names),
        **counts,
    }


def _request(variant: Variant, target: str) -> tuple[ASTSource, dict[str, int]]:
    """What the launcher would ask the compiler for: the kernel's arguments, and the options."""
    options = variant.options | ({"maxnreg": 255} if TARGETS[target].backend == "cuda" else variant.amd)
    signature = {**variant.signature, **dict.fromkeys(variant.constants, "constexpr")}
    # tensors start at multiples of 16 bytes, sizes are anything
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(variant.signature.items())
        if kind[0] == "*" and name not in variant.constants
    }
    source = ASTSource(fn=variant.function, signature=signature, constexprs=variant.constants, attrs=aligned)
    return source, options


def digest(variant: Variant, target: str) -> str:
    """
    Twelve digits that change where the compiler is given something else.

    They are of the kernel in Triton's first language, without lines and files, of the options and of the
    architecture: comments, names of constants and the place of a kernel in its file do not matter.
    """
    source, options = _request(variant, target)
    architecture = TARGETS[target]
    backend: Any = make_backend(architecture)
    parsed = backend.parse_options(dict(options))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(parsed)
    module = source.make_ir(architecture, parsed, functions, backend.get_module_map(), context)
    text = f"{module.str_nodebug()}{sorted(options.items())}{target}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def measure(variant: Variant, target: str) -> Cost:
    """Compile one kernel for one architecture, as the launcher would, and read the result."""
    source, options = _request(variant, target)
    began = os.times()
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    seconds = sum(os.times()[:4]) - sum(began[:4])
    found = _nvidia(compiled.asm["cubin"]) if "cubin" in compiled.asm else _amd(str(compiled.asm["amdgcn"]))
    blocks = {k.lower(): v for k, v in variant.constants.items() if k.startswith("BLOCK") or k == "FLUSH"}
    chosen = {name: value for name, value in options.items() if name != "maxnreg"}
    return Cost(
        kernel=variant.kernel,
        variant=variant.label,
        dtype=variant.dtype,
        target=target,
        parameters=" ".join(f"{k}={v}" for k, v in {**blocks, **chosen}.items()),
        shared_bytes=compiled.metadata.shared,
        seconds=round(seconds, 1),
        triton=triton.__version__,
        source=digest(variant, target),
        **found,
    )


@cache
def _variants() -> tuple[Variant, ...]:
    return (*variants(), *small_variants())


def _measure(work: tuple[int, str, str | None, bool]) -> Cost | None:
    number, target, recorded, timed = work
    variant = _variants()[number]
    if recorded is not None and recorded == digest(variant, target):
        return None
    # or the seconds are those of a cache
    knobs.compilation.always_compile = timed
    cost = measure(variant, target)
    found = f"{cost.registers} registers, {cost.spill_bytes} B spilled, {cost.instructions} instructions"
    print(" ".join(cost.key), f"{found}, {cost.seconds} s", flush=True)
    return cost


def measure_all(
    targets: list[str],
    kernels: list[str],
    labels: list[str],
    recorded: dict[tuple[str, ...], str],
    timed: bool,
    processes: int | None = None,
) -> tuple[list[Cost], int]:
    """
    Rows of all variants asked for whose source is not the recorded one, and how many were left out.

    Args:
        targets: Architectures.
        kernels: Kernel families.
        labels: Of the variants, substrings; all if there are none.
        recorded: Digests by a row's key.
        timed: Compile even what is in Triton's cache.
        processes: How many compile; one for each core if None.
    """
    work = [
        (number, target, recorded.get((v.kernel, v.label, v.dtype, target)), timed)
        for number, v in enumerate(_variants())
        if v.kernel in kernels and (not labels or any(label in v.label for label in labels))
        for target in targets
    ]
    with ProcessPoolExecutor(processes or os.cpu_count(), get_context("spawn")) as pool:
        rows = [row for row in Bar(pool.map(_measure, work), "kernel", len(work)) if row is not None]
    return rows, len(work) - len(rows)


def read(path: Path) -> list[Cost]:
    """Rows of a results file."""
    kinds = {field.name: field.type for field in fields(Cost)}
    with path.open(newline="") as file:
        return [
            Cost(**{name: kinds[name](text) for name, text in row.items()})  # type: ignore[operator]
            for row in csv.DictReader(file)
        ]


def write(path: Path, rows: list[Cost]) -> None:
    """Write a results file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Cost)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def compare(now: list[Cost], before: list[Cost]) -> list[str]:
    """What got worse, in words; empty if nothing did."""
    old = {row.key: row for row in before}
    faults = []
    for row in now:
        name = " ".join(row.key)
        if row.key not in old:
            faults.append(f"{name}: not in the committed file, run python -m bench.static_cost")
            continue
        for column in ("spill_bytes", "registers", "instructions", "shared_bytes"):
            a, b = getattr(old[row.key], column), getattr(row, column)
            if b > a * GROWTH:
                faults.append(f"{name}: {column} {a} -> {b}")
    return faults


def main() -> None:
    """Write the file, or check against it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = sorted({v.kernel for v in _variants()})
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    parser.add_argument("--target", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--kernel", nargs="+", choices=names, default=names)
    parser.add_argument("--variant", nargs="+", default=[], help="parts of their names")
    parser.add_argument("--anew", action="store_true", help="compile also what did not change")
    parser.add_argument("--file", type=Path, default=results_of(triton.__version__))
    parser.add_argument("--processes", type=int, help="that compile (one for each core)")
    options = parser.parse_args()
    before = read(options.file) if options.file.exists() else []
    versions = sorted({row.triton for row in before} - {triton.__version__})
    if options.check and versions:
        print(f"the file is of triton {versions[0]}, this is {triton.__version__}: not comparable")
        sys.exit(77)
    kernels = options.kernel
    if options.check and options.file.name != RESULTS.name:
        kernels = [name for name in kernels if any(row.kernel == name for row in before)]
        left = sorted({*options.kernel} - {*kernels})
        print(f"not in {options.file.name}: {', '.join(left) or 'nothing'}")
    recorded = {
        row.key: row.source for row in before if row.triton == triton.__version__ and not options.anew
    }
    rows, same = measure_all(
        options.target, kernels, options.variant, recorded, not options.check, options.processes
    )
    print(f"{len(rows)} compiled, {same} with the recorded source", flush=True)
    if not options.check:
        # rows that were not measured now stay
        kept = {row.key: row for row in before} | {row.key: row for row in rows}
        known = {(v.kernel, v.label, v.dtype, target) for v in _variants() for target in TARGETS}
        write(options.file, [row for key, row in kept.items() if key in known])
        return
    faults = compare(rows, before)
    print("\n".join(faults) or "no kernel got worse", flush=True)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
