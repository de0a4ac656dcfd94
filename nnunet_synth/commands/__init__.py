"""One file a verb of `nnunet_synth VERB …`.

Each module has `EXAMPLE` (a command that works), `add_arguments(parser)`, `run(args)`, and the
Python function of the same name that `run` calls. Nothing heavier than argparse is imported at module level, so that
`nnunet_synth --help` is instant; torch and nnunetv2 are imported inside the functions.
"""
