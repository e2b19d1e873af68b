"""What an error card puts into the clipboard: the error in full, and where it happened.

Nothing that a person or a model wrote may stand in it. Our own messages hold numbers and names;
what other people's code says (a library's exception, a chat template) may quote anything, so of
those only the system's own words are taken.
"""

from octavo.errors import ChatTemplateError, OctavoError
from octavo.ui.crash_report import make_report

LEFT_OUT = "[the template's own words are left out]"


def make_error_report(error: OctavoError) -> str:
    """The error with versions, machine and log; asks the driver and reads a file, so it blocks."""
    return make_report(describe_error(error))


def describe_error(error: OctavoError) -> str:
    """Class, message, hint, numbers and causes, a line each."""
    lines = [f"{type(error).__name__}: {words_of(error)}"]
    if error.hint:
        lines.append(error.hint)
    lines += [
        f"{name}: {value}"
        for name, value in vars(error).items()
        if name not in ("message", "hint") and value not in (None, "")
    ]
    cause = error.__cause__
    while cause is not None:
        lines.append(f"Cause: {_describe_cause(cause)}")
        cause = cause.__cause__
    return "\n".join(lines)


def words_of(error: OctavoError) -> str:
    """The message, without what a model's template says of the messages it was given."""
    if isinstance(error, ChatTemplateError):
        ours, colon, _theirs = error.message.partition(": ")
        return f"{ours}{colon}{LEFT_OUT}" if colon else ours
    return error.message


def _describe_cause(cause: BaseException) -> str:
    name = type(cause).__name__
    if isinstance(cause, OctavoError):
        return f"{name}: {words_of(cause)}"
    if isinstance(cause, OSError) and cause.strerror:
        return f"{name}: {cause.strerror}" + (f": {cause.filename}" if cause.filename else "")
    place = cause.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return name
    code = place.tb_frame.f_code
    return f"{name} in {code.co_qualname}, line {place.tb_lineno} of {code.co_filename}"
