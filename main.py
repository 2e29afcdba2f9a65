"""Command line of larq_adambnn, as `larq-adambnn` is once the package is installed."""

import sys

from larq_adambnn.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
