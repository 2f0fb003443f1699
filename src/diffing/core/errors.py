"""The one exception for mistakes and circumstances a user can mend."""


class UserError(Exception):
    """A fault the user can mend; shown as one sentence, exit code 2.

    Args:
        sentence: What is wrong, with the offending value, and what to do about it.
    """

    exit_code = 2


class DiskError(UserError):
    """A disk refused, and will refuse whatever comes next as well."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """First meaningful line of an exception's text, shortened to `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
