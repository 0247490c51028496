"""The node agent: owns how a sandbox runs on one host, and the truth about what runs there."""
