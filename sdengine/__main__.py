"""`python -m sdengine`: the `sdengine` command without its script."""

import sys

from sdengine.cli.main import main

sys.exit(main())
