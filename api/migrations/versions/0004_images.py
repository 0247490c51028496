"""Images, tags, uploads."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('images',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('project_id', sa.String(), nullable=False),
    sa.Column('key_id', sa.String(), nullable=False),
    sa.Column('node_id', sa.String(), nullable=False),
    sa.Column('state', sa.String(), nullable=False),
    sa.Column('reason', sa.String(), nullable=True),
    sa.Column('message', sa.String(), nullable=True),
    sa.Column('kind', sa.String(), nullable=False),
    sa.Column('source', sa.JSON(), nullable=False),
    sa.Column('overrides', sa.JSON(), nullable=True),
    sa.Column('reference', sa.String(), nullable=True),
    sa.Column('content_id', sa.String(), nullable=True),
    sa.Column('digest', sa.String(), nullable=True),
    sa.Column('origin_digest', sa.String(), nullable=True),
    sa.Column('platform', sa.String(), nullable=True),
    sa.Column('config', sa.JSON(), nullable=False),
    sa.Column('dropped', sa.JSON(), nullable=False),
    sa.Column('steps', sa.JSON(), nullable=True),
    sa.Column('size_bytes', sa.BigInteger(), nullable=True),
    sa.Column('visibility', sa.String(), nullable=False),
    sa.Column('labels', sa.JSON(), nullable=False),
    sa.Column('generation', sa.Integer(), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('updated_at', sa.BigInteger(), nullable=False),
    sa.Column('ready_at', sa.BigInteger(), nullable=True),
    sa.Column('last_used_at', sa.BigInteger(), nullable=True),
    sa.CheckConstraint("state IN ('pending', 'importing', 'building', 'ready', 'failed')", name='image_state'),
    sa.CheckConstraint("kind IN ('registry', 'archive', 'build', 'sandbox', 'snapshot')", name='image_kind'),
    sa.CheckConstraint("visibility IN ('project', 'tree', 'public')", name='image_visibility'),
    sa.CheckConstraint("(state = 'ready') = (content_id IS NOT NULL)", name='image_content'),
    sa.CheckConstraint("(state = 'ready') = (ready_at IS NOT NULL)", name='image_ready_at'),
    sa.CheckConstraint("(state = 'failed') = (reason IS NOT NULL)", name='image_reason'),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], ),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index('images_by_reference', 'images', ['project_id', 'reference'], unique=False)
    op.create_index('images_by_state', 'images', ['state'], unique=False)
    op.create_index('images_by_time', 'images', ['project_id', 'created_at', 'id'], unique=False)
    op.create_index(op.f('ix_images_content_id'), 'images', ['content_id'], unique=False)
    op.create_table('uploads',
    sa.Column('project_id', sa.String(), nullable=False),
    sa.Column('sha256', sa.String(), nullable=False),
    sa.Column('node_id', sa.String(), nullable=False),
    sa.Column('used_at', sa.BigInteger(), nullable=False),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], ),
    sa.PrimaryKeyConstraint('project_id', 'sha256')
    )
    op.create_index(op.f('ix_uploads_used_at'), 'uploads', ['used_at'], unique=False)
    op.create_table('tags',
    sa.Column('project_id', sa.String(), nullable=False),
    sa.Column('name', sa.String(), nullable=False),
    sa.Column('tag', sa.String(), nullable=False),
    sa.Column('image_id', sa.String(), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('updated_at', sa.BigInteger(), nullable=False),
    sa.ForeignKeyConstraint(['image_id'], ['images.id'], ),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], ),
    sa.PrimaryKeyConstraint('project_id', 'name', 'tag')
    )
    op.create_index(op.f('ix_tags_image_id'), 'tags', ['image_id'], unique=False)
