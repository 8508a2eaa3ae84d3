"""Errors that a person can mend, each with one sentence for them.

    UserError          one sentence for a person: which file, row or key, what was expected, what to do
    ├── ConfigError    params.yaml or a command-line value
    └── DataError      a file, a row, a checkpoint

The command line prints the sentence and exits with 2, without a traceback. Our own broken invariants are
`assert`s, and their tracebacks are shown.
"""

import re
import sys


class UserError(Exception):
    """A mistake that the person at the keyboard can mend; str(error) is the sentence to show."""


class ConfigError(UserError):
    """params.yaml, a preset or an option holds what it must not."""


class DataError(UserError):
    """A file, row or checkpoint is missing, broken or unusable."""


def is_out_of_reach(error: BaseException) -> bool:
    """Whether a failed connection lies behind the error, so that a later try may succeed."""
    unreachable = {"httpx.TransportError", "requests.ConnectionError", "requests.Timeout"}
    seen: BaseException | None = error
    while seen is not None:
        kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(seen).__mro__}
        if kinds & unreachable or isinstance(seen, ConnectionError | TimeoutError):
            return type(seen).__name__ != "OfflineModeIsEnabled"  # the hub's: it was switched off on purpose
        seen = seen.__cause__ or seen.__context__
    return False


def without_credentials(text: str) -> str:
    """The text without user and password in the addresses that stand in it."""
    return re.sub(r"://[^/\s]*@", "://", text)


def tell(sentence: str) -> None:
    """Prints a sentence for a person on stderr, in one write: processes that share it do not mix their lines."""
    sys.stderr.write(f"oxa: {without_credentials(sentence)}\n")
    sys.stderr.flush()
