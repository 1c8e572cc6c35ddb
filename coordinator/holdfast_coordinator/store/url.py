"""Where a store is, as people write it; what is shown of that has no password."""

from dataclasses import dataclass

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from holdfast_coordinator.store.api import StoreError

SCHEMES = ("postgresql", "postgres")
FORM = "postgresql://USER@HOST:5432/DATABASE"
SECRETS = frozenset({"password", "sslpassword"})
"""Names under which libpq takes a secret behind the question mark."""


class StoreUrlError(StoreError):
    """It can't be used; the message holds nothing of it that may be secret."""


@dataclass(frozen=True, slots=True, repr=False)
class StoreUrl:
    """A PostgreSQL database. Printing it, in whatever way, shows no password."""

    url: URL

    @property
    def has_password(self) -> bool:
        """Whether there is one in it."""
        return self.url.password is not None or bool(SECRETS & self.url.query.keys())

    def __str__(self) -> str:
        url = self.url
        shown = URL.create(
            SCHEMES[0], url.username, host=url.host or None, port=url.port, database=url.database
        )
        return shown.render_as_string()

    def __repr__(self) -> str:
        return f"StoreUrl({self})"


def read_url(text: str) -> StoreUrl:
    """Read `postgresql://user@host:port/database?option=value`. Raises StoreUrlError."""
    scheme, colon, _ = text.partition("://")
    if not colon or scheme not in SCHEMES:
        raise StoreUrlError(f"the store's URL is not one of PostgreSQL; write {FORM}")
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        url = None
    if url is None or not url.database:  # without the cause, which holds what could not be read
        raise StoreUrlError(f"the store's URL can't be read; write {FORM}")
    return StoreUrl(url.set(drivername="postgresql+psycopg"))
