"""What a release leaves behind for the next one's tests."""
