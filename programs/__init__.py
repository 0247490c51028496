"""What programs that run for long begin with. Knows none of them."""
