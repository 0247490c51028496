"""Tunnels."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('tunnels',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('sandbox_id', sa.String(), nullable=False),
    sa.Column('project_id', sa.String(), nullable=False),
    sa.Column('port', sa.Integer(), nullable=False),
    sa.Column('kind', sa.String(), nullable=False),
    sa.Column('visibility', sa.String(), nullable=False),
    sa.Column('allow_cidrs', sa.JSON(), nullable=False),
    sa.Column('server_name', sa.String(), nullable=True),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.CheckConstraint("kind IN ('tcp', 'udp', 'tls', 'http')", name='tunnel_kind'),
    sa.CheckConstraint("visibility IN ('token', 'public')", name='tunnel_visibility'),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], ),
    sa.ForeignKeyConstraint(['sandbox_id'], ['sandboxes.id'], ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index(op.f('ix_tunnels_project_id'), 'tunnels', ['project_id'], unique=False)
    op.create_index('tunnels_to', 'tunnels', ['sandbox_id', 'kind', 'port'], unique=True)
