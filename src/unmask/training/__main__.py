"""`python -m unmask.training CONFIG.yaml [--set key=value ...]`."""

import sys

from unmask.training import main

sys.exit(main())
