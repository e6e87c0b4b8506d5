"""A module with the constructor and the call of ``cuequivariance_torch.SegmentedPolynomial``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .evaluate import Call, evaluate, fits
from .general import GeneralPolynomial
from .recognise import ContractionPlan, ConvolutionPlan, LinearPlan, recognise

METHODS = ("", "auto", "naive", "uniform_1d", "fused_tp", "indexed_linear")
_PATHS = {
    ConvolutionPlan: "channelwise_conv",
    ContractionPlan: "symmetric_contraction",
    LinearPlan: "indexed_linear",
}


class SegmentedPolynomial(torch.nn.Module):
    """
    Evaluate a segmented polynomial on our operators, with gathered inputs and summed outputs.

    It replaces ``cuequivariance_torch.SegmentedPolynomial``: same arguments and call, any device, without
    closed kernels, differentiable any number of times in every input.

    Args:
        polynomial: A ``cuequivariance.SegmentedPolynomial``.
        method: ``"naive"`` uses plain PyTorch for every polynomial. ``""``, ``"auto"`` and all other names of
            cuequivariance use our operator if the polynomial is one of the three, else plain PyTorch.
        math_dtype: dtype of the arithmetic, or its name; that of the first input if None. Our operators
            compute in float32 or float64; other dtypes are converted to float32.
        output_dtype_map: For each output, the number of the input whose dtype it takes, or -1 for the
            arithmetic's. The first input's if None. `torch.autocast` changes neither the arithmetic nor the
            outputs.
        name: Stored, not used.
        options: Stored, not used.

    Attributes:
        path: The path that a call runs: ``"channelwise_conv"``, ``"symmetric_contraction"``,
            ``"indexed_linear"`` or ``"general"``. Contractions and linear maps with different weights in
            every row run the general path.

    Raises:
        ImportError: without the package ``cuequivariance``.
        TypeError: for something that is not a segmented polynomial.
        ValueError: for an unknown method or dtype.

    Example:
        >>> import cuequivariance as cue, torch
        >>> from scfmlip.nn.cueq import SegmentedPolynomial
        >>> x, y = cue.Irreps("O3", "4x0e + 4x1o"), cue.Irreps("O3", "0e + 1o")
        >>> product = cue.descriptors.channelwise_tensor_product(x, y, cue.Irreps("O3", "0e + 1o")).polynomial
        >>> polynomial = SegmentedPolynomial(product)
        >>> (out,) = polynomial([torch.randn(10, operand.size) for operand in product.inputs])
        >>> polynomial.path, out.shape
        ('channelwise_conv', torch.Size([10, 32]))
    """

    def __init__(
        self,
        polynomial: Any,
        method: str = "",
        math_dtype: str | torch.dtype | None = None,
        output_dtype_map: list[int] | None = None,
        name: str = "segmented_polynomial",
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        try:
            import cuequivariance as cue
        except ImportError as error:
            raise ImportError(
                "SegmentedPolynomial needs cuequivariance's open package: pip install 'scfmlip[cueq]'"
            ) from error
        if not isinstance(polynomial, cue.SegmentedPolynomial):
            raise TypeError(
                "SegmentedPolynomial takes a cuequivariance.SegmentedPolynomial, got "
                f"{type(polynomial).__name__}; an equivariant polynomial has one as its .polynomial"
            )
        if method not in METHODS:
            raise ValueError(f"SegmentedPolynomial: method must be one of {METHODS}, got {method!r}")
        if isinstance(math_dtype, str):
            found = getattr(torch, math_dtype, None)
            if not isinstance(found, torch.dtype):
                raise ValueError(f"SegmentedPolynomial: torch has no dtype {math_dtype!r}")
            math_dtype = found
        if output_dtype_map is not None and len(output_dtype_map) != polynomial.num_outputs:
            raise ValueError(
                f"SegmentedPolynomial: output_dtype_map has {len(output_dtype_map)} entries, the polynomial "
                f"{polynomial.num_outputs} outputs"
            )
        self.num_inputs: int = polynomial.num_inputs
        self.num_outputs: int = polynomial.num_outputs
        self.method, self.name, self.options = method, name, options or {}
        self.math_dtype = math_dtype
        default = [0 if polynomial.num_inputs else -1] * polynomial.num_outputs
        self.output_dtypes = default if output_dtype_map is None else list(output_dtype_map)
        self.sizes = [operand.size for operand in polynomial.inputs]
        self._plan = None if method == "naive" else recognise(polynomial)
        self._general = GeneralPolynomial(polynomial)
        self.path: str = "general" if self._plan is None else _PATHS[type(self._plan)]
        self._text = str(polynomial)

    def __prepare_scriptable__(self) -> None:
        raise TypeError(
            "torch.jit.script does not support this SegmentedPolynomial: use torch.compile, torch.export or "
            "torch.jit.trace, or cuequivariance_torch's own module"
        )

    def extra_repr(self) -> str:
        """The polynomial and the path."""
        return f"path={self.path}\n{self._text}"

    def forward(
        self,
        inputs: list[Tensor],
        input_indices: dict[int, Tensor] | None = None,
        output_shapes: dict[int, Tensor] | None = None,
        output_indices: dict[int, Tensor] | None = None,
    ) -> list[Tensor]:
        """
        Compute the outputs.

        Args:
            inputs: ``[rows, size]`` each, with as many rows as the batch, one row for all of it, or any
                number with an index.
            input_indices: By number of the input, ``[batch]`` int32 or int64: the row that each batch row
                reads.
            output_shapes: By number of the output, a tensor with as many rows as the output; its values are
                not read. Required with an index. Without an index, a single row is the sum over the batch.
            output_indices: By number of the output, ``[batch]``: the row to which each batch row is added.

        Returns:
            ``[rows, size]`` per output; ``[batch, size]`` by default.

        Raises:
            TypeError: for an index that is not an integer.
            ValueError: for shapes that do not match.
        """
        input_indices, output_shapes, output_indices = (
            {} if given is None else given for given in (input_indices, output_shapes, output_indices)
        )
        n_rows = self._check(inputs, input_indices, output_shapes, output_indices)
        dtype = self.math_dtype or (inputs[0].dtype if inputs else torch.get_default_dtype())
        device = inputs[0].device.type if inputs else "cpu"
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._evaluate(inputs, input_indices, output_shapes, output_indices, n_rows, dtype)
        return self._evaluate(inputs, input_indices, output_shapes, output_indices, n_rows, dtype)

    def _evaluate(
        self,
        inputs: list[Tensor],
        input_indices: dict[int, Tensor],
        output_shapes: dict[int, Tensor],
        output_indices: dict[int, Tensor],
        n_rows: int,
        dtype: torch.dtype,
    ) -> list[Tensor]:
        plan = self._plan
        if plan is not None and dtype not in (torch.float32, torch.float64):
            dtype = torch.float32
        values = [x.to(dtype) for x in inputs]
        indices = [input_indices.get(n) for n in range(self.num_inputs)]
        indices = [None if index is None else index.long() for index in indices]
        calls = []
        for n in range(self.num_outputs):
            out_index = output_indices.get(n)
            n_out = output_shapes[n].shape[0] if n in output_shapes else n_rows
            calls.append(
                Call(values, indices, None if out_index is None else out_index.long(), n_out, n_rows)
            )
        if plan is not None and fits(plan, calls[0]):
            found = [evaluate(plan, calls[0])]
        else:
            rows = [calls[0].gathered(n) for n in range(self.num_inputs)] if calls else []
            found = [call.summed(v) for call, v in zip(calls, self._general(rows), strict=True)]
        return [
            out.to(dtype if source < 0 else inputs[source].dtype)
            for out, source in zip(found, self.output_dtypes, strict=True)
        ]

    def _check(
        self,
        inputs: list[Tensor],
        input_indices: dict[int, Tensor],
        output_shapes: dict[int, Tensor],
        output_indices: dict[int, Tensor],
    ) -> int:
        """Check the arguments, and return the number of rows of the batch."""
        if len(inputs) != self.num_inputs:
            raise ValueError(f"SegmentedPolynomial: {len(inputs)} inputs given, there are {self.num_inputs}")
        for n, (x, size) in enumerate(zip(inputs, self.sizes, strict=True)):
            if x.ndim != 2 or x.shape[1] != size:
                raise ValueError(
                    f"SegmentedPolynomial: input {n} must be [rows, {size}], got {list(x.shape)}"
                )
        for kind, given, limit in (
            ("input", input_indices, self.num_inputs),
            ("output", output_indices, self.num_outputs),
        ):
            for n, index in given.items():
                if not 0 <= n < limit:
                    raise ValueError(f"SegmentedPolynomial: there is no {kind} {n}")
                what = f"SegmentedPolynomial: the index of {kind} {n} must be"
                if index.dtype not in (torch.int32, torch.int64):
                    raise TypeError(f"{what} int32 or int64, got {index.dtype}")
                if index.ndim != 1:
                    raise ValueError(f"{what} [batch], got {list(index.shape)}")
        missing = [n for n in output_indices if n not in output_shapes]
        if missing:
            raise ValueError(f"SegmentedPolynomial: output {missing[0]} has an index and no shape")
        # len instead of shape[0], which torch.jit.trace turns into a tensor
        rows = {
            f"input {n}": len(input_indices[n]) if n in input_indices else len(x)
            for n, x in enumerate(inputs)
        }
        rows |= {f"index of output {n}": len(index) for n, index in output_indices.items()}
        rows |= {f"output {n}": len(x) for n, x in output_shapes.items() if n not in output_indices}
        batch = {name: n for name, n in rows.items() if n != 1}
        if len(set(batch.values())) > 1:
            found = ", ".join(f"{name} has {n}" for name, n in batch.items())
            raise ValueError(f"SegmentedPolynomial: rows differ: {found}")
        return next(iter(batch.values()), 1)
