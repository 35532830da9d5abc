"""What a failure looks like to a shell: one exit code and one or two lines on stderr for each class of error.

Knows the error tree only; this is the one place where exit codes are decided.
"""

from __future__ import annotations

from lookalike import errors

INTERRUPTED = 130

_CODES: dict[type[errors.LookalikeError], int] = {
    errors.LookalikeError: 1,
    errors.InternalError: 1,
    errors.InvalidInput: 2,
    errors.NotFound: 3,
    errors.AlreadyExists: 4,
    errors.FailedPrecondition: 5,
    errors.ResourceExhausted: 6,
    errors.Unavailable: 7,
    errors.DataCorrupted: 8,
    errors.Unauthenticated: 9,
    errors.PermissionDenied: 10,
    errors.Cancelled: INTERRUPTED,
}

SUMMARY = """\
Exit codes: 0 done; 1 a defect of ours or of the machine; 2 wrong input or usage; 3 not found; 4 exists already;
5 parts do not fit together; 6 a limit was reached; 7 a server is not there; 8 a file is damaged, or an audience
fails verification; 9 no valid credentials; 10 they do not allow this; 130 stopped by Ctrl-C or cancelled; 143 stopped
by SIGTERM."""


def exit_code(error: Exception) -> int:
    """The code of the most basic class that `error` belongs to; 1 for whatever is not in the tree."""
    for base in type(error).__mro__:
        if base in _CODES:
            return _CODES[base]
    return 1


def describe(error: Exception) -> str:
    """One or two lines for a person: what is wrong, and for our own errors the field and the stable reason.

    Names and values of data are in them: what would steer a terminal is escaped, but for line ends.
    """
    return "\n".join(map(errors.visible, _described(error).split("\n")))


def _described(error: Exception) -> str:
    if isinstance(error, errors.LookalikeError):
        where = f"field: {error.field}, " if error.field else ""
        return f"error: {error.message}\n       ({where}reason: {error.reason})"
    if isinstance(error, OSError) and error.strerror:
        return f"error: {error.strerror}" + (f": {error.filename}" if error.filename else "")
    text = " ".join(str(error).split())
    return f"error: unexpected {type(error).__name__}: {text[:300]}\n       (a defect; --debug shows where)"
