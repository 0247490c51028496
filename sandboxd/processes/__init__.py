"""Processes of a sandbox as clients see them: made from what a guest says, none of which is trusted."""
