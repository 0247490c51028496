"""Set-up after the bootstrap: runsc, the guest and the base image, built or fetched once into the cache."""
