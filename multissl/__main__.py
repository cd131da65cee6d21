"""`python -m multissl` and the `multissl` command."""

from __future__ import annotations

import sys

from multissl.cli import main

if __name__ == "__main__":
    sys.exit(main())
