"""Projects, keys, sandboxes, idempotency keys, nodes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('nodes',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('name', sa.String(), nullable=False),
    sa.Column('address', sa.String(), nullable=False),
    sa.Column('state', sa.String(), nullable=False),
    sa.Column('epoch', sa.Integer(), nullable=False),
    sa.Column('boot_id', sa.String(), nullable=False),
    sa.Column('incarnation', sa.String(), nullable=False),
    sa.Column('version', sa.String(), nullable=False),
    sa.Column('last_seen_at', sa.BigInteger(), nullable=False),
    sa.CheckConstraint("state IN ('ready', 'lost')", name='node_state'),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_table('projects',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('parent_id', sa.String(), nullable=True),
    sa.Column('name', sa.String(), nullable=False),
    sa.Column('state', sa.String(), nullable=False),
    sa.Column('defaults', sa.JSON(), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.CheckConstraint("state IN ('active', 'suspended', 'deleting')", name='project_state'),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_table('api_keys',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('project_id', sa.String(), nullable=False),
    sa.Column('name', sa.String(), nullable=False),
    sa.Column('kind', sa.String(), nullable=False),
    sa.Column('hash', sa.LargeBinary(), nullable=False),
    sa.Column('prefix', sa.String(), nullable=False),
    sa.Column('scopes', sa.JSON(), nullable=False),
    sa.Column('expires_at', sa.BigInteger(), nullable=True),
    sa.Column('revoked_at', sa.BigInteger(), nullable=True),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.CheckConstraint("kind IN ('project', 'operator')", name='api_key_kind'),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], ),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('hash')
    )
    op.create_index(op.f('ix_api_keys_project_id'), 'api_keys', ['project_id'], unique=False)
    op.create_table('idempotency_keys',
    sa.Column('project_id', sa.String(), nullable=False),
    sa.Column('key', sa.String(), nullable=False),
    sa.Column('fingerprint', sa.LargeBinary(), nullable=False),
    sa.Column('operation', sa.String(), nullable=False),
    sa.Column('resource_id', sa.String(), nullable=False),
    sa.Column('state', sa.String(), nullable=False),
    sa.Column('status', sa.Integer(), nullable=True),
    sa.Column('incarnation', sa.String(), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.CheckConstraint("state IN ('in_flight', 'done')", name='idempotency_key_state'),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], ),
    sa.PrimaryKeyConstraint('project_id', 'key')
    )
    op.create_index(op.f('ix_idempotency_keys_created_at'), 'idempotency_keys', ['created_at'], unique=False)
    op.create_table('sandboxes',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('project_id', sa.String(), nullable=False),
    sa.Column('key_id', sa.String(), nullable=False),
    sa.Column('name', sa.String(), nullable=True),
    sa.Column('state', sa.String(), nullable=False),
    sa.Column('reason', sa.String(), nullable=True),
    sa.Column('message', sa.String(), nullable=True),
    sa.Column('desired_state', sa.String(), nullable=False),
    sa.Column('generation', sa.Integer(), nullable=False),
    sa.Column('labels', sa.JSON(), nullable=False),
    sa.Column('image_id', sa.String(), nullable=False),
    sa.Column('node_id', sa.String(), nullable=False),
    sa.Column('spec', sa.JSON(), nullable=False),
    sa.Column('user', sa.String(), nullable=True),
    sa.Column('cwd', sa.String(), nullable=True),
    sa.Column('shell', sa.String(), nullable=True),
    sa.Column('exit_code', sa.Integer(), nullable=True),
    sa.Column('timeout_seconds', sa.BigInteger(), nullable=True),
    sa.Column('idle_timeout_seconds', sa.BigInteger(), nullable=True),
    sa.Column('on_timeout', sa.String(), nullable=False),
    sa.Column('on_idle', sa.String(), nullable=False),
    sa.Column('auto_resume', sa.Boolean(), nullable=False),
    sa.Column('paused_retention_seconds', sa.BigInteger(), nullable=True),
    sa.Column('egress_mode', sa.String(), nullable=False),
    sa.Column('one_shot', sa.Boolean(), nullable=False),
    sa.Column('incarnation', sa.String(), nullable=False),
    sa.Column('start_deadline_at', sa.BigInteger(), nullable=False),
    sa.Column('expires_at', sa.BigInteger(), nullable=True),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('updated_at', sa.BigInteger(), nullable=False),
    sa.Column('started_at', sa.BigInteger(), nullable=True),
    sa.Column('paused_at', sa.BigInteger(), nullable=True),
    sa.Column('ended_at', sa.BigInteger(), nullable=True),
    sa.Column('lost_at', sa.BigInteger(), nullable=True),
    sa.CheckConstraint("(state = 'lost') = (lost_at IS NOT NULL)", name='sandbox_lost_at'),
    sa.CheckConstraint("(state NOT IN ('failed', 'stopped')) = (ended_at IS NULL)", name='sandbox_ended_at'),
    sa.CheckConstraint("desired_state IN ('running', 'paused', 'stopped')", name='sandbox_desired_state'),
    sa.CheckConstraint("state IN ('pending', 'starting', 'running', 'pausing', 'paused', 'resuming', 'stopping', 'stopped', 'failed', 'lost')", name='sandbox_state'),
    sa.CheckConstraint('generation >= 1', name='sandbox_generation'),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], ),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index(op.f('ix_sandboxes_node_id'), 'sandboxes', ['node_id'], unique=False)
    op.create_index('sandboxes_by_time', 'sandboxes', ['project_id', 'created_at', 'id'], unique=False)
    op.create_index('sandboxes_ended', 'sandboxes', ['ended_at'], unique=False, sqlite_where=sa.text('ended_at IS NOT NULL'), postgresql_where=sa.text('ended_at IS NOT NULL'))
    op.create_index('sandboxes_live', 'sandboxes', ['project_id', 'state'], unique=False, sqlite_where=sa.text('ended_at IS NULL'), postgresql_where=sa.text('ended_at IS NULL'))
    op.create_index('sandboxes_live_name', 'sandboxes', ['project_id', 'name'], unique=True, sqlite_where=sa.text('ended_at IS NULL'), postgresql_where=sa.text('ended_at IS NULL'))
