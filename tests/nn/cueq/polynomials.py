"""Polynomials of cuequivariance in the shapes that models have."""

import warnings

import pytest
import torch

cue = pytest.importorskip("cuequivariance", reason="needs cuequivariance")
cuet = pytest.importorskip("cuequivariance_torch", reason="the naive method is the witness")
mace_terms = pytest.importorskip("cuequivariance.group_theory.experimental.mace.symmetric_contractions")

F64 = torch.float64


def irreps(text):
    return cue.Irreps("O3", text)


def convolution(x="4x0e + 4x1o", y="0e + 1o + 2e", out="0e + 1o + 2e"):
    return cue.descriptors.channelwise_tensor_product(irreps(x), irreps(y), irreps(out))


def contraction(x="3x0e + 3x1o", out="3x0e + 3x1o", degrees=(1, 2, 3)):
    return mace_terms.symmetric_contraction(irreps(x), irreps(out), degrees)[0]


def linear(x="4x0e + 3x1o", out="2x0e + 5x1o"):
    return cue.descriptors.linear(irreps(x), irreps(out))


def numbers(rows, size, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, dtype=F64, generator=generator)


def naive(polynomial, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cuet.SegmentedPolynomial(polynomial, method="naive", **options)
