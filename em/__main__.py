"""`python -m em`."""

import sys

from em.cli import main

sys.exit(main(sys.argv[1:]))
