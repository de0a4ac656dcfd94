"""`python -m nnunet_synth VERB …` is `nnunet_synth VERB …`."""

import sys

from nnunet_synth.cli import main

if __name__ == "__main__":
    sys.exit(main())
