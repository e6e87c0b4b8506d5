"""
Errors of float32 matrix products by how they are computed, emulated: `python -m profiling.precision`.

A tensor core multiplies numbers of 11 significant bits (TF32) exactly, and adds the products in float32,
cutting off what does not fit. "tf32" rounds both factors; "tf32x3" writes each as the sum of two such numbers
and leaves out the product of the small ones, as Triton's ``input_precision="tf32x3"`` does; "ieee" multiplies
and adds in float32. Errors are relative to the largest result: the largest, and their root mean square.
"""

import numpy as np

DEPTHS = (64, 128, 256, 512)
PRECISIONS = ("ieee", "tf32x3", "tf32")
# of products that a tensor core adds at once
_TOGETHER = 8


def to_tf32(x: np.ndarray) -> np.ndarray:
    """Float32 rounded to 11 significant bits, ties away from zero."""
    bits = x.astype(np.float32).view(np.int32)
    return ((bits + 0x1000) & ~np.int32(0x1FFF)).view(np.float32)


def cut(x: np.ndarray) -> np.ndarray:
    """Float64 cut off to float32, towards zero."""
    near = x.astype(np.float32)
    return np.where(np.abs(near.astype(np.float64)) > np.abs(x), np.nextafter(near, np.float32(0)), near)


def _tensor_core(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> np.ndarray:
    """``total + a b`` with exact products, a few at a time, sums cut off to float32."""
    for start in range(0, a.shape[1], _TOGETHER):
        k = slice(start, start + _TOGETHER)
        total = cut(total.astype(np.float64) + a[:, k].astype(np.float64) @ b[k].astype(np.float64))
    return total


def product(a: np.ndarray, b: np.ndarray, precision: str) -> np.ndarray:
    """
    The product of two float32 matrices, emulated.

    Args:
        a: ``[m, k]``.
        b: ``[k, n]``.
        precision: One of `PRECISIONS`.
    """
    total = np.zeros((len(a), b.shape[1]), np.float32)
    if precision == "ieee":
        for k in range(a.shape[1]):
            # a fused product and sum, rounded once
            total = (total.astype(np.float64) + np.outer(a[:, k].astype(np.float64), b[k])).astype(np.float32)
        return total
    high_a, high_b = to_tf32(a), to_tf32(b)
    if precision == "tf32x3":
        total = _tensor_core(to_tf32(a - high_a), high_b, total)
        total = _tensor_core(high_a, to_tf32(b - high_b), total)
    return _tensor_core(high_a, high_b, total)


def errors(depth: int, precision: str, size: int = 64) -> tuple[float, float]:
    """Largest and typical error of a product of normal random matrices, relative to the largest result."""
    generator = np.random.default_rng(depth)
    a, b = (generator.standard_normal(s).astype(np.float32) for s in ((size, depth), (depth, size)))
    want = a.astype(np.float64) @ b.astype(np.float64)
    error = np.abs(product(a, b, precision) - want) / np.abs(want).max()
    return float(error.max()), float(np.sqrt((error**2).mean()))


def main() -> None:
    """Print the table."""
    print("| K | " + " | ".join(PRECISIONS) + " |\n|" + "---|" * (1 + len(PRECISIONS)))
    for depth in DEPTHS:
        cells = [
            f"{largest:.1e} ({typical:.1e})" for largest, typical in (errors(depth, p) for p in PRECISIONS)
        ]
        print(f"| {depth} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
