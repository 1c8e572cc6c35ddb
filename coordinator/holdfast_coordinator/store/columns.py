"""Types of columns, the same to who reads and writes in every database."""

import json
from typing import Any

from sqlalchemy import JSON, Dialect, String, TypeDecorator
from sqlalchemy import Text as LongText

_NUL, _ESCAPE = "\x00", "\U0010fffd"
"""PostgreSQL takes any character but the first; the second has no meaning to anybody, and marks it."""


class _PostgresText(TypeDecorator[str]):
    """Any characters, ordered by their code points whatever language the database is in."""

    impl = LongText(collation="C")
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        if value is None or (_NUL not in value and _ESCAPE not in value):
            return value
        return value.replace(_ESCAPE, f"{_ESCAPE}1").replace(_NUL, f"{_ESCAPE}0")

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        if value is None or _ESCAPE not in value:
            return value
        return value.replace(f"{_ESCAPE}0", _NUL).replace(f"{_ESCAPE}1", _ESCAPE)


class _PostgresJson(TypeDecorator[Any]):
    """As text: PostgreSQL's own type refuses a loss that is no number, or infinite."""

    impl = LongText
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        return None if value is None else json.loads(value)


Text = String().with_variant(_PostgresText(), "postgresql")
Json = JSON().with_variant(_PostgresJson(), "postgresql")
JsonOrNull = JSON(none_as_null=True).with_variant(_PostgresJson(), "postgresql")
