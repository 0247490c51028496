"""Builds: a Dockerfile or steps, run in sandboxes, and a sandbox's files, made into images."""
