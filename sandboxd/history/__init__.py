"""What is kept of sandboxes and outlives them: what their programs wrote, and samples of their meters."""
