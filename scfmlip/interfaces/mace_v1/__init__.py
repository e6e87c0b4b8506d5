"""
MACE v1's kernel backend contract on our operators.

MACE finds `backend.Backend` through the entry point ``mace.kernel_backends.torch``; that module needs
``mace_core``, the operations in `linear` and `products` need torch alone.
"""
