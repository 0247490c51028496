"""Which egress policy a sandbox has, and which one its node has made true."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('sandboxes', sa.Column("egress_generation", sa.Integer(), nullable=False, server_default="1"))
    op.add_column('sandboxes', sa.Column("egress_applied_generation", sa.Integer(), nullable=False, server_default="0"))
    op.add_column('sandboxes', sa.Column("egress_applied_at", sa.BigInteger(), nullable=True))
    op.add_column('sandboxes', sa.Column("egress_asked_at", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column('sandboxes', sa.Column("egress_closed", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute("UPDATE sandboxes SET egress_applied_generation = 1, egress_applied_at = started_at WHERE started_at IS NOT NULL")
