"""The one question that retries ask of a failure: may it pass (Unavailable) or not (Refused)."""


class OneVaultError(Exception):
    """Something went wrong; the message says what, and what to do."""


class Unavailable(OneVaultError):
    """The other side did not answer; trying again may help."""


class Refused(OneVaultError):
    """The other side said no; trying again will not help."""
