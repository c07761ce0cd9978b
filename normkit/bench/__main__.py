"""`python -m normkit.bench`: the same as `normkit bench`."""

import argparse
import sys

from normkit.bench.cli import add_arguments, main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m normkit.bench")
    add_arguments(parser)
    sys.exit(main(parser.parse_args()))
