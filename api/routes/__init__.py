"""HTTP in and out: reading strictly, calling one service, rendering. No SQL, no decisions."""
