"""The small models of `mace_torch.mace_models`, under the name by which the shared cases import them."""

from mace_torch.mace_models import *  # noqa: F403
