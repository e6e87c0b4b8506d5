"""The small models of `mace_torch.polar_models`, under the name by which the shared cases import them."""

from mace_torch.polar_models import *  # noqa: F403
