"""Train nnU-Net with the scans nobody labelled.

Importing this package imports neither torch nor nnunetv2: every interpreter of the environment imports it at start-up
(see `_register.py`).
"""

__version__ = "0.1.0"
