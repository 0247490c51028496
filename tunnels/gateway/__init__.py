"""The gateway: every byte from outside into a sandbox that needs a program. It has no rights and no keys."""
