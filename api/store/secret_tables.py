"""What the database holds of secrets: each sealed with a key that is not here, who uses it, and each project's CA."""

from typing import Final, Literal

from sqlalchemy import JSON, BigInteger, CheckConstraint, Index, LargeBinary
from sqlmodel import Field, SQLModel

from api.store.tables import one_of, table_of

Use = Literal["env", "inject"]
USES: Final[tuple[Use, ...]] = ("env", "inject")


class Secret(SQLModel):
    """A value under a name, and where it may go."""

    project_id: str = Field(foreign_key="projects.id", primary_key=True)
    name: str = Field(primary_key=True)
    version: int
    env: bool
    hosts: list[str] = Field(sa_type=JSON)
    """Canonical: names, and `*.name` for what is below one."""
    sealed: bytes = Field(sa_type=LargeBinary, repr=False)
    created_at: int = Field(sa_type=BigInteger)
    updated_at: int = Field(sa_type=BigInteger)


class SecretTable(Secret, table=True):
    """Secrets."""

    __tablename__ = "secrets"  # pyright: ignore[reportAssignmentType] - SQLModel takes a plain string
    __table_args__ = (CheckConstraint("version >= 1", name="secret_version"),)


class SecretUse(SQLModel):
    """That a sandbox was made with a secret, or its policy injects it."""

    sandbox_id: str = Field(foreign_key="sandboxes.id", ondelete="CASCADE", primary_key=True)
    use: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    project_id: str = Field(foreign_key="projects.id")


class SecretUseTable(SecretUse, table=True):
    """Uses of secrets."""

    __tablename__ = "secret_uses"  # pyright: ignore[reportAssignmentType] - SQLModel takes a plain string
    __table_args__ = (
        CheckConstraint(one_of("use", USES), name="secret_use"),
        Index("secret_uses_by_name", "project_id", "name"),
    )


class Authority(SQLModel):
    """A project's certificate authority. Its own sandboxes alone trust it, for hosts that get a header."""

    project_id: str = Field(foreign_key="projects.id", primary_key=True)
    certificate: str
    """PEM."""
    sealed_key: bytes = Field(sa_type=LargeBinary, repr=False)
    created_at: int = Field(sa_type=BigInteger)


class AuthorityTable(Authority, table=True):
    """Certificate authorities of projects."""

    __tablename__ = "authorities"  # pyright: ignore[reportAssignmentType] - SQLModel takes a plain string


SECRETS: Final = table_of(SecretTable)
SECRET_USES: Final = table_of(SecretUseTable)
AUTHORITIES: Final = table_of(AuthorityTable)
