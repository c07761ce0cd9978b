"""The CuPy backend over its history, on one GPU. Skips everything where there is none."""
