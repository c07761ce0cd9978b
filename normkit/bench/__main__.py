"""`python -m normkit.bench`: the same as `normkit bench`."""

import argparse
import sys

from normkit.bench.cli import add_arguments, main
from normkit.outputs import take_any_character

if __name__ == "__main__":
    take_any_character()
    parser = argparse.ArgumentParser(prog="python -m normkit.bench")
    add_arguments(parser)
    sys.exit(main(parser.parse_args()))
