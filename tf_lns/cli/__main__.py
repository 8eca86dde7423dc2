"""`python -m tf_lns.cli` is `tf-lns`."""

import sys

from tf_lns.cli import main

sys.exit(main())
