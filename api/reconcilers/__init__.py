"""What moves without a request. Each pass looks at the world anew; nothing is remembered between passes."""
