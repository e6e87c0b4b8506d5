# What is installed, and whether it fits together.

# %% version
scfmlip --version

# %% doctor
scfmlip doctor
