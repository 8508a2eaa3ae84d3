"""What goes wrong for reasons outside this code.

    UserError          one sentence for a person: which file, row or key, what was expected, what to do
    ├── ConfigError    params.yaml or a command-line value
    └── DataError      a file, a row, a checkpoint

The command line prints the sentence and exits with 2, without a traceback. Our own broken invariants are
`assert`s, and their tracebacks are shown.
"""


class UserError(Exception):
    """A mistake that the person at the keyboard can mend; str(error) is the sentence to show."""


class ConfigError(UserError):
    """params.yaml, a preset or an option holds what it must not."""


class DataError(UserError):
    """A file, row or checkpoint is missing, broken or unusable."""
