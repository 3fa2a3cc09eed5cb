"""`python -m liverseg_tf`."""

import sys

from liverseg_tf.cli.main import main

sys.exit(main())
