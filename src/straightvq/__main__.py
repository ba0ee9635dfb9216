"""`python -m straightvq` is `straightvq`."""

import sys

from straightvq.cli import main

if __name__ == "__main__":
    sys.exit(main())
