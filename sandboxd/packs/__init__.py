"""The store of images: content in immutable packs, an immutable manifest for each image, over any blob store."""
