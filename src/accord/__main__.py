"""`python -m accord` and `torchrun -m accord` are the `accord` command."""

import sys

from accord.cli import main

sys.exit(main())
